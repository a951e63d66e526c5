"""Bases of the shapes of Stable Diffusion 1.5 and SDXL with random weights, and what LoRA does to them."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Generator, nn

from atomdiff.base.stable_diffusion import Base, PromptEmbeds
from atomdiff.concept.passport import BasePassport

from ..shapes import SHAPES, empty_unet

STEPS = 8  # of real training, by which two speeds are compared


def full_size_base(kind: str, dtype: torch.dtype, seed: int = 0) -> Base:
    """A base of the shape `kind`, its UNet's weights as torch makes them: uniform within ±1/√(inputs)."""
    from diffusers import DDIMScheduler

    unet = nn.Module.to(empty_unet(SHAPES[kind]), dtype)
    unet.to_empty(device="cpu")
    generator = Generator().manual_seed(seed)
    with torch.no_grad():
        for module in unet.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                bound = module.weight[0].numel() ** -0.5
                for part in module.parameters(recurse=False):
                    part.uniform_(-bound, bound, generator=generator)
            elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    vae = SimpleNamespace(config=SimpleNamespace(block_out_channels=(0,) * 4))
    pipe = SimpleNamespace(unet=unet.eval().requires_grad_(False), vae=vae, scheduler=scheduler)
    family = {"sd15": "sd1"}.get(kind, kind)
    return Base(kind, family, pipe, BasePassport(f"{family}-00000000", (0.5,) * 16, kind))


def random_prompt(base: Base, seed: int) -> PromptEmbeds:
    """An embedding of the size that CLIP's last normalisation gives: rms 1."""
    generator = Generator().manual_seed(seed)
    hidden = torch.randn(1, 77, base.unet.config.cross_attention_dim, generator=generator).to(base.dtype)
    pooled = torch.randn(1, 1280, generator=generator).to(base.dtype)
    return PromptEmbeds(hidden, pooled if base.unet.config.addition_embed_type else None)
