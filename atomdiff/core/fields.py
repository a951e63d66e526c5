"""Maps that change over the picture: a concept in a region of its own.

With weights m_r(p) that sum to 1 at every output pixel p,

    y(p) = Σ_r m_r(p) (conv(x, W + W M_r))(p)
         = Σ_{c,s} W[o,c,s] z[c,s](p),    z[c,s](p) = Σ_r m_r(p) Σ_t (I + M_r)[s,t] shift_t(x)[c](p)

so that however many regions there are, the frozen W is multiplied once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear

from atomdiff.core import subspace
from atomdiff.core.functional import forward_map, moved_weight
from atomdiff.core.mixed import shifts
from atomdiff.core.subspace import Window
from atomdiff.errors import ConceptError


@dataclass
class Masks:
    """m_r on the latents' grid, (R, h, w) fp32, summing to 1; asked for at the sizes of a model's layers."""

    full: Tensor
    _known: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def at(self, height: int, width: int) -> Tensor:
        """(R, height, width): averages over what a coarser pixel covers."""
        if (height, width) not in self._known:
            self._known[height, width] = interpolate(self.full[None], (height, width), mode="area")[0]
        return self._known[height, width]

    def of_tokens(self, count: int) -> Tensor:
        """(R, count) for a layer that sees its pixels as a row of tokens. Raises ConceptError where no layer
        of a UNet has that many."""
        height, width = self.full.shape[1:]
        while height * width > count:
            height, width = -(-height // 2), -(-width // 2)
        if height * width != count:
            raise ConceptError(
                f"A layer sees {count} tokens, which are no reduced size of {tuple(self.full.shape[1:])} "
                "latents, so regions cannot be drawn with this model."
            )
        return self.at(height, width).flatten(1)


@dataclass(frozen=True)
class FieldMaps:
    """The maps of one layer in each region, (R, G, n, n) fp32, and where the regions are."""

    maps: Tensor
    masks: Masks

    def shifts(self, xs: Tensor, window: Window, channels: slice, c_in: int) -> Tensor:
        """z of the module's equation for some channels: (c, b, h, w) -> (c, k2, b, oh, ow)."""
        where = self.masks.at(*window.output_size(*xs.shape[2:])).to(xs.dtype)
        parts = zip(self.maps, where, strict=True)
        z = [m * shifts(xs, M, window, channels, c_in) for M, m in parts]
        return torch.stack(z).sum(0) if len(z) > 1 else z[0]

    def conv(self, x: Tensor, module: nn.Conv2d, window: Window) -> Tensor:
        """The convolution of x, padded already: (b, c, h, w) -> (b, c_out, oh, ow)."""
        bias = None if module.bias is None else module.bias.to(x.dtype)
        return forward_map(x, self.shifts, module.weight.to(x.dtype), bias, window, module.groups)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The product of tokens x (b, tokens, in), or of pixels (b, h, w, in), with (out, in)."""
        where = self.masks.of_tokens(x[0, ..., 0].numel()).view(-1, *x.shape[1:-1], 1).to(x.dtype)
        b = None if bias is None else bias.to(x.dtype)
        y = [
            m * linear(x, moved_weight(weight, subspace.apply_block_map(weight, M[0]), x.dtype), b)
            for M, m in zip(self.maps, where, strict=True)
        ]
        return torch.stack(y).sum(0)
