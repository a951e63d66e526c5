"""A UNet known only by its weights, under diffusers' names, as concepts know layers: in diffusers' order.

ComfyUI, A1111 and Forge keep Stable Diffusion in its original layout, whose layers have other names and
another order. They know which of their layers is which of diffusers'; given that, `plain_unet` shows their
weights as the plain UNet that a concept is bound to. Nothing is copied.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from atomdiff.integrations.layers import PlainUNet

# The order in which diffusers' UNet2DConditionModel registers its parts, and each block its own.
_TOP = (
    "conv_in", "time_embedding", "class_embedding", "add_embedding", "down_blocks", "up_blocks", "mid_block",
    "conv_norm_out", "conv_out",
)  # fmt: skip
_WITHIN = (
    "attentions", "resnets", "downsamplers", "upsamplers",
    "proj_in", "transformer_blocks", "proj_out",
    "attn1", "attn2", "ff", "to_q", "to_k", "to_v", "to_out", "net",
    "conv1", "time_emb_proj", "conv2", "conv_shortcut", "linear_1", "linear_2", "proj",
)  # fmt: skip


def plain_unet(weights: Mapping[str, Tensor]) -> PlainUNet:
    """`weights` maps names of diffusers' UNet, such as `down_blocks.0.resnets.0.conv1.weight`, to tensors on
    any device; biases and norms are left out. The matrices are shown, not copied."""
    layers = {
        name.removesuffix(".weight"): weight for name, weight in weights.items() if name.endswith(".weight")
    }
    matrices = {name: weight for name, weight in layers.items() if weight.ndim in (2, 4)}
    return PlainUNet({name: _layer(matrices[name]) for name in sorted(matrices, key=_place)})


def _layer(weight: Tensor) -> nn.Conv2d | nn.Linear:
    """A layer with this very weight: (c_out, c_in, kh, kw) of a convolution or (c_out, c_in) of a matrix."""
    layer: nn.Conv2d | nn.Linear
    if weight.ndim == 4:
        kernel = (weight.shape[2], weight.shape[3])
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], kernel, padding="same", bias=False, device="meta")
    else:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _place(name: str) -> tuple[int, ...]:
    """Where diffusers' UNet has this layer."""
    top, *within = name.split(".")
    return _rank(_TOP, top), *(int(part) if part.isdigit() else _rank(_WITHIN, part) for part in within)


def _rank(order: tuple[str, ...], part: str) -> int:
    return order.index(part) if part in order else len(order)
