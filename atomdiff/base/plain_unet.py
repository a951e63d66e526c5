"""The layers of a UNet that concepts are trained on, whatever else was put into it or around them since.

PEFT wraps layers that it adapts, AnimateDiff's UNet has motion modules between them, IP-Adapter's projections
are beside them, accelerate keeps their weights elsewhere. Concepts know layers by their names and order in
the plain UNet, so that is what they are shown here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

Layer = nn.Conv2d | nn.Linear

# What is no part of the UNet that a base has: AnimateDiff's modules, IP-Adapter's projections.
_ADDED = re.compile(r"(^|\.)(motion_modules|processor|encoder_hid_proj)\.")


class PlainUNet(nn.Module):
    """A UNet seen as its own convolutions and linear layers, by their names in the plain UNet, in its order.

    It shows the layers but owns none: moving or saving it does nothing to them.
    """

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        super().__init__()
        self._shown = _Shown({name: _readable(layer) for name, layer in layers.items()})

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        yield "", self
        yield from self._shown.layers.items()

    def get_submodule(self, target: str) -> nn.Module:
        """The layer of this name, or the whole for "". Raises AttributeError for any other."""
        if target and target not in self._shown.layers:
            raise AttributeError(f"The UNet has no layer {target!r}.")
        return self._shown.layers[target] if target else self


@dataclass(frozen=True)
class _Shown:
    """Layers that `nn.Module` must not take for its own children."""

    layers: Mapping[str, Layer]


def plain_layers(unet: nn.Module) -> dict[str, Layer]:
    """The convolutions and linear layers of the plain UNet in a UNet2DConditionModel or UNetMotionModel, be
    it compiled or adapted by PEFT: its own modules, in its order."""
    unet = getattr(unet, "_orig_mod", unet)  # torch.compile's wrapper
    layers: dict[str, Layer] = {}
    wrapped: tuple[str, ...] = ()
    for name, module in unet.named_modules():
        if _ADDED.search(f"{name}.") or name.startswith(wrapped):
            continue
        if hasattr(module, "get_base_layer"):  # PEFT's BaseTunerLayer
            wrapped = (*wrapped, f"{name}.")
            module = module.get_base_layer()
        if isinstance(module, Layer):
            layers[name] = module
    return layers


def as_plain(unet: nn.Module) -> nn.Module:
    """The UNet itself, or where PEFT adapts any of its layers, the plain UNet in it."""
    adapted = any(hasattr(module, "get_base_layer") for module in unet.modules())
    return PlainUNet(plain_layers(unet)) if adapted else unet


def _readable(layer: Layer) -> Layer:
    """The layer, or where sequential offloading keeps its weight elsewhere, a copy that holds it."""
    kept = getattr(getattr(layer, "_hf_hook", None), "weights_map", None)
    if not layer.weight.is_meta or kept is None:
        return layer
    shown = copy.copy(layer)
    shown._parameters = {**layer._parameters, "weight": nn.Parameter(kept["weight"], requires_grad=False)}
    return shown
