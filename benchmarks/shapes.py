"""The UNets of Stable Diffusion at their real size and tiny ones, with random weights, what they are asked,
and a clock.

A shape is what differs from diffusers' own defaults, which are those of SD 1.5.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

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
_TOY: dict[str, Any] = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
TOY_SD15 = SD15 | _TOY | {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 8,
}  # fmt: skip
TOY_SDXL = SDXL | _TOY | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (2, 4),
}  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def empty_unet(shape: dict[str, Any]) -> Any:
    """A UNet of this shape without weights, on torch's meta device."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**shape)


def random_unet(shape: dict[str, Any], device: str, dtype: torch.dtype) -> Any:
    """A UNet of this shape with random weights."""
    return randomized(empty_unet(shape), device, dtype)


@torch.no_grad()
def randomized(model: Any, device: str, dtype: torch.dtype, gain: float = 1.0) -> Any:
    """A model without weights, given some: uniform at variance gain² / fan-in, which keeps activations in
    range; norms are one, biases zero. Drawn in fp32, so that they are the same in every dtype, a layer at a
    time, so that no second copy is ever in memory; frozen, evaluating."""
    nn.Module.to(model, dtype).to_empty(device=device)  # diffusers' own `to` warns about a dtype
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.fill_(0)
        else:
            bound = gain * (3 / parameter[0].numel()) ** 0.5
            drawn = torch.empty(parameter.shape, device=device)
            parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))
    for module in model.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            nn.init.ones_(module.weight)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Asked:
    """What one call of a UNet takes."""

    latents: Tensor
    times: Tensor
    text: Tensor
    added: dict[str, Tensor] | None = None

    def of(self, unet: Any) -> Tensor:
        """The UNet's answer."""
        made = unet(self.latents, self.times, self.text, added_cond_kwargs=self.added, return_dict=False)
        return made[0]

    def rows(self, some: slice) -> Asked:
        """Some of the samples."""
        added = None if self.added is None else {key: value[some] for key, value in self.added.items()}
        return Asked(self.latents[some], self.times[some], self.text[some], added)


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
    text = normal(count, 77, config.cross_attention_dim)
    return Asked(normal(count, 4, side // 8, side // 8), times, text, added)


def apart(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖ in fp32."""
    return float((a.float() - b.float()).norm() / b.float().norm())


class Clock:
    """Seconds of a call, of the processor or on the wall, up to the end of what it began on a GPU."""

    def __init__(self, device: str, wall: bool = False) -> None:
        self.cuda = device.startswith("cuda")
        self._now = time.perf_counter if wall or self.cuda else time.process_time

    def __call__(self, call: Callable[[], object]) -> float:
        self._wait()
        start = self._now()
        call()
        self._wait()
        return self._now() - start

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
