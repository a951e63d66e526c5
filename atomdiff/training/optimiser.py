"""The optimiser of a run: a learning rate for each kind of trained number, its schedule, its moments as data,
and the mean over the last steps."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from atomdiff.core.inject import Attached
from atomdiff.core.layers import AtomConv2d
from atomdiff.training.settings import TrainingSettings

RESTARTS = 3  # cosine periods of "cosine_with_restarts"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter
Parameters = Mapping[str, nn.Parameter]


def adam_for(
    settings: TrainingSettings, attached: Attached, vectors: Iterable[nn.Parameter], processes: int
) -> torch.optim.AdamW:
    """AdamW in which conv atoms, linear atoms and the vectors of a learned trigger have a rate each."""
    conv: dict[nn.Parameter, None] = {}  # in order, and once where layers share one
    linear: dict[nn.Parameter, None] = {}
    for layer in attached.layers.values():
        kind = conv if isinstance(layer, AtomConv2d) else linear
        kind |= dict.fromkeys(layer.family.trained().values())
    scale = _scale(settings, processes)
    rates = (
        settings.learning_rate or 0.0,
        settings.linear_learning_rate or 0.0,
        settings.token_learning_rate or 0.0,
    )
    groups: list[dict[str, Any]] = [
        {"params": parameters, "base_lr": rate * scale, "lr": rate * scale}
        for parameters, rate in zip((list(conv), list(linear), list(vectors)), rates, strict=True)
        if parameters
    ]
    return torch.optim.AdamW(
        groups,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        weight_decay=settings.adam_weight_decay,
    )


def _scale(settings: TrainingSettings, processes: int) -> float:
    if not settings.scale_lr:
        return 1.0
    return float((settings.train_batch_size or 1) * settings.gradient_accumulation_steps * processes)


def set_rates(adam: torch.optim.AdamW, settings: TrainingSettings, step: int, total: int) -> float:
    """Give every group its rate for step `step` (from 0) of `total`; returns that of the first group."""
    factor = rate_factor(settings.lr_scheduler, step, settings.lr_warmup_steps, total)
    for group in adam.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(adam.param_groups[0]["lr"])


def rate_factor(schedule: str, step: int, warmup: int, total: int) -> float:
    """What the learning rate of step `step` (from 0) of `total` is multiplied by.

    A pure function, so that resuming is exact. As in diffusers, the rate rises over `warmup` steps in
    every schedule but "constant".
    """
    if schedule == "constant":
        return 1.0
    if step < warmup:
        return step / warmup
    done = (step - warmup) / max(1, total - warmup)
    if schedule == "constant_with_warmup":
        return 1.0
    if schedule == "linear":
        return max(0.0, 1.0 - done)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    if schedule == "cosine_with_restarts":
        return 0.0 if done >= 1.0 else 0.5 * (1.0 + math.cos(math.pi * (RESTARTS * done % 1.0)))
    return (1.0 - min(1.0, done)) ** 2  # polynomial


def moments_of(adam: torch.optim.AdamW, trained: Parameters) -> dict[str, Tensor]:
    """Copies of the optimiser's state as MOMENT/NAME."""
    return {
        f"{key}/{name}": value.detach().clone()
        for name, parameter in trained.items()
        for key, value in adam.state.get(parameter, {}).items()
    }


def set_moments(adam: torch.optim.AdamW, trained: Parameters, saved: Mapping[str, Tensor]) -> None:
    """Inverse of `moments_of`; a parameter of which nothing was saved keeps what it has."""
    for name, parameter in trained.items():
        found = {key: saved[f"{key}/{name}"].clone() for key in MOMENTS if f"{key}/{name}" in saved}
        if found:
            adam.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in found.items()
            }


class LastMean:
    """The mean of the trained numbers over the last steps of a run:

        mean_n = mean_(n-1) + (p - mean_(n-1)) / n,    n = 1 ... round(share · total)

    Which step is the n-th follows from its number, so resuming needs the means alone. `means` is empty before
    the first of those steps, and always where `share` is 0.
    """

    def __init__(self, share: float, total: int) -> None:
        count = max(1, round(share * total)) if share else 0
        self.before = total - count  # steps that do not count
        self.means: dict[str, Tensor] = {}

    @torch.no_grad()
    def count(self, trained: Parameters, done: int) -> None:
        """Take in the numbers as they are after `done` steps."""
        n = done - self.before
        if n == 1:
            self.means = {name: parameter.detach().clone() for name, parameter in trained.items()}
        elif n > 1:
            for name, parameter in trained.items():
                self.means[name] += (parameter - self.means[name]) / n
