"""UNets with random weights, of the real shapes or tiny ones, and what they are asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..shapes import SD15, SDXL, empty_unet, fill

TOY: dict[str, Any] = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
TOY_SD15 = SD15 | TOY | {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 8,
}  # fmt: skip
TOY_SDXL = SDXL | TOY | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (2, 4),
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What one call of a UNet takes."""

    latents: Tensor
    times: Tensor
    text: Tensor
    added: dict[str, Tensor] | None

    def of(self, unet: Any) -> Tensor:
        """The UNet's answer."""
        made = unet(self.latents, self.times, self.text, added_cond_kwargs=self.added, return_dict=False)
        return made[0]

    def rows(self, some: slice) -> Asked:
        """Some of the samples."""
        added = None if self.added is None else {key: value[some] for key, value in self.added.items()}
        return Asked(self.latents[some], self.times[some], self.text[some], added)


def unet_of(shape: dict[str, Any], device: str, dtype: torch.dtype) -> Any:
    """Random weights, drawn in fp32, so that they are the same in every dtype; frozen, evaluating."""
    fill(unet := empty_unet(shape), device)
    return nn.Module.to(unet, dtype).eval().requires_grad_(False)  # diffusers' own `to` warns about one


def asked(unet: Any, count: int, side: int, seed: int = 0) -> Asked:
    """`count` samples for pictures of `side` pixels, 77 tokens each, drawn on the CPU: the same anywhere."""
    g, config = torch.Generator().manual_seed(seed), unet.config

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(unet.device, unet.dtype)

    added = None
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        sizes = torch.tensor([[side, side, 0, 0, side, side]] * count)
        added = {"text_embeds": normal(count, pooled), "time_ids": sizes.to(unet.device, unet.dtype)}
    times = torch.linspace(50, 950, count, device=unet.device).long()
    return Asked(
        normal(count, 4, side // 8, side // 8), times, normal(count, 77, config.cross_attention_dim), added
    )
