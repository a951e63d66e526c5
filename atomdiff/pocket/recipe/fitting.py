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
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .optimiser import Optimiser

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: `steps` of `batch`; the rate rises over `warmup` steps, stays, and falls
    to zero over the last `decay` share of the steps."""

    steps: int
    batch: int
    lr: float
    warmup: int = 100
    decay: float = 0.4
    weight_decay: float = 0.01

    def rate(self, step: int) -> float:
        rise = (step + 1) / max(self.warmup, 1)
        fall = (self.steps - step) / max(self.decay * self.steps, 1)
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
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimiser = Optimiser(params, schedule.lr, schedule.weight_decay, slower or {})
    shadow = {name: p.detach().clone() for name, p in params.items()} if ema_decay else {}
    path = shop.folder / f"{stage}.checkpoint.safetensors"
    step, seconds, smooth = _restore(path, model, optimiser, params, shadow)
    start, last_save, sitting = step, time.monotonic(), time.monotonic()
    model.train()
    columns = (
        TextColumn(f"[bold]{stage:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, refresh_per_second=0.5) as bar:
        task = bar.add_task(stage, total=schedule.steps, completed=step, loss=smooth)
        while step < schedule.steps:
            loss = loss_at(step, shop.generator(stage, step))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
            optimiser.step(schedule.rate(step))
            step += 1
            value = float(loss.detach())
            smooth = value if step == 1 else 0.99 * smooth + 0.01 * value
            if shadow:  # a short memory at first, so that the random start is forgotten
                decay = min(ema_decay, (1 + step) / (10 + step))
                torch._foreach_lerp_(list(shadow.values()), [p.detach() for p in params.values()], 1 - decay)
            bar.update(task, completed=step, loss=smooth)
            now = time.monotonic()
            over = now > shop.deadline and step < schedule.steps
            if now - last_save > shop.checkpoint_seconds or step == schedule.steps or over:
                _save(path, model, optimiser, params, shadow, step, seconds + now - sitting, smooth)
                last_save = now
                if not bar.console.is_terminal:  # a log file: a line now and then instead of a bar
                    pace = (now - sitting) / (step - start)
                    left = pace * (schedule.steps - step) / 60
                    print(
                        f"{stage} {step}/{schedule.steps} loss {smooth:.4f}, {pace:.2f} s/step,"
                        f" {left:.0f} min left",
                        flush=True,
                    )
            if over:
                raise OutOfTime(f"{stage}: step {step} of {schedule.steps}")
    for name, average in shadow.items():
        params[name].data.copy_(average)
    model.eval()
    return {"seconds": seconds + time.monotonic() - sitting, "loss": smooth, "steps": step}


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


def _save(path, model, optimiser, params, shadow, step, seconds, loss) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"optimiser.{k}": v for k, v in optimiser.tensors().items()}
    tensors |= {f"ema.{k}": v for k, v in shadow.items()}
    write_tensors(path, tensors, {"step": step, "seconds": seconds, "loss": loss})


def _restore(path, model, optimiser, params, shadow) -> tuple[int, float, float]:
    if not path.exists():
        return 0, 0.0, 0.0
    tensors, about = read_tensors(path)
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    optimiser.load({k[10:]: v for k, v in tensors.items() if k.startswith("optimiser.")})
    for name in shadow:
        shadow[name].copy_(tensors[f"ema.{name}"])
    return int(about["step"]), float(about["seconds"]), float(about["loss"])
