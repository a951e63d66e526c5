"""Stage 3: the denoiser. A stock UNet2DConditionModel shaped like SD's: three levels of resnet convolutions
with self- and cross-attention, trained together with the text encoder on the captions of the world."""

from __future__ import annotations

from dataclasses import replace

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn
from transformers import CLIPTextModel

from .fitting import Schedule, Workshop, fit

CONFIG = {
    "sample_size": 16,
    "layers_per_block": 1,
    "block_out_channels": (64, 128, 192),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 128,
    "attention_head_dim": (1, 2, 3),  # diffusers' name for the number of heads: 64 numbers each
    "norm_num_groups": 16,
}

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
    # The velocity target (arXiv 2202.00512): at high noise, where the colour of everything is decided, the
    # network then says the picture itself instead of a noise from which the picture follows with a huge
    # factor.
    "prediction_type": "v_prediction",
}


def new_denoiser(channels: int) -> UNet2DConditionModel:
    """For latents of so many channels."""
    return UNet2DConditionModel(**CONFIG, in_channels=channels, out_channels=channels)


class Painter(nn.Module):
    """Denoiser and text encoder, trained as one."""

    def __init__(self, unet: UNet2DConditionModel, text: CLIPTextModel):
        super().__init__()
        self.unet, self.text = unet, text

    def forward(self, noisy: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        return self.unet(noisy, timesteps, self.text(ids).last_hidden_state).sample


def train(
    latents: Tensor,
    ids: Tensor,
    empty: Tensor,
    text: CLIPTextModel,
    schedule: Schedule,
    shop: Workshop,
    start: UNet2DConditionModel | None = None,
    blind: float = 0.1,
    gamma: float = 5.0,
    least: float = 0.25,
    often: Tensor | None = None,
) -> tuple[UNet2DConditionModel, CLIPTextModel, dict]:
    """latents (n, c, 16, 16); ids (n, variants, t) tokens of each picture's captions; empty (t,) tokens of
    the empty caption.

    `blind`: share of empty captions, for classifier-free guidance (arXiv 2207.12598); `gamma`: min-SNR
    weighting (arXiv 2303.09556), and `least`: the smallest weight, since what has which colour is decided
    where there is little but noise; `often` (n,): how often a picture comes up, relative to the others;
    `start`: a denoiser to go on from.
    """
    torch.manual_seed(shop.seed + 3)
    if start:  # other batches and noise than those that it was made with
        shop = replace(shop, seed=shop.seed + 1)
    unet = start or new_denoiser(latents.shape[1])
    painter = shop.ready(Painter(unet, text))
    if shop.device.type == "cpu":  # its fused attention is slow backwards; a third of a step is saved
        unet.set_attn_processor(AttnProcessor())
    paint = shop.forward(painter)
    noising = DDIMScheduler(**SCHEDULER)
    signal = noising.alphas_cumprod
    shares = torch.ones(len(latents)) if often is None else often

    def loss_at(step: int, g: torch.Generator) -> Tensor:
        b = schedule.batch
        rows = shares.multinomial(b, replacement=True, generator=g)
        which = torch.randint(ids.shape[1], (b,), generator=g)
        said = (torch.rand(b, 1, generator=g) > blind).to(shop.device)
        tokens = shop.rows(ids.flatten(0, 1), rows * ids.shape[1] + which).where(said, empty.to(shop.device))
        z = shop.rows(latents, rows).float()
        noise = torch.randn(z.shape, generator=g).to(shop.device)
        t = spread_timesteps(b, g)
        a = signal[t].view(-1, 1, 1, 1).to(shop.device)
        noisy, target = a.sqrt() * z + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * z
        with shop.autocast():
            v = paint(noisy, t.to(shop.device), tokens.long())
        snr = signal[t] / (1 - signal[t])
        weight = (snr.clamp(max=gamma) / (snr + 1)).clamp(min=least).to(shop.device)
        return (weight * (v.float() - target).pow(2).mean((1, 2, 3))).mean() * 2

    slower = {"text.embeddings.token": 0.5, "text.": 0.6}
    about = fit("denoiser", painter, loss_at, schedule, shop, ema_decay=0.9985, slower=slower)
    painter.unet.set_attn_processor(AttnProcessor2_0())
    return painter.unet, painter.text, about


def spread_timesteps(batch: int, g: torch.Generator, total: int = 1000) -> Tensor:
    """One timestep in each of `batch` equal stretches: less variance between batches than independent
    draws."""
    stretch = torch.randperm(batch, generator=g)
    return ((stretch + torch.rand(batch, generator=g)) / batch * total).long().clamp(max=total - 1)
