"""A UNet known only by its weights, under diffusers' names, as concepts know layers: in diffusers' order.

ComfyUI, A1111 and Forge keep Stable Diffusion in its original layout, whose layers have other names and
another order. Given which of their layers is which of diffusers' (`diffusers_name`, where they do not know it
themselves), `plain_unet` shows their weights as the plain UNet that a concept is bound to. Nothing is copied.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from atomdiff.base.plain_unet import PlainUNet

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


_FIXED = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
}  # fmt: skip
_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip


def diffusers_name(original: str, resnets: int = 2) -> str | None:
    """`input_blocks.1.0.in_layers.2.weight` -> `down_blocks.0.resnets.0.conv1.weight`, and so on; None for
    what is no part of a UNet. `resnets` are those of a level on the way down."""
    for theirs, name in _FIXED.items():
        if original.startswith(f"{theirs}."):
            return name + original[len(theirs) :]
    place, _, rest = original.partition(".")
    parts = rest.split(".")
    if place == "middle_block":
        kind, number = ("attentions", 0) if parts[0] == "1" else ("resnets", int(parts[0]) // 2)
        return f"mid_block.{kind}.{number}.{_within(kind, parts[1:])}"
    if place not in ("input_blocks", "output_blocks"):
        return None
    down = place == "input_blocks"
    level, number = divmod(int(parts[0]) - down, resnets + 1)
    block, tail = f"{'down' if down else 'up'}_blocks.{level}", parts[2:]
    if tail[0] == "op":
        return f"{block}.downsamplers.0.conv.{tail[1]}"
    if tail[0] == "conv":
        return f"{block}.upsamplers.0.conv.{tail[1]}"
    kind = "resnets" if parts[1] == "0" else "attentions"
    return f"{block}.{kind}.{number}.{_within(kind, tail)}"


def _within(kind: str, tail: list[str]) -> str:
    name = ".".join(tail)
    if kind == "attentions":
        return name
    theirs = next(part for part in _RESNET if name.startswith(f"{part}."))
    return _RESNET[theirs] + name[len(theirs) :]


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
