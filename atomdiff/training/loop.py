"""The training loop: one optimiser step after another, each yielded as a record.

Every process holds the whole (frozen) model and the same atoms. Instead of wrapping the model, the few
KB of atom gradients are averaged over the processes here, in the one exchange of a step, together with
the losses and the wish to stop; so all processes take the same decisions at the same step.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from atomdiff.base.stable_diffusion import added_conditions
from atomdiff.core.inject import Attached, attach
from atomdiff.errors import Interrupted, TrainingError
from atomdiff.training.batches import Batch, Sampler, by_shape, sample_number
from atomdiff.training.checkpoint import Checkpoint, save_checkpoint
from atomdiff.training.defaults import spec_of
from atomdiff.training.latents import LatentCache, LiveTable, PromptTable
from atomdiff.training.memory import relief
from atomdiff.training.monitor import Brake, Watch
from atomdiff.training.objective import Losses, diffusion_loss
from atomdiff.training.optimiser import (
    LastMean,
    MovingMean,
    moments_of,
    optimiser_for,
    schedule_free_mean,
    set_moments,
    set_rates,
)
from atomdiff.training.reporting import StepRecord
from atomdiff.training.settings import TrainingSettings

if TYPE_CHECKING:
    from PIL.Image import Image

    from atomdiff.base.stable_diffusion import Base
    from atomdiff.base.textual_inversion import TriggerToken


# What may differ when a run goes on that broke down: the very settings that can mend it.
MAY_CHANGE = [
    "learning_rate", "linear_learning_rate", "token_learning_rate", "match_lora_rate", "max_grad_norm",
    "max_drift", "mixed_precision",
]  # fmt: skip


@dataclass(frozen=True)
class TrainingData:
    """What the loop trains on. `prior` is None without prior preservation."""

    instance: LatentCache
    prior: LatentCache | None
    table: PromptTable | LiveTable
    token: "TriggerToken | None" = None
    watch: Watch | None = None  # on the class, None where nothing can change it


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
        state: dict[str, Any] | None = None,
        decomposing: Callable[[int, int], None] | None = None,
    ) -> None:
        self.settings, self.base, self.data, self.accelerator = settings, base, data, accelerator
        self.state = state or {}
        self.done = 0
        self.attached: Attached = attach(
            base.unet, spec_of(settings), seed=settings.seed, progress=decomposing or _unheard
        )
        _training_mode(base.unet, settings)
        vectors = data.token.vectors.values() if data.token else ()
        self._adam = optimiser_for(settings, self.attached, vectors, accelerator.num_processes)
        decay, share = settings.ema_decay, settings.average_last
        self._mean = MovingMean(decay) if decay else LastMean(share, self.total)
        self._optimizer = accelerator.prepare_optimizer(self._adam)
        steps, offset = int(base.scheduler.config.num_train_timesteps), settings.noise_offset
        self._instance = Sampler(data.instance, settings.seed, "instance", steps, offset)
        self._prior = Sampler(data.prior, settings.seed, "class", steps, offset) if data.prior else None
        self._good: Checkpoint | None = None  # the last state that is known to give a finite loss
        self._brake = Brake(settings.max_drift, self._tensors())

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return int(self.settings.max_train_steps or 0)

    def close(self) -> None:
        """Give the UNet back as it was."""
        if self.settings.gradient_checkpointing:
            self.base.unet.disable_gradient_checkpointing()
        self.base.unet.eval()
        self.attached.detach()

    @contextlib.contextmanager
    def without_atoms(self) -> Iterator[None]:
        """Within: the UNet is the plain base again, for drawing. Afterwards it has the same parameters."""
        self.attached.detach()
        try:
            yield
        finally:
            self.attached.reattach()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Within, between two steps: the base as anyone may draw with it. Afterwards the run goes on as if
        nothing had been."""
        self.base.unet.eval()
        try:
            with self.without_atoms():
                yield
        finally:
            _training_mode(self.base.unet, self.settings)

    def trained(self) -> dict[str, nn.Parameter]:
        """Every trained parameter by name: the atoms by layer, then the vectors of a learned trigger."""
        vectors = self.data.token.vectors if self.data.token else {}
        return self.attached.named_atoms() | {f"#{key}": vector for key, vector in vectors.items()}

    def read(self) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """What a concept keeps of the run as it is now, the atoms and a learned trigger, copied to the CPU:
        the present numbers, or a mean of them where the settings ask for one."""
        atoms, token = self.attached.read(), self.data.token.read() if self.data.token else None
        means = self._mean.means or schedule_free_mean(self._adam, self.trained())
        for name, mean in means.items():
            kept, key = (token, name[1:]) if token and name.startswith("#") else (atoms, name)
            kept[key] = mean.float().cpu().clone()
        return atoms, token

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
        start = time.perf_counter()
        rate = set_rates(self._adam, self.settings, self.done, self.total, self._brake.pace)
        instance, prior = 0.0, 0.0
        turns = self.settings.gradient_accumulation_steps
        try:
            for turn in range(turns):
                for losses in self._losses(turn):
                    self.accelerator.backward(losses.total / turns)
                    instance += float(losses.instance) / turns
                    prior += float(losses.prior) / turns
        except torch.OutOfMemoryError:
            self._out_of_memory(folder)
        instance, prior, wish = self._share([instance, prior, float(stop())])
        loss = instance + self.settings.prior_loss_weight * prior
        norm = self._clip()
        overflow = self.accelerator.scaler is not None and not math.isfinite(norm)
        if not math.isfinite(loss) or (not math.isfinite(norm) and not overflow):
            self._fail(folder, loss)
        self._good = self.snapshot()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.done += 1
        self._mean.count(self.trained(), self.done)
        drift = self._look_at_class()
        seconds = time.perf_counter() - start
        return StepRecord(
            self.done, self.total, loss, instance, prior, rate, norm, seconds, overflow, drift=drift
        ), wish > 0

    def _look_at_class(self) -> float | None:
        """The drift, where it is due; beyond the bound the run goes back to where it was looked at before."""
        watch, every = self.data.watch, self.settings.drift_steps
        if watch is None or not every or (self.done % every and self.done != self.total):
            return None
        drift = watch.drift(self.base)
        if self.accelerator.num_processes > 1:  # all decide alike
            shared = torch.tensor(drift, dtype=torch.float32, device=self.accelerator.device)
            drift = float(self.accelerator.reduce(shared, reduction="mean"))
        if self._brake.exceeded(drift):
            self._put_back(self._brake.held)
        else:
            self._brake.held = self._tensors()
        return drift

    def _losses(self, turn: int) -> Iterator[Losses]:
        """Forward passes of this process's share of one accumulation turn, one for pictures of each shape;
        the losses add up."""
        size = int(self.settings.train_batch_size or 1)
        first = sample_number(
            self.done,
            turn,
            self.accelerator.process_index,
            batch=size,
            turns=self.settings.gradient_accumulation_steps,
            processes=self.accelerator.num_processes,
        )
        some = int(self.settings.prior_batch_size or 1)
        prior = self._prior.samples(first // size * some, some) if self._prior else []
        for batch, instances in by_shape(self._instance.samples(first, size), prior):
            yield self._loss(batch, instances, (size, len(prior)))

    def _loss(self, batch: Batch, instances: int, of: tuple[int, int]) -> Losses:
        device, factor = self.accelerator.device, self.base.vae_factor
        height, width = batch.latents.shape[2:]
        embeds = self.data.table.rows(batch.prompts, device)
        added = added_conditions(self.base, embeds, (height * factor, width * factor))
        with self.accelerator.autocast():
            return diffusion_loss(
                self.base.unet,
                self.base.scheduler,
                batch.latents.to(device),
                embeds.hidden,
                added,
                batch.noise.to(device),
                batch.timesteps.to(device),
                instances=instances,
                of=of,
                weights=batch.weights.to(device) if batch.weights is not None else None,
                prior_weight=self.settings.prior_loss_weight,
                snr_gamma=self.settings.snr_gamma,
                base_answer=self._base_answer,
            )

    @torch.no_grad()
    def _base_answer(self, *inputs: Any, **options: Any) -> Any:
        """What the base answers, without the atoms that are trained."""
        self.attached.set_strength(0.0)
        try:
            return self.base.unet(*inputs, **options)
        finally:
            self.attached.set_strength(1.0)

    def _share(self, numbers: list[float]) -> list[float]:
        """Average the atom gradients, in place, and `numbers` over all processes."""
        finish = getattr(self.base.unet, "finish_backward", None)  # of trainings in one batch, see `together`
        if finish:
            finish()
        if self.accelerator.num_processes == 1:
            return numbers
        gradients = [_gradient(p) for p in self.trained().values()]
        extra = torch.tensor(numbers, dtype=torch.float32, device=self.accelerator.device)
        flat = torch.cat([*(g.flatten() for g in gradients), extra])
        try:
            flat = self.accelerator.reduce(flat, reduction="mean")
        except RuntimeError:  # the backends have no common error for a process that is gone
            raise TrainingError(
                "The exchange with the other processes broke off; one of them ended."
            ) from None
        parts = flat.split([g.numel() for g in gradients] + [len(numbers)])
        for gradient, part in zip(gradients, parts, strict=False):
            gradient.copy_(part.view_as(gradient))
        return [float(x) for x in parts[-1]]

    def _clip(self) -> float:
        """Undo the loss scale, clip, and return the norm before clipping."""
        self.accelerator.unscale_gradients(self._optimizer)
        limit = self.settings.max_grad_norm or math.inf
        return float(nn.utils.clip_grad_norm_(self.trained().values(), limit))

    def _pictures(self, validate: "Callable[[int], tuple[Image, ...]]") -> "tuple[Image, ...]":
        """Validation pictures, drawn by the first process while the others wait."""
        pictures: tuple[Image, ...] = ()
        if self.accelerator.is_main_process:
            self.base.unet.eval()
            pictures = validate(self.done)
            _training_mode(self.base.unet, self.settings)
        self.accelerator.wait_for_everyone()
        return pictures

    # ------------------------------------------------------------------------------------------ states

    def snapshot(self) -> Checkpoint:
        """Everything that the rest of the run depends on, copied; random draws need none, see `batches`."""
        scaler = self.accelerator.scaler
        held = {f"held/{name}": tensor for name, tensor in self._brake.held.items()}
        state = {"scaler": scaler and scaler.state_dict(), "pace": self._brake.pace}
        return Checkpoint(self.done, self._tensors() | held, self.state | state)

    def _tensors(self) -> dict[str, Tensor]:
        """What is trained, its means and its moments, copied."""
        trained = self.trained()
        tensors = {f"atoms/{name}": parameter.detach().clone() for name, parameter in trained.items()}
        return tensors | self._mean.tensors() | moments_of(self._adam, trained)

    def restore(self, saved: Checkpoint) -> None:
        """Continue from a snapshot of an equal run. Raises TrainingError when it holds other layers."""
        atoms = {name[6:]: values for name, values in saved.tensors.items() if name.startswith("atoms/")}
        own = self.trained()
        if {name: tuple(p.shape) for name, p in own.items()} != {n: tuple(t.shape) for n, t in atoms.items()}:
            raise TrainingError(
                "The saved state has atoms of other layers; resume on the base it was made on."
            )
        self._put_back(saved.tensors)
        held = {name[5:]: values for name, values in saved.tensors.items() if name.startswith("held/")}
        self._brake.held = held or self._brake.held
        self._brake.pace = float(saved.state.get("pace", 1.0))
        if self.accelerator.scaler is not None and saved.state.get("scaler"):
            self.accelerator.scaler.load_state_dict(saved.state["scaler"])
        self.done = saved.step

    @torch.no_grad()
    def _put_back(self, tensors: Mapping[str, Tensor]) -> None:
        """Give what is trained, its means and its moments the values that `_tensors` had."""
        own = self.trained()
        for name, parameter in own.items():
            parameter.copy_(tensors[f"atoms/{name}"])
        self._mean.restore(tensors, own)
        self._adam.state.clear()
        set_moments(self._adam, own, tensors)

    def save(self, folder: Path) -> Path:
        """Write the present state; only the first process does, and all know the path."""
        return self._write(folder, self.snapshot())

    def _write(self, folder: Path, checkpoint: Checkpoint) -> Path:
        if self.accelerator.is_main_process:
            save_checkpoint(folder, checkpoint, self.settings.checkpoints_total_limit)
        return folder / f"checkpoint-{checkpoint.step}"

    def _out_of_memory(self, folder: Path) -> None:
        """Keep the state before the step that did not fit, and say what would make room."""
        self._optimizer.zero_grad()
        kept = ""
        if self.done:
            path = self._write(
                folder, replace(self.snapshot(), state=self.state | {"may_change": MAY_CHANGE})
            )
            kept = f" The state before it is kept in '{path}'; --resume_from_checkpoint latest goes on."
        raise TrainingError(
            f"The GPU's memory is too small for step {self.done + 1}; {relief(self.settings)}.{kept}"
        ) from None

    def _fail(self, folder: Path, loss: float) -> None:
        """Stop at a broken loss, and go back to the atoms before the update that led to it."""
        what = "loss" if not math.isfinite(loss) else "gradient"
        number = self.done + 1
        if self._good is None:
            raise TrainingError(
                f"The {what} of the first step is not a number, so the base cannot be trained like this; "
                f"try --mixed_precision no (now {self.settings.mixed_precision}) or another base."
            )
        kept = self._write(folder, replace(self._good, state=self._good.state | {"may_change": MAY_CHANGE}))
        self.restore(self._good)
        raise TrainingError(
            f"The {what} became not a number at step {number}; the last good state is kept in "
            f"'{kept}'. Lower --learning_rate (now {self.settings.learning_rate:g}, of linear atoms "
            f"{self.settings.linear_learning_rate:g}), or change --mixed_precision, and go on with "
            "--resume_from_checkpoint latest."
        )


def _unheard(done: int, total: int) -> None: ...


def _training_mode(unet: nn.Module, settings: TrainingSettings) -> None:
    """Training mode, which gradient checkpointing needs, without dropout, whose draws are not seeded."""
    unet.train()
    for module in unet.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    if settings.gradient_checkpointing:
        unet.enable_gradient_checkpointing()  # type: ignore[operator]


def _gradient(parameter: nn.Parameter) -> Tensor:
    """The gradient, made zero where the forward pass did not reach the layer."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
