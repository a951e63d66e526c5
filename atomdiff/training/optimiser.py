"""The optimiser of a run: a learning rate for each kind of trained number, its schedule, its moments as data,
and means of the trained numbers over the steps.

AdamW (Loshchilov & Hutter 2019), Prodigy, which finds the rate itself (Mishchenko & Defazio 2023), or
schedule-free AdamW (Defazio et al. 2024), whose gradients are taken at one point and whose result is a mean
of others.
"""

import contextlib
import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from atomdiff.core.inject import Attached
from atomdiff.core.layers import AtomConv2d
from atomdiff.errors import SettingsError
from atomdiff.training.settings import TrainingSettings

MOMENTS = ("step", "exp_avg", "exp_avg_sq", "s", "p0", "z")  # what the optimisers keep of a parameter
FIRST = 1e-4  # Prodigy's first guess of a rate, which only grows: its usual 1e-6 takes 100 steps to leave
FIXED = ("params", "lr", "base_lr", "betas", "foreach", "train_mode")  # of a group, what is no state
Parameters = Mapping[str, nn.Parameter]


def optimiser_for(
    settings: TrainingSettings, attached: Attached, vectors: Iterable[nn.Parameter], processes: int
) -> torch.optim.Optimizer:
    """The optimiser, in which conv atoms, linear atoms and the vectors of a learned trigger have a rate
    each; of Prodigy, which knows one rate, that of the atoms. Raises SettingsError where its package is
    missing."""
    rates = {
        "conv": settings.learning_rate,
        "linear": settings.linear_learning_rate,
        "token": settings.token_learning_rate,
    }
    groups: list[dict[str, Any]] = []
    for name, parameters in (groups_of(attached) | {"token": list(vectors)}).items():
        rate = settings.learning_rate if settings.optimizer == "prodigy" else rates[name]
        scaled = (rate or 0.0) * _scale(settings, processes)
        if parameters:
            groups.append({"params": parameters, "base_lr": scaled, "lr": scaled})
    return _made(settings, groups)


def groups_of(attached: Attached) -> dict[str, list[nn.Parameter]]:
    """What has one rate each: "conv" and "linear" atoms, where there are any; what layers share only once."""
    found: dict[str, dict[nn.Parameter, None]] = {"conv": {}, "linear": {}}
    for layer in attached.layers.values():
        kind = found["conv" if isinstance(layer, AtomConv2d) else "linear"]
        kind |= dict.fromkeys(layer.family.trained().values())
    return {name: list(parameters) for name, parameters in found.items() if parameters}


def _made(settings: TrainingSettings, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    options: dict[str, Any] = {
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_epsilon,
        "weight_decay": settings.adam_weight_decay,
    }
    try:
        if settings.optimizer == "prodigy":
            from prodigyopt import Prodigy

            with contextlib.redirect_stdout(io.StringIO()):  # it prints how it decays
                return Prodigy(groups, **options, use_bias_correction=True, safeguard_warmup=True, d0=FIRST)
        if settings.optimizer == "schedulefree":
            from schedulefree import AdamWScheduleFree

            found = AdamWScheduleFree(groups, **options)
            found.train()
            return found
    except ImportError:
        package = {"prodigy": "prodigyopt"}.get(settings.optimizer, settings.optimizer)
        raise SettingsError(
            f"--optimizer {settings.optimizer} needs the package {package}, which is not installed; install "
            "atomdiff[optimizers] or drop the flag."
        ) from None
    return torch.optim.AdamW(groups, **options)


def _scale(settings: TrainingSettings, processes: int) -> float:
    if not settings.scale_lr:
        return 1.0
    return float((settings.train_batch_size or 1) * settings.gradient_accumulation_steps * processes)


def set_rates(
    optimiser: torch.optim.Optimizer, settings: TrainingSettings, step: int, total: int, pace: float = 1.0
) -> float:
    """Give every group its rate for step `step` (from 0) of `total`, times `pace`; returns that of the first
    group, times what Prodigy has found."""
    schedule = settings.lr_scheduler if settings.optimizer != "schedulefree" else "constant_with_warmup"
    factor = pace * rate_factor(
        schedule, step, settings.lr_warmup_steps, total, settings.lr_num_cycles, settings.lr_power
    )
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor
    first = optimiser.param_groups[0]
    return float(first["lr"] * first.get("d", 1.0))


def rate_factor(
    schedule: str, step: int, warmup: int, total: int, cycles: int = 3, power: float = 2.0
) -> float:
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
        return 0.0 if done >= 1.0 else 0.5 * (1.0 + math.cos(math.pi * (cycles * done % 1.0)))
    return float((1.0 - min(1.0, done)) ** power)  # polynomial


def moments_of(optimiser: torch.optim.Optimizer, trained: Parameters) -> dict[str, Tensor]:
    """Copies of the optimiser's state: MOMENT/NAME of the parameters, group/NUMBER/NAME of the groups."""
    found = {
        f"{key}/{name}": value.detach().clone() if isinstance(value, Tensor) else torch.tensor(value)
        for name, parameter in trained.items()
        for key, value in optimiser.state.get(parameter, {}).items()
    }
    for number, group in enumerate(optimiser.param_groups):
        for key in _group_state(group):
            found[f"group/{number}/{key}"] = torch.tensor(group[key], dtype=torch.float64)
    return found


def set_moments(optimiser: torch.optim.Optimizer, trained: Parameters, saved: Mapping[str, Tensor]) -> None:
    """Inverse of `moments_of`; a parameter of which nothing was saved keeps what it has."""
    for name, parameter in trained.items():
        found = {key: saved[f"{key}/{name}"].clone() for key in MOMENTS if f"{key}/{name}" in saved}
        if found:
            optimiser.state[parameter] = {key: _moment(key, value, parameter) for key, value in found.items()}
    for number, group in enumerate(optimiser.param_groups):
        for key in _group_state(group):
            if f"group/{number}/{key}" in saved:
                group[key] = type(group[key])(saved[f"group/{number}/{key}"].item())


def _moment(key: str, value: Tensor, parameter: nn.Parameter) -> Tensor | int:
    """AdamW counts steps in a tensor on the CPU, Prodigy in an int."""
    if key == "step":
        return value if value.is_floating_point() else int(value)
    return value.to(parameter.device)


def _group_state(group: Mapping[str, Any]) -> list[str]:
    """What changes of a group of Prodigy's or of schedule-free AdamW; of AdamW nothing."""
    if "k" not in group:
        return []
    return [key for key, value in group.items() if key not in FIXED and type(value) in (int, float)]


def schedule_free_mean(optimiser: torch.optim.Optimizer, trained: Parameters) -> dict[str, Tensor]:
    """x of schedule-free AdamW, its result, from y, where gradients are taken, and z: y = β x + (1 - β) z.
    Of other optimisers nothing."""
    found = {}
    for group in optimiser.param_groups:
        own = {id(parameter) for parameter in group["params"]}
        for name, y in trained.items():
            z = optimiser.state.get(y, {}).get("z")
            if z is not None and id(y) in own:
                found[name] = torch.lerp(y.detach(), z, 1 - 1 / group["betas"][0])
    return found


class Mean:
    """A mean of the trained numbers over steps of a run; those that a run went back on count no more. `means`
    is empty before the first of them. Subclasses say how a step counts."""

    def __init__(self) -> None:
        self.counted = 0  # n, steps that have counted
        self.means: dict[str, Tensor] = {}

    def count(self, trained: Parameters, done: int) -> None:
        """Take in the numbers as they are after `done` steps."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """A copy, as `restore` takes it."""
        kept = {f"mean/{name}": mean.clone() for name, mean in self.means.items()}
        return kept | ({"counted": torch.tensor(self.counted)} if kept else {})

    def restore(self, tensors: Mapping[str, Tensor], trained: Parameters) -> None:
        """Inverse of `tensors`."""
        self.counted = int(tensors.get("counted", 0))
        self.means = {
            name: tensors[f"mean/{name}"].to(parameter.device, copy=True)
            for name, parameter in trained.items()
            if f"mean/{name}" in tensors
        }


class MovingMean(Mean):
    """The exponential moving average of the trained numbers, m <- d m + (1 - d) p, where the decay d rises to
    `decay` as diffusers' does: d_n = min(decay, (1 + n) / (10 + n)), n steps done."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay

    @torch.no_grad()
    def count(self, trained: Parameters, done: int) -> None:
        """Take in the numbers as they are after `done` steps."""
        if not self.means:
            self.means = {name: parameter.detach().clone() for name, parameter in trained.items()}
            return
        decay = min(self.decay, (1 + done) / (10 + done))
        for name, parameter in trained.items():
            self.means[name].lerp_(parameter, 1 - decay)


class LastMean(Mean):
    """The mean of the trained numbers over the last steps of a run:

        mean_n = mean_(n-1) + (p - mean_(n-1)) / n,    n = 1 ... round(share · total)

    Where `share` is 0 there is none.
    """

    def __init__(self, share: float, total: int) -> None:
        super().__init__()
        count = max(1, round(share * total)) if share else 0
        self.before = total - count  # steps that do not count

    @torch.no_grad()
    def count(self, trained: Parameters, done: int) -> None:
        """Take in the numbers as they are after `done` steps."""
        if done <= self.before:
            return
        self.counted += 1
        for name, parameter in trained.items():
            if self.counted == 1:
                self.means[name] = parameter.detach().clone()
            else:
                self.means[name] += (parameter - self.means[name]) / self.counted
