"""The DreamBooth objective: noise (or velocity) prediction with prior preservation and min-SNR weights.

A batch holds the instance samples first and, with prior preservation, class samples after them:

    L = mean_i w(t_i) ||f(z_i, t_i, c_i) - y_i||² + λ mean_j w(t_j) ||f(z_j, t_j, c_j) - f₀(z_j, t_j, c_j)||²

with z = a_t x + s_t ε, y = ε (epsilon prediction) or a_t ε - s_t x (velocity, Salimans & Ho 2022), and
w(t) = min(SNR, γ) / SNR for ε or min(SNR, γ) / (SNR + 1) for velocity, SNR = a_t² / s_t² (Hang et al. 2023);
without γ, w = 1. In the prior term of Ruiz et al. 2023 the target is y_j, of pictures that the base f₀ drew;
the mean of that over noise is f₀'s own answer, which is at hand and has no noise of its own (distillation, as
Li & Hoiem 2016): fewer class samples do, and any latents and prompts can be among them. Where a picture has a
mask, ||e||² is the mean weighted by it, Σ m e² / Σ m.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Losses(NamedTuple):
    """Scalars of one batch; `total` carries the gradient."""

    total: Tensor
    instance: Tensor
    prior: Tensor  # zero without prior preservation


def signal_and_noise(scheduler: Any, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """a_t and s_t, fp32, of shape (b,), on the device of `timesteps`: z_t = a_t x + s_t ε."""
    kept = scheduler.alphas_cumprod.to(timesteps.device, torch.float32)[timesteps]
    return kept.sqrt(), (1 - kept).sqrt()


def target(prediction_type: str, x: Tensor, noise: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """What the UNet should answer, (b, c, h, w); ValueError for a prediction type unknown to SD."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return a * noise - s * x
    if prediction_type == "sample":
        return x
    raise ValueError(f"unknown prediction type {prediction_type!r}: expected epsilon, v_prediction or sample")


def snr_weights(prediction_type: str, a: Tensor, s: Tensor, gamma: float | None) -> Tensor:
    """Weight of each sample's squared error, (b,). `gamma` None or 0 leaves every timestep equal."""
    if not gamma:
        return torch.ones_like(a)
    snr = a.square() / s.square()
    clipped = snr.clamp(max=gamma)
    if prediction_type == "v_prediction":
        return clipped / (snr + 1)
    if prediction_type == "sample":
        return clipped
    return clipped / snr.clamp(min=1e-12)  # a schedule that ends in pure noise has SNR 0 at its last step


def diffusion_loss(
    unet: Any,
    scheduler: Any,
    latents: Tensor,
    embeds: Tensor,
    added: dict[str, Tensor] | None,
    noise: Tensor,
    timesteps: Tensor,
    *,
    instances: int,
    of: tuple[int, int] | None = None,
    weights: Tensor | None = None,
    prior_weight: float = 0.0,
    snr_gamma: float | None = None,
    base_answer: Callable[..., Any] | None = None,
) -> Losses:
    """Loss of one batch; the errors are averaged in fp32 whatever the UNet's dtype.

    latents, noise: (b, c, h, w) fp32; embeds: (b, tokens, d); timesteps: (b,) int64; `added` is SDXL's size
    and pooled-text conditioning. The first `instances` samples are the subject, the rest the class.
    `base_answer` is f₀, called as the UNet is; without it the class samples' target is as the others'.
    """
    kind = scheduler.config.prediction_type
    a, s = signal_and_noise(scheduler, timesteps)
    a4, s4 = a[:, None, None, None], s[:, None, None, None]
    noisy = (a4 * latents + s4 * noise).to(embeds.dtype)
    channels = latents.shape[1]
    answer = unet(noisy, timesteps, embeds, added_cond_kwargs=added or None, return_dict=False)[0]
    answer = answer[:, :channels]  # a UNet may predict the variance too: only the mean is trained
    wanted = target(kind, latents, noise, a4, s4)
    if base_answer and len(latents) > instances:
        rest = {key: value[instances:] for key, value in (added or {}).items()}
        inputs = noisy[instances:], timesteps[instances:], embeds[instances:]
        kept = base_answer(*inputs, added_cond_kwargs=rest or None, return_dict=False)[0]
        wanted = torch.cat([wanted[:instances], kept[:, :channels].to(wanted)])
    errors = _mean_square(answer.float() - wanted, weights) * snr_weights(kind, a, s, snr_gamma)
    subjects, others = of or (instances, len(errors) - instances)
    instance = errors[:instances].sum() / max(1, subjects)
    prior = errors[instances:].sum() / max(1, others)
    return Losses(instance + prior_weight * prior, instance.detach(), prior.detach())


def _mean_square(error: Tensor, weights: Tensor | None) -> Tensor:
    """Mean square of each sample of (b, c, h, w), (b,): plain, or weighted by (b, 1, h, w)."""
    square = error.square()
    if weights is None:
        return square.mean(dim=(1, 2, 3))
    return (square.mean(dim=1, keepdim=True) * weights).sum(dim=(1, 2, 3)) / weights.sum(dim=(1, 2, 3))
