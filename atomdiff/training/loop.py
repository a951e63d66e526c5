"""The training loop: one optimiser step after another, each yielded as a record.

Every process holds the whole (frozen) model and the same atoms. Instead of wrapping the model, the few
KB of atom gradients are averaged over the processes here, in the one exchange of a step, together with
the losses and the wish to stop; so all processes take the same decisions at the same step.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from atomdiff.errors import Interrupted, TrainingError
from atomdiff.training.checkpoint import Checkpoint, save_checkpoint
from atomdiff.training.exchange import averaged
from atomdiff.training.forward import Forward, TrainingData
from atomdiff.training.memory import relief
from atomdiff.training.monitor import Brake
from atomdiff.training.optimiser import set_rates
from atomdiff.training.reporting import StepRecord
from atomdiff.training.settings import TrainingSettings
from atomdiff.training.trained import Trained

if TYPE_CHECKING:
    from PIL.Image import Image

    from atomdiff.base.stable_diffusion import Base

# What may differ when a run goes on that broke down: the very settings that can mend it.
MAY_CHANGE = [
    "learning_rate", "linear_learning_rate", "token_learning_rate", "match_lora_rate", "max_grad_norm",
    "max_drift", "mixed_precision",
]  # fmt: skip


class Run:
    """A run in progress: the atoms in the base's UNet, their optimiser, and how many steps are done.

    `state` is stored with every checkpoint. `close` takes the atoms out of the UNet again. The
    settings must be complete (see `settings`). Raises AtomdiffError where the spec does not fit the UNet.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        base: "Base",
        data: TrainingData,
        accelerator: Any,
        state: dict[str, Any],
        decomposing: Callable[[int, int], None],
    ) -> None:
        self.settings, self.base, self.data, self.accelerator = settings, base, data, accelerator
        self.state = state
        self.done = 0
        self.trained = Trained(settings, base.unet, data.token, accelerator.num_processes, decomposing)
        _training_mode(base.unet, settings)
        self._optimiser = accelerator.prepare_optimizer(self.trained.optimiser)
        self._forward = Forward(settings, base, data, self.trained.attached, accelerator)
        self._good: Checkpoint | None = None  # the last state that is known to give a finite loss
        self._brake = Brake(settings.max_drift, self.trained.tensors())

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return int(self.settings.max_train_steps or 0)

    def close(self) -> None:
        """Give the UNet back as it was."""
        if self.settings.gradient_checkpointing:
            self.base.unet.disable_gradient_checkpointing()
        self.base.unet.eval()
        self.trained.attached.detach()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Within, between two steps: the base as anyone may draw with it. Afterwards the run goes on as if
        nothing had been."""
        self.base.unet.eval()
        self.trained.attached.detach()
        try:
            yield
        finally:
            self.trained.attached.reattach()
            _training_mode(self.base.unet, self.settings)

    # ---------------------------------------------------------------------------------------- stepping

    def steps(
        self,
        folder: Path,
        stop: Callable[[], bool] = lambda: False,
        validate: "Callable[[int], tuple[Image, ...]] | None" = None,
    ) -> Iterator[StepRecord]:
        """Train to the end, yielding each step; states go to `folder`.

        Where `stop` answers True, on any process, the state is saved and Interrupted raised after the
        step. Raises TrainingError at a loss that is not finite, having saved the last good state, and
        when a state cannot be written.
        """
        settings = self.settings
        while self.done < self.total and not self._brake.spent:
            record, stopping = self._step(folder, stop)
            last = self.done == self.total or self._brake.spent
            record = replace(record, last=last or stopping)
            every = settings.checkpointing_steps
            if stopping or (every and (last or self.done % every == 0)):
                record = replace(record, saved=self.save(folder))
            if validate and (last or self.done % settings.validation_steps == 0):
                record = replace(record, pictures=self._pictures(validate))
            yield record
            if stopping and not last:
                raise Interrupted(
                    f"Stopped after step {self.done} of {self.total}; nothing is lost. Go on with the same "
                    "command and --resume_from_checkpoint latest."
                )

    def _step(self, folder: Path, stop: Callable[[], bool]) -> tuple[StepRecord, bool]:
        start, settings = time.perf_counter(), self.settings
        rate = set_rates(self.trained.optimiser, settings, self.done, self.total, self._brake.pace)
        try:
            instance, prior = self._backward()
            finish = getattr(self.base.unet, "finish_backward", None)  # of trainings in one batch
            if finish:
                finish()
        except torch.OutOfMemoryError:
            self._out_of_memory(folder)
        parameters = self.trained.parameters().values()
        instance, prior, wish = averaged(parameters, [instance, prior, float(stop())], self.accelerator)
        loss = instance + settings.prior_loss_weight * prior
        self.accelerator.unscale_gradients(self._optimiser)
        norm = float(nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm or math.inf))
        overflow = self.accelerator.scaler is not None and not math.isfinite(norm)
        if not math.isfinite(loss) or (not math.isfinite(norm) and not overflow):
            self._fail(folder, loss)
        self._good = self.snapshot()
        self._optimiser.step()
        self._optimiser.zero_grad()
        self.done += 1
        self.trained.count(self.done)
        drift = self._look_at_class()
        seconds = time.perf_counter() - start
        return StepRecord(
            self.done, self.total, loss, instance, prior, rate, norm, seconds, overflow, drift=drift
        ), wish > 0

    def _backward(self) -> tuple[float, float]:
        """The gradients of all accumulation turns; returns the instance and the prior loss."""
        instance, prior, turns = 0.0, 0.0, self.settings.gradient_accumulation_steps
        for turn in range(turns):
            for losses in self._forward.losses(self.done, turn):
                self.accelerator.backward(losses.total / turns)
                instance += float(losses.instance) / turns
                prior += float(losses.prior) / turns
        return instance, prior

    def _look_at_class(self) -> float | None:
        """The drift, where it is due; beyond the bound the run goes back to where it was looked at before."""
        watch, every = self.data.watch, self.settings.drift_steps
        if watch is None or not every or (self.done % every and self.done != self.total):
            return None
        (drift,) = averaged((), [watch.drift(self.base)], self.accelerator)  # all decide alike
        if self._brake.exceeded(drift):
            self.trained.restore(self._brake.held)
        else:
            self._brake.held = self.trained.tensors()
        return drift

    def _pictures(self, validate: "Callable[[int], tuple[Image, ...]]") -> "tuple[Image, ...]":
        """Validation pictures, drawn by the first process while the others wait."""
        pictures: tuple[Image, ...] = ()
        if self.accelerator.is_main_process:
            with self.aside():
                pictures = validate(self.done)
        self.accelerator.wait_for_everyone()
        return pictures

    # ------------------------------------------------------------------------------------------ states

    def snapshot(self) -> Checkpoint:
        """Everything that the rest of the run depends on, copied; random draws need none, see `batches`."""
        scaler = self.accelerator.scaler
        held = {f"held/{name}": tensor for name, tensor in self._brake.held.items()}
        state = {"scaler": scaler and scaler.state_dict(), "pace": self._brake.pace}
        return Checkpoint(self.done, self.trained.tensors() | held, self.state | state)

    def restore(self, saved: Checkpoint) -> None:
        """Continue from a snapshot of an equal run. Raises TrainingError when it holds other layers."""
        self.trained.restore(saved.tensors)
        held = {name[5:]: values for name, values in saved.tensors.items() if name.startswith("held/")}
        self._brake.held = held or self._brake.held
        self._brake.pace = float(saved.state.get("pace", 1.0))
        if self.accelerator.scaler is not None and saved.state.get("scaler"):
            self.accelerator.scaler.load_state_dict(saved.state["scaler"])
        self.done = saved.step

    def save(self, folder: Path) -> Path:
        """Write the present state; only the first process does, and all know the path."""
        return self._write(folder, self.snapshot())

    def _write(self, folder: Path, checkpoint: Checkpoint) -> Path:
        if self.accelerator.is_main_process:
            save_checkpoint(folder, checkpoint, self.settings.checkpoints_total_limit)
        return folder / f"checkpoint-{checkpoint.step}"

    def _write_to_mend(self, folder: Path, checkpoint: Checkpoint) -> Path:
        """The same, to go on from with settings that mend what broke."""
        return self._write(folder, replace(checkpoint, state=checkpoint.state | {"may_change": MAY_CHANGE}))

    def _out_of_memory(self, folder: Path) -> NoReturn:
        """Keep the state before the step that did not fit, and say what would make room."""
        self._optimiser.zero_grad()
        kept = ""
        if self.done:
            path = self._write_to_mend(folder, self.snapshot())
            kept = f" The state before it is kept in '{path}'; --resume_from_checkpoint latest goes on."
        raise TrainingError(
            f"The GPU's memory is too small for step {self.done + 1}; {relief(self.settings)}.{kept}"
        ) from None

    def _fail(self, folder: Path, loss: float) -> NoReturn:
        """Stop at a broken loss, and go back to the atoms before the update that led to it."""
        what = "loss" if not math.isfinite(loss) else "gradient"
        number = self.done + 1
        if self._good is None:
            raise TrainingError(
                f"The {what} of the first step is not a number, so the base cannot be trained like this; "
                f"try --mixed_precision no (now {self.settings.mixed_precision}) or another base."
            )
        kept = self._write_to_mend(folder, self._good)
        self.restore(self._good)
        raise TrainingError(
            f"The {what} became not a number at step {number}; the last good state is kept in "
            f"'{kept}'. Lower --learning_rate (now {self.settings.learning_rate:g}, of linear atoms "
            f"{self.settings.linear_learning_rate:g}), or change --mixed_precision, and go on with "
            "--resume_from_checkpoint latest."
        )


def _training_mode(unet: nn.Module, settings: TrainingSettings) -> None:
    """Training mode, which gradient checkpointing needs, without dropout, whose draws are not seeded."""
    unet.train()
    for module in unet.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    if settings.gradient_checkpointing:
        unet.enable_gradient_checkpointing()  # type: ignore[operator]
