"""UNets of the real shapes with random weights, and what they are asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SD15: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
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


def unet_of(config: dict[str, Any], device: str, dtype: torch.dtype, seed: int = 0) -> Any:
    """Random weights, uniform with the variance that keeps activations in range; frozen, evaluating."""
    from diffusers import UNet2DConditionModel

    generator = torch.Generator(device).manual_seed(seed)
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**config)
    unet.to_empty(device=device)
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.ndim == 1:
                parameter.fill_(0)
            else:
                bound = (3 / parameter[0].numel()) ** 0.5
                parameter.uniform_(-bound, bound, generator=generator)
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            nn.init.ones_(module.weight)
    # Drawn in fp32, so that they are the same in every dtype; diffusers' own `to` warns about one.
    return nn.Module.to(unet, dtype).eval().requires_grad_(False)


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
