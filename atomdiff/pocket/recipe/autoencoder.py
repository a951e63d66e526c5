"""Stage 1: the autoencoder. A stock AutoencoderKL from pictures to 16 x 16 latents, of 16
channels, f = 8 as Stable Diffusion's: 8 channels left no eyes in a face of 20 pixels.

One that is trained on is held to its own latents, so that its denoiser goes on from where it was.
"""

from __future__ import annotations

import math
from copy import deepcopy

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from atomdiff.pocket.world import SIDE

from .fitting import Schedule, Workshop, fit

WIDTHS, CHANNELS = (24, 24, 48, 96), 16  # of the levels, of the latents


def new_autoencoder() -> AutoencoderKL:
    vae = AutoencoderKL(
        sample_size=SIDE,
        latent_channels=CHANNELS,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * len(WIDTHS),
        up_block_types=("UpDecoderBlock2D",) * len(WIDTHS),
        scaling_factor=1.0,
    )
    with torch.no_grad():
        vae.quant_conv.bias[CHANNELS:] -= 6  # a posterior that is sharp from the first step
    return vae


def begin(start: AutoencoderKL | None) -> tuple[AutoencoderKL, AutoencoderKL | None]:
    """(what training begins with, the finished one whose latents it is held to, if there is one)."""
    if start is None:
        return new_autoencoder(), None
    return deepcopy(start), start.requires_grad_(False)


def to_tensor(pictures: Tensor) -> Tensor:
    """uint8 (b, h, w, 3) -> float (b, 3, h, w) in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def reconstruction_loss(y: Tensor, x: Tensor, squared: float = 2.0) -> Tensor:
    """Absolute error on pixels and on edges (it keeps outlines crisp, as the usual perceptual network would),
    plus `squared` times the squared error."""
    sharp = sum(F.l1_loss(a, b) for a, b in zip(edges(y), edges(x), strict=True))
    return F.l1_loss(y, x) + sharp + squared * F.mse_loss(y, x)


def train(
    pictures: Tensor,
    schedule: Schedule,
    shop: Workshop,
    start: AutoencoderKL | None = None,
    kl_weight: float = 1e-4,
    held: float = 0.1,
) -> tuple[AutoencoderKL, dict]:
    """pictures: uint8 (n, h, w, 3), of which the last are kept for the reported PSNR in dB; `start`: an
    autoencoder to go on from; `held`: the weight of being near its latents."""
    unseen, pictures = apart(pictures)
    torch.manual_seed(shop.seed)  # stock modules initialise from the global generator
    vae, before = begin(start)
    shop.ready(vae)
    if before is not None:
        shop.ready(before)

    def loss_at(step: int, g: torch.Generator) -> Tensor:
        x = _to_tensor_mirrored(pictures, schedule.batch, g, shop)
        with shop.autocast():
            posterior = vae.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=g).to(shop.device)
            y = vae.decode(posterior.mean + posterior.std * noise).sample
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        loss = reconstruction_loss(y.float(), x, squared=8.0) + kl_weight * kl
        if before is not None:
            with torch.no_grad(), shop.autocast():
                wanted = before.encode(x).latent_dist.mean.float()
            loss = loss + held * F.mse_loss(mean, wanted)
        return loss

    about = fit("autoencoder", vae, loss_at, schedule, shop, ema_decay=0.998)
    normalise(vae, pictures[:2048])
    return vae, about | {"psnr": psnr(vae, unseen)}


def apart(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """(what is kept for the reported figures, the rest)."""
    kept = min(512, len(pictures) // 8)
    return pictures[-kept:], pictures[:-kept]


def _to_tensor_mirrored(pictures: Tensor, batch: int, g: torch.Generator, shop: Workshop) -> Tensor:
    rows = torch.randint(len(pictures), (batch,), generator=g)
    mirror = (torch.rand(batch, 1, 1, 1, generator=g) < 0.5).to(shop.device)
    x = to_tensor(shop.rows(pictures, rows))
    return x.flip(-1).where(mirror, x)


def refine(vae: AutoencoderKL, latents: Tensor, pictures: Tensor, schedule: Schedule, shop: Workshop) -> dict:
    """Trains the decoder on, the latents staying what they are: so it may go on for as long as there is time,
    even after the denoiser was trained. latents (n, c, 16, 16) of pictures uint8 (n, h, w, 3).

    Half of the loss is squared error here: outlines are crisp by now, and few large errors are left."""
    unseen, pictures = apart(pictures)
    shop.ready(vae).encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)

    def loss_at(step: int, g: torch.Generator) -> Tensor:
        rows = torch.randint(len(pictures), (schedule.batch,), generator=g)
        with shop.autocast():
            y = vae.decode(shop.rows(latents, rows).float()).sample
        return reconstruction_loss(y.float(), to_tensor(shop.rows(pictures, rows)), squared=20.0)

    about = fit("decoder", vae, loss_at, schedule, shop, ema_decay=0.998)
    return about | {"psnr": psnr(vae, unseen)}


@torch.no_grad()
def normalise(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Folds (z - mean) / std per channel into the two 1 x 1 convolutions around the latent, so that the
    denoiser sees zero mean and unit variance and `scaling_factor` is 1."""
    z = torch.cat([encode(vae, part) for part in pictures.split(128)])
    mean, std = z.mean((0, 2, 3)).to(vae.device), z.std((0, 2, 3)).to(vae.device)
    quant, post = vae.quant_conv, vae.post_quant_conv
    c = len(mean)
    quant.weight[:c] /= std[:, None, None, None]
    quant.bias[:c] = (quant.bias[:c] - mean) / std
    quant.bias[c:] -= 2 * std.log()
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= std[None, :, None, None]


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """uint8 (b, h, w, 3) -> latent means (b, c, 16, 16)."""
    return vae.encode(to_tensor(pictures).to(vae.device, vae.dtype)).latent_dist.mean.float().cpu()


@torch.no_grad()
def redraw(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Pictures as they come back from the latents, uint8 (n, h, w, 3) -> the same."""
    parts = []
    for part in pictures.split(64):
        y = vae.decode(encode(vae, part).to(vae.device, vae.dtype)).sample.float()
        parts.append(y.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu())
    return torch.cat(parts)


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of the mean squared error over all pictures (8-bit range)."""
    error = 0.0
    for part in pictures.split(64):
        y = vae.decode(encode(vae, part).to(vae.device, vae.dtype)).sample.float().cpu().clamp(-1, 1)
        error += float(((y - to_tensor(part)) / 2).pow(2).mean((1, 2, 3)).sum())
    return -10 * math.log10(error / len(pictures))
