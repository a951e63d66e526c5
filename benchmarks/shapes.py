"""The UNets of Stable Diffusion at their real size: their shapes, and empty or random weights in them.

Plain dictionaries of what differs from diffusers' own defaults, which are those of SD 1.5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

SD15: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
SD21: dict[str, Any] = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
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
SHAPES = {"sd15": SD15, "sd21": SD21, "sdxl": SDXL}


def empty_unet(shape: dict[str, Any]) -> Any:
    """A UNet of this shape without weights, on torch's meta device."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**shape)


@torch.no_grad()
def fill(unet: Any, device: str, seed: int = 0) -> None:
    """Takes an empty UNet to the device, with weights uniform at variance 1 / fan-in, which keeps activations
    in range: norms are one, biases zero. Never a second copy in memory."""
    generator = torch.Generator(device).manual_seed(seed)
    unet.to_empty(device=device)
    for parameter in unet.parameters():
        if parameter.ndim == 1:
            parameter.fill_(0)
        else:
            bound = (3 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound, generator=generator)
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            nn.init.ones_(module.weight)
