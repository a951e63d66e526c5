"""Fixed points of a base's denoising, and how far its noise prediction has moved there.

What a rate, a family of atoms or a run does to a base is measured in function space: by the change of the
predicted noise, ‖Δε̂‖ / ‖ε̂‖, at latents that the base itself meets while it denoises a prompt.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from atomdiff.base.stable_diffusion import Base, PromptEmbeds, added_conditions
from atomdiff.training.objective import signal_and_noise

TIMES = (0.8, 0.5, 0.2)  # where on the way from noise to picture, in shares of the timesteps


@dataclass(frozen=True)
class Probes:
    """n points: latents z_t with their timestep and prompt, on the base's device."""

    noisy: Tensor  # (n, c, h, w) fp32
    timesteps: Tensor  # (n,) int64
    embeds: PromptEmbeds  # of n rows
    added: dict[str, Tensor] | None  # SDXL's further conditions


@torch.no_grad()
def denoising_probes(
    base: Base, embeds: PromptEmbeds, resolution: int, count: int = 1, seed: int = 0
) -> tuple[Probes, Tensor]:
    """The points that `count` short DDIM denoisings (Song et al. 2021, η = 0) of one prompt pass through, and
    the latents that they end in, (count, c, h, w), of unit deviation like the latents of pictures.

    `embeds` is one row. The base must be as it is without a concept.
    """
    device, side = base.device, resolution // base.vae_factor
    shape = (count, base.unet.config.in_channels, side, side)
    z = torch.randn(shape, generator=Generator().manual_seed(seed)).to(device)
    total = int(base.scheduler.config.num_train_timesteps)
    visited, x = [], z
    for place, share in enumerate(TIMES):
        t = torch.full((count,), int(share * total), device=device)
        visited.append((z, t))
        point = Probes(
            z, t, repeated(embeds, count), added_conditions(base, repeated(embeds, count), resolution)
        )
        noise = noise_prediction(base, point)
        a, s = (part[:, None, None, None] for part in signal_and_noise(base.scheduler, t))
        x = (z - s * noise) / a
        x = x / x.std(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)  # a first guess is far too wide
        if place + 1 < len(TIMES):
            following = torch.full((count,), int(TIMES[place + 1] * total), device=device)
            a, s = (part[:, None, None, None] for part in signal_and_noise(base.scheduler, following))
            z = a * x + s * noise
    rows = repeated(embeds, count * len(TIMES))
    noisy, times = torch.cat([z for z, _ in visited]), torch.cat([t for _, t in visited])
    return Probes(noisy, times, rows, added_conditions(base, rows, resolution)), x


@torch.no_grad()
def noise_prediction(base: Base, probes: Probes) -> Tensor:
    """ε̂ at the probes, (n, c, h, w) fp32: what the UNet answers, or of a velocity v̂ the noise a v̂ + s z."""
    z, t, hidden = probes.noisy, probes.timesteps, probes.embeds.hidden
    answer = base.unet(z.to(hidden.dtype), t, hidden, added_cond_kwargs=probes.added, return_dict=False)[0]
    answer = answer[:, : z.shape[1]].float()
    if base.prediction_type == "epsilon":
        return answer
    a, s = (part[:, None, None, None] for part in signal_and_noise(base.scheduler, t))
    return a * answer + s * z


def relative_change(now: Tensor, before: Tensor) -> float:
    """‖now − before‖ / ‖before‖ over everything."""
    return float((now - before).norm() / before.norm().clamp(min=1e-12))


def repeated(embeds: PromptEmbeds, count: int) -> PromptEmbeds:
    """One row, `count` times."""
    hidden, pooled = embeds
    pooled = pooled if pooled is None else pooled.expand(count, -1)
    return PromptEmbeds(hidden.expand(count, -1, -1), pooled)
