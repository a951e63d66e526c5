"""The adapted products: a frozen convolution or matrix product whose weight carries a map M.

One convolution has two forms, equal up to rounding, chosen separately forward and backward (`Plan`):

- *weight*: build W' = W + W M and use the library's convolution. Backward it also needs the full weight
  gradient G, of which only WᵀG (k2 × k2) is kept.
- *map*: mix the shifts of the activation, then one product with the untouched W. Backward u = Wᵀg serves
  twice, for the input's gradient and for M's, and no weight-sized tensor is ever made.

Neither keeps more than x, W and M between forward and backward. The gradient reaches x and M only: weight and
bias are frozen by definition here. M and its gradient are fp32 whatever x is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, linear

from atomdiff.core import subspace
from atomdiff.core.subspace import Window

Form = Literal["map", "weight"]
Mix = Callable[[Tensor, Window, slice, int], Tensor]
"""From some channels (c, b, h, w), a window, their places in a group of the convolution and the size c_in of
one, to their mixed shifts z (c, k2, b, oh, ow)."""
RowsOf = tuple[Tensor, slice | list[int], Tensor | None]
"""A map M (k2, k2), the rows of a batch that have it, and where its gradient is added up, if anywhere."""


@dataclass(frozen=True)
class Plan:
    """Which form a convolution takes on its way forward and on its way back."""

    forward: Form
    backward: Form


def choose_plan(dtype: torch.dtype, rows: int, pixels: int) -> Plan:
    """The cheaper forms for a convolution of `rows` = c_out/groups to `pixels` = b*oh*ow output pixels.

    Beyond the product itself, the map form handles z, of c_in*k2*pixels numbers, and the weight form W', of
    c_in*k2*rows: so pixels/rows decides. Backward the weight form also pays the whole weight gradient, which
    moves the balance. Measured on one CPU core over 64 to 1920 channels and 4² to 64² pixels, fp32, the forms
    cross at pixels/rows ≈ 1 forward, and backward between 4 and 8; with bf16, whose convolutions are
    relatively faster, at about 1/2 and 1. Far from the crossing (4×4 pixels and 1280 channels) the map form
    is 15 times faster.
    """
    forward, backward = (1.0, 4.0) if dtype.itemsize >= 4 else (0.5, 1.0)
    return Plan(
        "map" if pixels <= forward * rows else "weight",
        "map" if pixels <= backward * rows else "weight",
    )


def adapted_conv2d(
    x: Tensor, M: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int, plan: Plan
) -> Tensor:
    """conv2d(x, W + W M) + bias: x (b, groups*c_in, h, w), M (k2, k2) fp32 -> (b, c_out, oh, ow) in x's
    dtype."""
    return _AdaptedConv2d.apply(x, M, weight, bias, window, groups, plan)


def moved_product(
    x: Tensor,
    delta: Callable[[Tensor], Tensor],
    parameters: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    window: Window | None,
    groups: int,
) -> Tensor:
    """x through W + delta(W), for any ΔW that is differentiable in `parameters`; the weight form only.

    With a `window` W is a convolution (c_out, c_in, kh, kw) and x (b, groups*c_in, h, w); without, W is a
    matrix (out, in) and x (..., in). ΔW is computed anew on the way back, so nothing of it is kept.
    """
    return _MovedProduct.apply(x, delta, weight, bias, window, groups, *parameters)


# ------------------------------------------------------------------------------------- convolutions


class _AdaptedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        M: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        window: Window,
        groups: int,
        plan: Plan,
    ) -> Tensor:
        ctx.save_for_backward(x, M, weight)
        ctx.window, ctx.groups, ctx.form = window, groups, plan.backward
        if bias is not None:
            bias = bias.to(x.dtype)
        if plan.forward == "map":
            mix: Mix = lambda xs, *_: subspace.mix_shifts(xs, M, window)  # noqa: E731
            return forward_map(x, mix, weight.to(x.dtype), bias, window, groups)
        moved = _moved_kernels(weight, M, x.dtype)
        return conv2d(x, moved, bias, window.stride, window.padding, window.dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, M, weight = ctx.saved_tensors
        need, slides = ctx.needs_input_grad[:2], (ctx.window, ctx.groups)
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.form == "map":
                grad_M = torch.zeros_like(M) if need[1] else None
                grad_x = backward_map(grad, x, weight, *slides, need[0], [(M, slice(None), grad_M)])
            else:
                grad_x, grad_M = _backward_weight(grad, x, M, weight, *slides, need)
        return grad_x, grad_M, None, None, None, None, None


def _moved_kernels(weight: Tensor, M: Tensor, dtype: torch.dtype) -> Tensor:
    """W + W M, summed in fp32 and rounded once: (c_out, c_in, kh, kw)."""
    flat = weight.reshape(-1, M.shape[0]).to(torch.promote_types(weight.dtype, torch.float32))
    return torch.addmm(flat, flat, M.to(flat.dtype)).to(dtype).view(weight.shape)


def forward_map(
    x: Tensor, mix: Mix, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """The map form of any convolution whose maps `mix` brings to the shifts of x: (b, c_out, oh, ow)."""
    b, c_out, k2 = len(x), len(weight), window.kernel[0] * window.kernel[1]
    oh, ow = window.output_size(*x.shape[2:])
    xs, W = _by_group(x, weight, groups)
    y = xs.new_zeros(groups, c_out // groups, b * oh * ow)
    if bias is not None:
        y += bias.view(groups, -1, 1)
    for part in _parts(xs, b * oh * ow * k2):
        z = mix(xs[:, part].flatten(0, 1), window, part, xs.shape[1])  # (groups*part, k2, b, oh, ow)
        y.baddbmm_(W[:, :, part].flatten(2), z.reshape(groups, -1, b * oh * ow))
    return y.view(c_out, b, oh, ow).transpose(0, 1).contiguous()


def backward_map(
    grad: Tensor, x: Tensor, weight: Tensor, window: Window, groups: int, need_x: bool, maps: Sequence[RowsOf]
) -> Tensor | None:
    """Its way back: adds to the gradient of each map and returns that of x."""
    (b, c_out, oh, ow), (height, width) = grad.shape, x.shape[2:]
    k2 = window.kernel[0] * window.kernel[1]
    g = grad.transpose(0, 1).reshape(groups, c_out // groups, -1)
    xs, W = _by_group(x, weight.to(grad.dtype), groups)
    grad_x = torch.empty_like(xs) if need_x else None
    for part in _parts(xs, b * oh * ow * k2):
        u = torch.bmm(W[:, :, part].flatten(2).transpose(1, 2), g).view(-1, k2, b, oh, ow)  # u = Wᵀg
        for M, rows, grad_M in maps:
            some = u[:, :, rows].contiguous()
            if grad_M is not None:
                grad_M += subspace.mix_shifts_map_grad(some, xs[:, part].flatten(0, 1)[:, rows], window)
            if grad_x is not None:
                found = subspace.mix_shifts_input_grad(some, M, window, height, width)
                grad_x[:, part, rows] = found.unflatten(0, (groups, -1))
    return None if grad_x is None else grad_x.flatten(0, 1).transpose(0, 1)


def _by_group(x: Tensor, weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """x as (groups, c_in, b, h, w), contiguous, and W as (groups, c_out/groups, c_in, k2)."""
    xs = x.transpose(0, 1).contiguous().unflatten(0, (groups, -1))
    return xs, weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _parts(xs: Tensor, numbers: int) -> Iterator[slice]:
    """Slices of the input channels, such that what a slice is mixed into, `numbers` a channel, fits its
    place.

    On CPU that is the cache: mixed all at once, z and u of a 32×32 layer go through main memory and every
    fresh large block is paged in anew. On a GPU it only bounds the memory.
    """
    groups, c_in = xs.shape[:2]
    size = max(1, _AT_ONCE[xs.device.type == "cpu"] // (groups * numbers))
    for start in range(0, c_in, size):
        yield slice(start, min(start + size, c_in))


_AT_ONCE = {True: 1 << 20, False: 1 << 26}  # numbers mixed at once, on CPU or elsewhere


def _backward_weight(
    grad: Tensor, x: Tensor, M: Tensor, weight: Tensor, window: Window, groups: int, need: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    moved = _moved_kernels(weight, M, grad.dtype)
    grad_x, grad_weight = conv_grads(grad, x, moved, window, groups, need)
    return grad_x, subspace.spatial_map_grad(weight, grad_weight) if need[1] else None


def conv_grads(
    grad: Tensor, x: Tensor, weight: Tensor, window: Window, groups: int, need: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor]:
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, window.stride, window.padding, window.dilation,
        False, (0, 0), groups, (*need, False),
    )  # fmt: skip
    return grad_x, grad_weight


# --------------------------------------------------------------------------------- any change at all


class _MovedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        delta: Callable[[Tensor], Tensor],
        weight: Tensor,
        bias: Tensor | None,
        window: Window | None,
        groups: int,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        ctx.delta, ctx.weight, ctx.window, ctx.groups = delta, weight, window, groups
        moved = moved_weight(weight, delta(weight), x.dtype)
        if bias is not None:
            bias = bias.to(x.dtype)
        if window is None:
            return linear(x, moved, bias)
        return conv2d(x, moved, bias, window.stride, window.padding, window.dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, *parameters), weight = ctx.saved_tensors, ctx.weight
        need_x, wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[6:]
        found: list[Tensor | None] = [None] * len(parameters)
        with torch.autocast(grad.device.type, enabled=False):
            with torch.enable_grad():
                change = ctx.delta(weight)
            moved = moved_weight(weight, change.detach(), grad.dtype)
            grad_x, grad_weight = _product_grads(
                grad, x, moved, ctx.window, ctx.groups, (need_x, any(wanted))
            )
            if grad_weight is not None:
                learning = [p for p, needed in zip(parameters, wanted, strict=True) if needed]
                grads = iter(torch.autograd.grad(change, learning, grad_weight.float(), allow_unused=True))
                found = [next(grads) if needed else None for needed in wanted]
        return grad_x, None, None, None, None, None, *found


def moved_weight(weight: Tensor, change: Tensor, dtype: torch.dtype) -> Tensor:
    """W + ΔW, summed in fp32 and rounded once."""
    return (weight.to(torch.promote_types(weight.dtype, torch.float32)) + change).to(dtype)


def _product_grads(
    grad: Tensor, x: Tensor, weight: Tensor, window: Window | None, groups: int, need: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a convolution, or of a matrix product where there is no window."""
    if window is not None:
        return conv_grads(grad, x, weight, window, groups, need)
    grad_x = grad @ weight if need[0] else None
    flat = grad.reshape(-1, grad.shape[-1])
    return grad_x, flat.T @ x.reshape(-1, x.shape[-1]) if need[1] else None
