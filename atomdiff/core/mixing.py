"""A whole model whose rows have maps of their own: the layers that compute by them, put in and taken out.

The layers stay the modules they are, with their weights; only their `forward` is another meanwhile. What is
asked of the same text in every step (keys and values of cross-attention) is computed once and remembered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atomdiff.core.layers import padded, sliding_window
from atomdiff.core.mixed import RowMaps, common
from atomdiff.errors import ConceptError

LayerMaps = Mapping[str, Tensor]
"""Layer name -> its map M, (G, n, n) fp32 for G groups of input channels; n is k2, or kc² of blocks."""


class Mixing:
    """A model that computes each row of a batch with maps of its own, within `mixing`.

    `rows` says which; until then, and with `rows([{}])`, the model is the plain one.
    """

    def __init__(self, model: nn.Module, once: Callable[[str], bool] = lambda name: False) -> None:
        self._layers: dict[str, _MixedLayer] = {}
        self._modules = dict(model.named_modules())
        self._once = once

    def rows(self, maps: Sequence[LayerMaps]) -> None:
        """From now on row b of a batch of n · len(maps) rows has the maps `maps[b % len(maps)]`; {} is the
        plain model. Rows that are given the same object share it. Raises ConceptError for a layer that the
        model has not."""
        different = list({id(own): own for own in maps if own}.values())
        numbers = {id(own): i for i, own in enumerate(different)}
        index = tuple(numbers.get(id(own), -1) for own in maps)
        names = dict.fromkeys(name for own in different for name in own)
        self.set({name: _row_maps([own.get(name) for own in different], index) for name in names})

    def set(self, layers: Mapping[str, Any]) -> None:
        """From now on these layers have these maps (`RowMaps`, or `FieldMaps`), and all others none."""
        for name in layers:
            self._layer(name)
        for name, layer in self._layers.items():
            layer.set(layers.get(name))

    def choose(self, name: str, own: RowMaps | None) -> None:
        """This layer has other maps for now; what it remembers of any is kept until `set` or `rows`."""
        self._layer(name).choose(own)

    def close(self) -> None:
        """The model computes by its layers' own methods again."""
        for layer in self._layers.values():
            layer.close()
        self._layers = {}

    def _layer(self, name: str) -> _MixedLayer:
        """The layer, wrapped where it is not yet."""
        if name in self._layers:
            return self._layers[name]
        module = self._modules.get(name)
        if not isinstance(module, nn.Conv2d | nn.Linear):
            raise ConceptError(f"The concept changes a layer {name!r}, which this model does not have.")
        if isinstance(module, nn.Conv2d) and not _pointwise_or_spatial(module):
            raise ConceptError(
                f"The layer {name!r} is a 1×1 convolution with a stride, padding or groups, which cannot be "
                "mixed: draw its concepts apart."
            )
        self._layers[name] = _MixedLayer(module, self._once(name))
        return self._layers[name]


@contextlib.contextmanager
def mixing(model: nn.Module, once: Callable[[str], bool] = lambda name: False) -> Iterator[Mixing]:
    """Within: rows of a batch can be given maps of their own. `once` says which layers remember their last
    answer, since they are asked the very same tensor again: keys and values of a prompt."""
    made = Mixing(model, once)
    try:
        yield made
    finally:
        made.close()


def _row_maps(maps: Sequence[Tensor | None], index: tuple[int, ...]) -> RowMaps:
    """One layer's maps; None is no map."""
    numbers = {i: n for n, i in enumerate(i for i, M in enumerate(maps) if M is not None)}
    there = common([M for M in maps if M is not None])
    return RowMaps(torch.stack(there), tuple(numbers.get(i, -1) for i in index))


def _pointwise_or_spatial(conv: nn.Conv2d) -> bool:
    usual = tuple(conv.stride) == (1, 1) and conv.padding in ((0, 0), "valid") and conv.groups == 1
    return tuple(conv.kernel_size) != (1, 1) or usual


class _MixedLayer:
    """A layer of the model while it is mixed: its `forward` is replaced, its weight untouched."""

    def __init__(self, module: nn.Conv2d | nn.Linear, once: bool) -> None:
        self._module, self._once = module, once
        self._own: Any = None  # RowMaps, or what computes as they do
        self._before = vars(module).get("forward")
        self._plain: Callable[..., Tensor] = module.forward
        self._known: dict[Any, tuple[Tensor, int, Tensor]] = {}  # maps -> input, its version, answer
        spatial = isinstance(module, nn.Conv2d) and tuple(module.kernel_size) != (1, 1)
        self._window = sliding_window(module) if spatial else None  # type: ignore[arg-type]
        module.forward = self._forward  # type: ignore

    def set(self, own: Any) -> None:
        self._own, self._known = own, {}

    def choose(self, own: Any) -> None:
        self._own = own

    def close(self) -> None:
        self.set(None)
        del self._module.forward
        if self._before is not None:
            self._module.forward = self._before  # type: ignore[method-assign]

    def _forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._own is None:
            return self._plain(x, *args, **kwargs)
        remember = self._once and not torch.is_grad_enabled()
        version = -1 if x.is_inference() else x._version
        known = self._known.get(self._own) if remember else None
        if known is not None and known[0] is x and known[1] == version:
            return known[2]
        y = self._computed(x)
        if remember:
            self._known[self._own] = x, version, y
        return y

    def _computed(self, x: Tensor) -> Tensor:
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            return self._mixed(x)
        x = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):  # maps stay in fp32
            return self._mixed(x)

    def _mixed(self, x: Tensor) -> Tensor:
        module, own = self._module, self._own
        if self._window is not None:
            window, margins = self._window
            x = padded(x, module, margins)  # type: ignore[arg-type]
            return own.conv(x, module, window)
        if isinstance(module, nn.Linear):
            return own.linear(x, module.weight, module.bias)
        y = own.linear(x.movedim(1, -1), module.weight.flatten(1), module.bias)
        return y.movedim(-1, 1).contiguous()
