"""One resumable training loop, shared by every stage of the pocket recipe.

The batch of step i is a function of (seed, stage, i) alone, so a run that was killed goes on from its last
checkpoint exactly where it was: there is no random state to save.
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .optimiser import Optimiser

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: `steps` of `batch`, or as many as there is time for in `minutes`; the rate rises
    over `warmup` steps, stays, and falls to zero over the last `decay` share."""

    steps: int
    batch: int
    lr: float
    warmup: int = 100
    decay: float = 0.4
    weight_decay: float = 0.01
    minutes: float = math.inf

    def share(self, step: int, seconds: float = 0.0) -> float:
        """How much of it is done, 1 at the end."""
        return max(step / self.steps, seconds / 60 / self.minutes) if self.steps else 1.0

    def rate(self, step: int, seconds: float = 0.0) -> float:
        rise = (step + 1) / max(self.warmup, 1)
        fall = (1 - self.share(step, seconds)) / max(self.decay, 1 / max(self.steps, 1))
        return self.lr * min(1.0, rise, fall)


class OutOfTime(Exception):
    """The time given to a sitting is over, and the checkpoint is written."""


@dataclass(frozen=True)
class Workshop:
    """Where and on what the recipe runs; deadline: when a sitting ends, on the clock of `time.monotonic`."""

    folder: Path
    device: torch.device
    seed: int
    checkpoint_seconds: float = 120.0
    deadline: float = math.inf
    compiled: bool = False

    def generator(self, stage: str, step: int) -> torch.Generator:
        """A CPU generator for one step of one stage."""
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{stage}/{step}".encode()))

    def check(self, where: str) -> None:
        """Raises OutOfTime where the sitting is over; what was finished is kept."""
        if time.monotonic() > self.deadline:
            raise OutOfTime(where)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)

    def ready(self, model: Model) -> Model:
        """The model on the device, its convolutions in the order of memory that tensor cores want."""
        if self.device.type == "cpu":  # where that order gains nothing
            return model.to(self.device)
        return model.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, model: nn.Module) -> Callable[..., Any]:
        """What to call in the place of `model`: itself, or compiled. Its weights keep their names."""
        return torch.compile(model) if self.compiled else model

    def rows(self, data: Tensor, rows: Tensor) -> Tensor:
        """data[rows] on the device, wherever the data lies."""
        return data[rows.to(data.device)].to(self.device)


def fit(
    stage: str,
    model: nn.Module,
    loss_at: Callable[[int, torch.Generator], Tensor],
    schedule: Schedule,
    shop: Workshop,
    ema_decay: float = 0.0,
    slower: dict[str, float] | None = None,
) -> dict[str, float]:
    """Trains `model` in place; `loss_at(step, generator)` gives the loss of one batch.

    With `ema_decay` > 0 the model ends as the exponential moving average of its weights. `slower` maps a
    name prefix to a factor on the rate. Returns {"seconds", "loss"} over all sittings of this stage; raises
    OutOfTime, its checkpoint written, where the sitting's time is over before.
    """
    path = shop.folder / f"{stage}.checkpoint.safetensors"
    run = Run(model, Optimiser(trained(model), schedule.lr, schedule.weight_decay, slower or {}), ema_decay)
    run.restore(path)
    began, before, last_save = time.monotonic(), run.seconds, time.monotonic()
    start = run.step
    model.train()
    while schedule.share(run.step, run.seconds) < 1:
        loss = loss_at(run.step, shop.generator(stage, run.step))
        loss.backward()
        run.advance(loss.detach(), schedule.rate(run.step, run.seconds))
        now = time.monotonic()
        run.seconds = before + now - began
        done = schedule.share(run.step, run.seconds)
        if now - last_save > shop.checkpoint_seconds or done >= 1 or now > shop.deadline:
            run.save(path)
            last_save, left = (
                now,
                (now - began) * (1 - done) / max(done - schedule.share(start, before), 1e-9),
            )
            pace = (now - began) / (run.step - start)
            print(
                f"{stage} {run.step}/{schedule.steps} loss {float(run.loss):.4f}, {pace:.3g} s/step,"
                f" {left / 60:.0f} min left",
                flush=True,
            )
        if done < 1 and now > shop.deadline:
            raise OutOfTime(f"{stage}: step {run.step} of {schedule.steps}")
    run.average()
    model.eval()
    return {"seconds": run.seconds, "loss": float(run.loss), "steps": run.step}


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class Run:
    """A model in training: its optimiser, the moving average of its weights, and how far it is."""

    def __init__(self, model: nn.Module, optimiser: Optimiser, ema_decay: float):
        self.model, self.optimiser, self.ema_decay = model, optimiser, ema_decay
        self.params = trained(model)
        self.shadow = {name: p.detach().clone() for name, p in self.params.items()} if ema_decay else {}
        self.step, self.seconds, self.loss = 0, 0.0, torch.zeros(())

    def advance(self, loss: Tensor, rate: float) -> None:
        """One step along the gradients that are there; `loss` joins a moving average, on its device."""
        torch.nn.utils.clip_grad_norm_(self.params.values(), 1.0)
        self.optimiser.step(rate)
        self.step += 1
        self.loss = loss if self.step == 1 else torch.lerp(self.loss.to(loss), loss, 0.01)
        if self.shadow:  # a short memory at first, so that the random start is forgotten
            decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
            now = [p.detach() for p in self.params.values()]
            torch._foreach_lerp_(list(self.shadow.values()), now, 1 - decay)

    def average(self) -> None:
        """The model's weights become their moving average."""
        for name, average in self.shadow.items():
            self.params[name].data.copy_(average)

    def save(self, path: Path) -> None:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"optimiser.{k}": v for k, v in self.optimiser.tensors().items()}
        tensors |= {f"ema.{k}": v for k, v in self.shadow.items()}
        write_tensors(path, tensors, {"step": self.step, "seconds": self.seconds, "loss": float(self.loss)})

    def restore(self, path: Path) -> None:
        if not path.exists():
            return
        tensors, about = read_tensors(path)
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        self.optimiser.load({k[10:]: v for k, v in tensors.items() if k.startswith("optimiser.")})
        for name in self.shadow:
            self.shadow[name].copy_(tensors[f"ema.{name}"])
        self.step, self.seconds = int(about["step"]), float(about["seconds"])
        self.loss = torch.tensor(about["loss"])


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, object]) -> None:
    """Atomic: a kill while writing leaves the former file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part, {"about": json.dumps(about)}
    )
    part.replace(path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    with safe_open(path, "pt") as f:
        return {k: f.get_tensor(k) for k in f.keys()}, json.loads(f.metadata()["about"])  # noqa: SIM118
