"""A second device without one: tensors that say they are elsewhere, while their numbers are in memory.

An operation on tensors of both kinds is refused, as it is where there is a GPU; what a GPU takes from the
CPU, copies, indices and single numbers, goes through. So what works here works there, as far as it matters
what is where. PyTorch calls the place "meta", the one device that every build knows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ELSEWHERE = torch.device("meta")
_aten = torch.ops.aten
_ACROSS = {
    _aten.copy_,
    _aten._to_copy,
    _aten.index,
    _aten.index_put,
    _aten.index_put_,
    _aten._index_put_impl_,
}


class Away(Tensor):
    """A tensor elsewhere; `near` has its numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Away:
        return torch.Tensor._make_wrapper_subclass(
            cls, near.shape, strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype,
            device=ELSEWHERE,
        )  # fmt: skip

    def __init__(self, near: Tensor) -> None:
        self.near = near

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(torch.tensor(index) if isinstance(index, list) else index)

    def tolist(self) -> Any:
        return self.near.tolist()


def _computed(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, there if anything of it is there or asked to be."""
    tensors = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, Tensor)]
    away = any(isinstance(t, Away) for t in tensors)
    strangers = [t for t in tensors if not isinstance(t, Away) and t.dim()]
    if away and strangers and function.overloadpacket not in _ACROSS:
        raise RuntimeError(f"{function}: tensors on two devices, {[tuple(t.shape) for t in strangers]} here")
    if function.overloadpacket is _aten.copy_:
        away = isinstance(args[0], Away)
    if kwargs.get("device") is not None:
        away = torch.device(kwargs["device"]) == ELSEWHERE
        kwargs = kwargs | {"device": torch.device("cpu")}
    near = {id(_near(t)): t for t in tensors}
    made = function(*tree_map(_near, args), **tree_map(_near, kwargs))

    def placed(item: Any) -> Any:
        if not isinstance(item, Tensor):
            return item
        return near.get(id(item), Away(item) if away else item)  # in place: the very tensor

    return tree_map(placed, made)


def _near(item: Any) -> Any:
    return item.near if isinstance(item, Away) else item


class _Placing(TorchDispatchMode):
    """Also makes new tensors elsewhere, where they are asked for."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})


@contextlib.contextmanager
def elsewhere(monkeypatch: Any) -> Iterator[torch.device]:
    """Within: the device is there."""
    tensor, autocast, enabled = torch.tensor, torch.autocast, torch.is_autocast_enabled

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        new = tensor(data, *args, **kwargs)
        return new if device is None else new.to(device)

    with monkeypatch.context() as patched, _Placing():
        # These do nothing on "meta", or do not know it.
        patched.setattr(torch, "tensor", made)
        patched.setattr(
            torch, "autocast", lambda kind, *a, **k: autocast("cpu" if kind == "meta" else kind, *a, **k)
        )
        patched.setattr(torch, "is_autocast_enabled", lambda *kind: kind != ("meta",) and enabled(*kind))
        yield ELSEWHERE


def move(pipe: Any) -> None:
    """Puts the models of a pipeline there."""
    for model in pipe.components.values():
        for module in model.modules() if isinstance(model, nn.Module) else ():
            for name, values in module._parameters.items():
                if values is not None:
                    module._parameters[name] = nn.Parameter(Away(values.data), values.requires_grad)
            for name, values in module._buffers.items():
                if values is not None:
                    module._buffers[name] = Away(values)
