"""Frozen layers with atoms: the modules that stand in a model while a concept is trained or tried.

A layer is two modules: `base_layer`, the frozen original, untouched; and `family` (see `families`), the
numbers that are trained and how the weight follows from them. What a family offers decides how a layer
computes: through its map on the activations where that is cheaper, else by the moved weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from atomdiff.core.families import (
    BlockAtoms,
    Coefficients,
    Family,
    SpatialAtoms,
    SpatialFamily,
)
from atomdiff.core.functional import Plan, adapted_conv2d, choose_plan, moved_product
from atomdiff.core.subspace import Window
from atomdiff.errors import SettingsError

FORMS = ("auto", "map", "weight")

# --------------------------------------------------------------------------------------------- layers

_MIRRORED = (
    "weight", "bias", "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
    "padding_mode", "in_features", "out_features",
)  # fmt: skip


class AtomLayer(nn.Module):
    """A frozen layer and its family. `strength` scales the change; 0 is the base layer, bit for bit.

    Whatever a caller reads from the layer it once held (`in_channels`, `kernel_size`, `weight`, ...) is
    answered by the base layer. An untouched layer that no gradient is asked of is also the base layer, bit
    for bit.
    """

    base_layer: Any  # nn.Conv2d or nn.Linear

    def __init__(self, base_layer: nn.Conv2d | nn.Linear, family: Family) -> None:
        super().__init__()
        # First, so that code asking for "the dtype of the model's first parameter" hears the base's.
        self.base_layer = base_layer
        self.family = family
        self.strength = 1.0
        base_layer.requires_grad_(False)

    @property
    def atoms(self) -> nn.Parameter:
        return self.family.atoms

    def delta_weight(self) -> Tensor:
        """strength · ΔW, shaped like the base weight, fp32."""
        return self.strength * self.family.delta(self.base_layer.weight)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The adapted layer. Further arguments, such as diffusers' LoRA scale, mean nothing here."""
        learning = torch.is_grad_enabled() and self.atoms.requires_grad
        if self.strength == 0 or (not learning and self.family.is_zero()):
            return self.base_layer(x)
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            return self._adapted(x)
        x = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):  # the map itself stays in fp32
            return self._adapted(x)

    def _adapted(self, x: Tensor) -> Tensor:
        """The layer moved by its family, computed in x's dtype."""
        raise NotImplementedError

    def _moved(self, x: Tensor, window: Window | None, groups: int) -> Tensor:
        """The layer with the weight W + strength · ΔW."""
        family, strength, base = self.family, self.strength, self.base_layer
        parameters = list(family.trained().values())
        change = lambda weight: strength * family.delta(weight)  # noqa: E731
        return moved_product(x, change, parameters, base.weight, base.bias, window, groups)

    def __getattr__(self, name: str) -> Any:
        if name in _MIRRORED:
            return getattr(super().__getattr__("base_layer"), name)
        return super().__getattr__(name)


class AtomConv2d(AtomLayer):
    """A frozen convolution whose kernels move in the span of a few spatial atoms (arXiv 2403.00269, eq. 4).

    `family` is a spatial family, or the basis (m, kh*kw) of plain atoms. `form` is "auto" (the cheapest, by
    the size of each call), "map" or "weight"; the result differs only by rounding, and a family without a map
    has the weight form only. Raises SettingsError for another form or a basis of the wrong shape.
    """

    def __init__(
        self, base: nn.Conv2d, family: SpatialFamily | Coefficients | Tensor, form: str = "auto"
    ) -> None:
        k2 = base.kernel_size[0] * base.kernel_size[1]
        if form not in FORMS:
            raise SettingsError(f"form is one of {', '.join(FORMS)}, not {form!r}.")
        basis = family if isinstance(family, Tensor) else family.basis
        most = k2 if isinstance(family, Tensor) else max(k2, len(basis))
        if basis.ndim != 2 or not 1 <= basis.shape[0] <= most or basis.shape[1] != k2:
            raise SettingsError(
                f"A {base.kernel_size[0]}×{base.kernel_size[1]} convolution needs a basis of shape "
                f"(1 to {k2}, {k2}), not {tuple(basis.shape)}."
            )
        super().__init__(
            base, SpatialAtoms(family, base.weight.device) if isinstance(family, Tensor) else family
        )
        self.form = form
        self._window, self._margins = sliding_window(base)

    def _adapted(self, x: Tensor) -> Tensor:
        base = self.base_layer
        batched = padded(x, base, self._margins)
        M = self.family()
        if M is None:
            y = self._moved(batched, self._window, base.groups)
        else:
            plan = self._plan(batched)
            y = adapted_conv2d(
                batched, self.strength * M, base.weight, base.bias, self._window, base.groups, plan
            )
        return y if x.ndim == 4 else y.squeeze(0)

    def _plan(self, x: Tensor) -> Plan:
        if self.form != "auto":
            return Plan(self.form, self.form)  # type: ignore[arg-type]
        oh, ow = self._window.output_size(*x.shape[2:])
        rows = self.base_layer.out_channels // self.base_layer.groups
        return choose_plan(x.dtype, rows, x.shape[0] * oh * ow)

    def extra_repr(self) -> str:
        return f"atoms={tuple(self.atoms.shape)}, form={self.form}, strength={self.strength}"


class AtomLinear(AtomLayer):
    """A frozen linear or 1×1 layer moved by kc × kc blocks (the paper's Dc, closed form).

    `family` is a BlockAtoms, or the side kc of a block map. Raises SettingsError where kc does not divide the
    sides of the weight.
    """

    def __init__(self, base: nn.Linear | nn.Conv2d, family: BlockAtoms | int) -> None:
        block = family if isinstance(family, int) else family.block
        reason = why_not_blocks(base, block)
        if reason:
            raise SettingsError(f"Linear atoms cannot be attached: {reason}.")
        super().__init__(base, BlockAtoms(family, base.weight.device) if isinstance(family, int) else family)
        self._sliding = sliding_window(base) if isinstance(base, nn.Conv2d) else None

    def _adapted(self, x: Tensor) -> Tensor:
        base = self.base_layer
        if self._sliding is None:
            return self._moved(x, None, 1)
        window, margins = self._sliding
        batched = padded(x, base, margins)
        y = self._moved(batched, window, base.groups)
        return y if x.ndim == 4 else y.squeeze(0)

    def extra_repr(self) -> str:
        return f"atoms={tuple(self.atoms.shape)}, strength={self.strength}"


def padded(x: Tensor, conv: nn.Conv2d, margins: tuple[int, int, int, int]) -> Tensor:
    """x as a batch (b, c, h, w), padded by what the window cannot pad by itself."""
    x = x if x.ndim == 4 else x.unsqueeze(0)
    if not any(margins):
        return x
    return pad(x, margins, mode="constant" if conv.padding_mode == "zeros" else conv.padding_mode)


def why_not_blocks(base: nn.Conv2d | nn.Linear, block: int) -> str:
    """Why a layer cannot be cut into blocks of side `block`; "" where it can."""
    weight = base.weight
    if weight.ndim == 4 and tuple(weight.shape[2:]) != (1, 1):
        return f"its kernel is {weight.shape[2]}×{weight.shape[3]}, not 1×1"
    return why_not_channel_blocks(base, block)


def why_not_channel_blocks(base: nn.Conv2d | nn.Linear, block: int) -> str:
    """The same for output and input channels alone, whatever the kernel."""
    weight = base.weight
    rows, columns = weight.shape[0] // getattr(base, "groups", 1), weight.shape[1]
    if block < 1 or rows % block or columns % block:
        return f"blocks of side {block} do not divide its {rows} × {columns} weight"
    return ""


def sliding_window(conv: nn.Conv2d) -> tuple[Window, tuple[int, int, int, int]]:
    """The window of a convolution, and what must be padded beforehand as (left, right, top, bottom).

    Plain symmetric zero padding belongs to the window. Any other mode, and "same" around an even kernel, is
    padded beforehand, since a window pads both sides alike and with zeros.
    """
    stride, dilation = _pair(conv.stride), _pair(conv.dilation)
    if conv.padding == "valid":
        before = after = (0, 0)
    elif conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, conv.kernel_size, strict=True)]
        before, after = (total[0] // 2, total[1] // 2), (total[0] - total[0] // 2, total[1] - total[1] // 2)
    else:
        before = after = _pair(conv.padding)  # type: ignore[arg-type]
    if conv.padding_mode == "zeros" and before == after:
        return Window(_pair(conv.kernel_size), stride, before, dilation), (0, 0, 0, 0)
    margins = (before[1], after[1], before[0], after[0])
    return Window(_pair(conv.kernel_size), stride, (0, 0), dilation), margins


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
