"""Batches in which every row has maps of its own: several concepts, or trainings, on one frozen model.

With T_b = I + M_b for row b of a batch,

    y[b, o] = Σ_{c,s} W[o,c,s] z[b,c,s],    z[b,c,s] = Σ_t T_b[s,t] shift_t(x[b])[c]

so all rows share the product with the frozen W; only the mixing of k2 shifts differs. Where a row has many
pixels it is cheaper to move W, one map after another, into the same few MB: never is more than one moved
weight kept. Both forms are equal up to rounding; `row_plan` chooses.

A linear layer's block map costs kc / c_in of its product once W is moved, which is next to nothing for any
row of more than a few tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, linear

from atomdiff.core import subspace
from atomdiff.core.functional import (
    Plan,
    RowsOf,
    backward_map,
    choose_plan,
    conv_grads,
    forward_map,
    moved_product,
)
from atomdiff.core.subspace import Window
from atomdiff.errors import ConceptError


@dataclass(frozen=True, eq=False)
class RowMaps:
    """The maps of one layer and which row of a batch has which.

    `maps` (j, G, n, n) fp32; `index` holds for each row the number of its map, -1 for none. A batch
    of twice as many rows repeats them, as classifier-free guidance does.
    """

    maps: Tensor
    index: tuple[int, ...]

    def by_map(self, count: int) -> list[tuple[Tensor | None, slice | list[int]]]:
        """The maps in use with their rows of a batch of `count`."""
        if count % len(self.index):
            raise ConceptError(
                f"A batch of {count} rows cannot repeat the {len(self.index)} rows that concepts were given "
                "for; give the concepts of every row."
            )
        index = self.index * (count // len(self.index))
        found: dict[int, list[int]] = {}
        for row, number in enumerate(index):
            found.setdefault(number, []).append(row)
        return [(self.maps[n] if n >= 0 else None, _run(rows)) for n, rows in found.items()]

    def shifts(self, xs: Tensor, window: Window, channels: slice, c_in: int) -> Tensor:
        """z of the module's equation for some channels, see `shifts`."""
        oh, ow = window.output_size(*xs.shape[2:])
        k2 = self.maps.shape[-1]
        z = xs.new_empty(xs.shape[0], k2, xs.shape[1], oh, ow)
        for M, rows in self.by_map(xs.shape[1]):
            M = self.maps.new_zeros(1, k2, k2) if M is None else M
            z[:, :, rows] = shifts(xs[:, rows], M, window, channels, c_in)
        return z

    def conv(self, x: Tensor, module: nn.Conv2d, window: Window) -> Tensor:
        """The convolution of x, padded already."""
        return mixed_conv2d(x, self, module.weight, module.bias, window, module.groups)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The product of x (b, ..., in) with (out, in)."""
        return mixed_linear(x, self, weight, bias)


def common(maps: Sequence[Tensor]) -> list[Tensor]:
    """Maps (G, n, n) of one layer with the same number of channel groups and size of blocks, those of the
    finest and the coarsest. Raises ConceptError where groups do not fit each other."""
    size, groups = max(M.shape[-1] for M in maps), max(len(M) for M in maps)
    fitted = []
    for M in maps:
        if M.shape[-1] != size:
            M = subspace.coarser_block_map(M, round(size**0.5))
        if len(M) not in (1, groups):
            raise ConceptError(
                f"Concepts with {len(M)} and {groups} groups of channels cannot share a batch: draw them "
                "apart."
            )
        fitted.append(M.expand(groups, -1, -1))
    return fitted


def _run(rows: list[int]) -> slice | list[int]:
    """Rows at equal distances as a slice, which copies nothing: guidance repeats a batch."""
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    run = range(rows[0], rows[-1] + 1, step)
    return slice(run.start, run.stop, step) if list(run) == rows else rows


def row_plan(x: Tensor, weight: Tensor, rows: int, maps: int, pixels: int) -> Plan:
    """The cheaper forms for `pixels` output pixels in all, shared by `maps` different maps of an (out, ...)
    weight of `rows` = c_out/groups: `choose_plan` for the pixels of one map."""
    return choose_plan(x.dtype, rows, max(1, pixels // maps))


def mixed_conv2d(
    x: Tensor, own: RowMaps, weight: Tensor, bias: Tensor | None, window: Window, groups: int = 1,
    plan: Plan | None = None,
) -> Tensor:  # fmt: skip
    """conv2d(x[b], W + W M_b) + bias for every row b: x (b, groups*c_in, h, w) -> (b, c_out, oh, ow).

    Differentiable in x and in `own.maps`, of one channel group (G = 1). Raises ConceptError where the rows do
    not fit the batch.
    """
    oh, ow = window.output_size(*x.shape[2:])
    if plan is None:
        used = len(set(own.index))
        plan = row_plan(x, weight, weight.shape[0] // groups, used, len(x) * oh * ow)
    return _MixedConv2d.apply(x, own.maps, own, weight, bias, window, groups, plan)


def mixed_linear(x: Tensor, own: RowMaps, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x[b] through W + blocks(W) M_b for every row b: x (b, ..., in) -> (b, ..., out), differentiable in x,
    maps. Raises ConceptError where the rows do not fit the batch."""
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    parts = []
    for M, rows in own.by_map(len(x)):
        if M is None:
            made = linear(x[rows], weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        else:
            change = lambda W, M=M: subspace.apply_block_map(W, M[0])  # noqa: E731
            made = moved_product(x[rows], change, [M], weight, bias, None, 1)
        parts.append((rows, made))
    return _assembled(y, parts)


def _assembled(y: Tensor, parts: Sequence[tuple[slice | list[int], Tensor]]) -> Tensor:
    if len(parts) == 1:
        return parts[0][1]
    for rows, made in parts:
        y[rows] = made
    return y


# ------------------------------------------------------------------------------------- convolutions


class _MixedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, maps: Tensor, own: RowMaps, weight: Tensor, bias: Tensor | None, window: Window,
        groups: int, plan: Plan,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, maps, weight)
        ctx.rest = own.index, window, groups, plan.backward
        if bias is not None:
            bias = bias.to(x.dtype)
        if plan.forward == "map":
            return forward_map(x, own.shifts, weight.to(x.dtype), bias, window, groups)
        slide = (window.stride, window.padding, window.dilation, groups)
        oh, ow = window.output_size(*x.shape[2:])
        y = x.new_empty(len(x), len(weight), oh, ow)
        parts = [
            (rows, conv2d(x[rows], _moved_kernels(weight, M, x.dtype), bias, *slide))
            for M, rows in own.by_map(len(x))
        ]
        return _assembled(y, parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, maps, weight = ctx.saved_tensors
        index, window, groups, form = ctx.rest
        backward = _backward_map if form == "map" else _backward_weight
        with torch.autocast(grad.device.type, enabled=False):
            grad_x, grad_maps = backward(
                grad, x, RowMaps(maps, index), weight, window, groups, ctx.needs_input_grad[:2]
            )
        return grad_x, grad_maps, None, None, None, None, None, None


def _moved_kernels(weight: Tensor, M: Tensor | None, dtype: torch.dtype) -> Tensor:
    """W + W M, summed in fp32 and rounded once; M (G, k2, k2)."""
    if M is None:
        return weight.to(dtype)
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32)).flatten(2)
    if len(M) == 1:
        flat = wide.flatten(0, 1)
        return torch.mm(flat, subspace.plus_identity(M[0]).to(flat.dtype)).to(dtype).view(weight.shape)
    return (wide + subspace.combine(wide, M.to(wide.dtype))).to(dtype).view(weight.shape)


def shifts(xs: Tensor, M: Tensor, window: Window, channels: slice, c_in: int) -> Tensor:
    """`subspace.mix_shifts` with a map for each group of channels: xs (c, b, h, w), M (G, k2, k2) ->
    (c, k2, b, oh, ow); `channels` are those of xs, c_in of them in a group of the convolution."""
    if len(M) == 1:
        return subspace.mix_shifts(xs, M[0], window)
    return _mixed_by_channel(xs, M, window, channels, c_in)


def _mixed_by_channel(x: Tensor, M: Tensor, window: Window, channels: slice, c_in: int) -> Tensor:
    """The same where channel c of c_in has the map of its group ⌊c G / c_in⌋; `channels` are those of x."""
    which = torch.arange(channels.start, channels.start + len(x), device=x.device) % c_in
    own = M[which * len(M) // c_in].to(x.dtype)  # (c, k2, k2)
    kernels = own.reshape(-1, 1, *window.kernel)
    slide = (window.stride, window.padding, window.dilation)
    moved = conv2d(x.transpose(0, 1), kernels, None, *slide, groups=len(x))  # (b, c*k2, oh, ow)
    oh, ow = moved.shape[2:]
    moved = moved.unflatten(1, (len(x), -1)).permute(1, 2, 0, 3, 4)
    return moved + subspace.shifts_of(x, window, oh, ow).flatten(1, 2)


def _backward_map(
    grad: Tensor, x: Tensor, own: RowMaps, weight: Tensor, window: Window, groups: int,
    need: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    grad_maps = torch.zeros_like(own.maps) if need[1] else None
    nothing = own.maps.new_zeros(own.maps.shape[-2:])
    maps: list[RowsOf] = []
    for (M, rows), number in zip(own.by_map(len(x)), dict.fromkeys(own.index), strict=True):
        grad_M = None if M is None or grad_maps is None else grad_maps[number, 0]
        maps.append((nothing if M is None else M[0], rows, grad_M))
    return backward_map(grad, x, weight, window, groups, need[0], maps), grad_maps


def _backward_weight(
    grad: Tensor, x: Tensor, own: RowMaps, weight: Tensor, window: Window, groups: int,
    need: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    grad_x = torch.empty_like(x) if need[0] else None
    grad_maps = torch.zeros_like(own.maps) if need[1] else None
    for (M, rows), number in zip(own.by_map(len(x)), dict.fromkeys(own.index), strict=True):
        moved = _moved_kernels(weight, M, grad.dtype)
        wanted = (need[0], need[1] and M is not None)
        found, grad_weight = conv_grads(grad[rows], x[rows], moved, window, groups, wanted)
        if grad_x is not None:
            grad_x[rows] = found  # type: ignore[assignment]
        if grad_maps is not None and M is not None:
            grad_maps[number, 0] += subspace.spatial_map_grad(weight, grad_weight)
    return grad_x, grad_maps
