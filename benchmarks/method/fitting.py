"""The one training loop: every method sees the same pictures, noise and timesteps at the same step.

What keeps the class where a method acts on every prompt, prior preservation, is its course's (see `Course`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atomdiff.base.stable_diffusion import Base
from atomdiff.training.batches import Sampler
from atomdiff.training.latents import LiveTable, PromptTable
from atomdiff.training.loop import TrainingData
from atomdiff.training.objective import diffusion_loss
from atomdiff.training.optimiser import rate_factor
from atomdiff.training.settings import TrainingSettings

from .protocol import CLASSIC, Course, Handle

TOOL = TrainingSettings()  # for what all methods share with the tool


@dataclass(frozen=True)
class Trained:
    """Median seconds of a step, and the last loss."""

    step_seconds: float
    loss: float


def train(
    handle: Handle,
    data: TrainingData,
    steps: int,
    batch: int,
    seed: int,
    rate: float,
    course: Course = CLASSIC,
) -> Trained:
    """Trains what the handle trains for `steps` steps of `batch` pictures, and with prior preservation of as
    many of the class.

    A loss that is no number ends it: what is there then is judged, as it would be by a user.
    """
    base, trained = handle.base, list(handle.trained.values())
    if not trained:
        return Trained(0.0, 0.0)
    table = LiveTable(data.table, base, handle.token) if handle.token else data.table  # type: ignore[arg-type]
    adam = torch.optim.AdamW(handle.groups(rate), weight_decay=TOOL.adam_weight_decay)
    rates = [group["lr"] for group in adam.param_groups]
    samplers = _samplers(base, data, seed)[: 2 if course.with_prior_preservation else 1]
    seconds, loss = [], 0.0
    for step in range(steps):
        start = _clock(base)
        for group, full in zip(adam.param_groups, rates, strict=True):
            group["lr"] = full * rate_factor(course.lr_scheduler, step, 0, steps)
        total = _loss(base, table, samplers, step * batch, batch, course.snr_gamma)
        total.backward()
        norm = nn.utils.clip_grad_norm_(trained, TOOL.max_grad_norm)
        if not norm.isfinite():
            break
        adam.step()
        adam.zero_grad()
        loss = float(total.detach())
        seconds.append(_clock(base) - start)
    return Trained(statistics.median(seconds) if seconds else 0.0, loss)


def floor_seconds(base: Base, data: TrainingData, batch: int, rounds: int = 3) -> float:
    """Median seconds of what no method avoids: forward, and the gradient of the latents, all frozen."""
    samplers = _samplers(base, data, 0)
    seconds = []
    for number in range(rounds + 1):
        start = _clock(base)
        _loss(base, data.table, samplers, number * batch, batch, 0.0, frozen=True).backward()
        seconds.append(_clock(base) - start)
    return statistics.median(seconds[1:])


def _samplers(base: Base, data: TrainingData, seed: int) -> list[Sampler]:
    times = int(base.scheduler.config.num_train_timesteps)
    caches = ((data.instance, "instance"), (data.prior, "class"))
    return [Sampler(cache, seed, name, times) for cache, name in caches if cache]


def _loss(
    base: Base,
    table: PromptTable | LiveTable,
    samplers: Sequence[Sampler],
    first: int,
    size: int,
    snr_gamma: float,
    frozen: bool = False,
) -> Tensor:
    """The loss of samples first, ..., first + size - 1."""
    parts, device = [sampler.batch(first, size) for sampler in samplers], base.device
    latents = torch.cat([part.latents for part in parts]).to(device)
    return diffusion_loss(
        base.unet,
        base.scheduler,
        latents.requires_grad_() if frozen else latents,
        table.rows([row for part in parts for row in part.prompts], device).hidden,
        None,
        torch.cat([part.noise for part in parts]).to(device),
        torch.cat([part.timesteps for part in parts]).to(device),
        instances=size,
        prior_weight=TOOL.prior_loss_weight,
        snr_gamma=snr_gamma,
    ).total


def _clock(base: Base) -> float:
    """CPU time where the CPU computes, which a busy machine leaves alone; else time, when all is done."""
    if base.device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()
