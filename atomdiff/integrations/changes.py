"""What loaded concepts make of a layer: y = (W + Σ sᵢ ΔWᵢ) x, with W untouched and nothing of its size kept.

The sum is worked out anew in every forward, which costs little beside the layer itself and makes loading,
unloading and a new strength free. Where ΔW = W M, Σ sᵢ ΔWᵢ is one small map, and that of a convolution acts
on the activations where this is cheaper (see `core.functional`). A layer stays the module it was, with its
class, its parameters and its place; only its `forward` is another. So PEFT may wrap it before or after,
`.to()` moves it, and accelerate's hooks find what they expect.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from atomdiff.base.plain_unet import Layer
from atomdiff.concept.concept import Concept
from atomdiff.core import subspace
from atomdiff.core.functional import Plan, adapted_conv2d, choose_plan
from atomdiff.core.inject import DeltaOf
from atomdiff.core.layers import sliding_window

_BY_MAP = Plan("map", "map")


@dataclass(frozen=True)
class Change:
    """What one concept makes of one layer: ΔW = W M, with M fp32 on the CPU, or a function of W."""

    map: Tensor | None
    """(k², k²) of a convolution's kernel, or (kc², kc²) of the blocks of a matrix."""
    delta: DeltaOf


def changes_of(concept: Concept, unet: nn.Module) -> dict[str, Change]:
    """Layer name -> what the concept makes of it, for a plain UNet. Raises ConceptError for another base."""
    modules = dict(unet.named_modules())
    found = {}
    for name, delta in concept.deltas(unet).items():
        layer = modules[name]
        if _is_spatial(layer):
            spec = concept.spec
            plain = spec.conv_family == "atoms" and not spec.coef_block
            M = _spatial_map(delta, layer.kernel_size) if plain else None
        else:
            M = _block_map(delta, concept.spec.linear_block)
        found[name] = Change(M, delta)
    return found


class LayerChange:
    """All that loaded concepts make of one layer, and how it computes with that."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.maps: list[Tensor] = []
        self.deltas: list[tuple[DeltaOf, float]] = []
        self._slides = sliding_window(layer) if isinstance(layer, nn.Conv2d) else None

    def set(self, changes: Iterable[tuple[Change, float]]) -> None:
        """Takes other changes with their strengths, none of them 0; without any the layer is as it was."""
        sums: dict[int, Tensor] = {}  # concepts may have blocks of different sides
        self.deltas = []
        for change, strength in changes:
            if change.map is None:
                self.deltas.append((change.delta, strength))
            else:
                M, side = strength * change.map, len(change.map)
                sums[side] = sums[side] + M if side in sums else M
        self.maps = list(sums.values())
        if self.acts:
            override(self.layer, self.forward)
        else:
            restore(self.layer)

    @property
    def acts(self) -> bool:
        """Whether there is any change."""
        return bool(self.maps or self.deltas)

    @torch.no_grad()
    def weight(self) -> Tensor:
        """W + Σ sᵢ ΔWᵢ, summed in fp32 and rounded once to W's dtype; on W's device."""
        W = self.layer.weight
        exact = W.float()
        total = exact
        for M in self._maps(W.device):
            if _is_spatial(self.layer):
                flat = exact.reshape(-1, len(M))
                total = torch.addmm(flat, flat, M).view(W.shape)
            else:
                total = total + subspace.apply_block_map(exact.flatten(1), M).view(W.shape)
        for delta, strength in self.deltas:
            total = total + strength * delta(W)
        return total.to(W.dtype)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The changed layer. Further arguments, such as diffusers' LoRA scale, mean nothing to it."""
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return linear(x, self.weight(), layer.bias)
        if self._mixes_activations(x):
            (M,), window = self._maps(x.device), self._slides[0]  # type: ignore[index]
            return adapted_conv2d(x, M, layer.weight, layer.bias, window, layer.groups, _BY_MAP)
        return layer._conv_forward(x, self.weight(), layer.bias)

    def _mixes_activations(self, x: Tensor) -> bool:
        """Whether the map of a convolution is better applied to the activations than to the weight."""
        layer = self.layer
        if self.deltas or not _is_spatial(layer) or x.ndim != 4:
            return False
        if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
            return False  # the compiler and autocast know what to do with a weight
        assert self._slides is not None
        window, margins = self._slides
        oh, ow = window.output_size(*x.shape[2:])
        rows = layer.out_channels // layer.groups
        return not any(margins) and choose_plan(x.dtype, rows, len(x) * oh * ow).forward == "map"

    def _maps(self, device: torch.device) -> list[Tensor]:
        if any(M.device != device for M in self.maps):
            self.maps = [M.to(device) for M in self.maps]
        return self.maps


def override(module: nn.Module, forward: Any) -> None:
    """The module computes by `forward` from now on, within accelerate's offloading hook if it has one."""
    setattr(module, "_old_forward" if hasattr(module, "_hf_hook") else "forward", forward)


def restore(module: nn.Module) -> None:
    """The module computes as its class does again. Doing it twice is harmless."""
    if hasattr(module, "_hf_hook"):
        module._old_forward = type(module).forward.__get__(module)
    else:
        module.__dict__.pop("forward", None)


def _is_spatial(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    return isinstance(layer, nn.Conv2d) and tuple(layer.kernel_size) != (1, 1)


def _spatial_map(delta: DeltaOf, kernel: tuple[int, ...]) -> Tensor:
    """M of ΔW = W M: what ΔW is for the k² kernels that are 1 in one place each."""
    k2 = kernel[0] * kernel[1]
    return delta(torch.eye(k2).view(k2, 1, *kernel)).reshape(k2, k2)


def _block_map(delta: DeltaOf, kc: int) -> Tensor:
    """The same for a matrix whose kc × kc blocks are each mapped."""
    ones = torch.eye(kc**2).unsqueeze(1)  # (kc², 1, kc²): the blocks that are 1 in one place each
    return subspace.to_blocks(delta(subspace.from_blocks(ones, kc)), kc).reshape(kc**2, kc**2)
