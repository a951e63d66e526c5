"""Forward passes of a training step: from a step's number to the losses of its batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from atomdiff.base.stable_diffusion import added_conditions
from atomdiff.core.inject import Attached
from atomdiff.training.batches import Batch, Sampler, by_shape, sample_number
from atomdiff.training.latents import LatentCache, LiveTable, PromptTable
from atomdiff.training.monitor import Watch
from atomdiff.training.objective import Losses, diffusion_loss
from atomdiff.training.settings import TrainingSettings

if TYPE_CHECKING:
    from atomdiff.base.stable_diffusion import Base
    from atomdiff.base.textual_inversion import TriggerToken


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on. `prior` is None without prior preservation."""

    instance: LatentCache
    prior: LatentCache | None
    table: PromptTable | LiveTable
    token: "TriggerToken | None" = None
    watch: Watch | None = None  # on the class, None where nothing can change it


class Forward:
    """The passes of this process through a UNet with `attached` atoms."""

    def __init__(
        self,
        settings: TrainingSettings,
        base: "Base",
        data: TrainingData,
        attached: Attached,
        accelerator: Any,
    ) -> None:
        self._settings, self._base, self._table = settings, base, data.table
        self._attached, self._accelerator = attached, accelerator
        timesteps, offset = int(base.scheduler.config.num_train_timesteps), settings.noise_offset
        self._instance = Sampler(data.instance, settings.seed, "instance", timesteps, offset)
        self._prior = Sampler(data.prior, settings.seed, "class", timesteps, offset) if data.prior else None

    def losses(self, step: int, turn: int) -> Iterator[Losses]:
        """Of this process's share of an accumulation turn of a step (both from 0), one for pictures of each
        shape; they add up."""
        settings, size = self._settings, int(self._settings.train_batch_size or 1)
        first = sample_number(
            step,
            turn,
            self._accelerator.process_index,
            batch=size,
            turns=settings.gradient_accumulation_steps,
            processes=self._accelerator.num_processes,
        )
        some = int(settings.prior_batch_size or 1)
        prior = self._prior.samples(first // size * some, some) if self._prior else []
        for batch, instances in by_shape(self._instance.samples(first, size), prior):
            yield self._loss(batch, instances, (size, len(prior)))

    def _loss(self, batch: Batch, instances: int, of: tuple[int, int]) -> Losses:
        device, factor = self._accelerator.device, self._base.vae_factor
        height, width = batch.latents.shape[2:]
        embeds = self._table.rows(batch.prompts, device)
        added = added_conditions(self._base, embeds, (height * factor, width * factor))
        with self._accelerator.autocast():
            return diffusion_loss(
                self._base.unet,
                self._base.scheduler,
                batch.latents.to(device),
                embeds.hidden,
                added,
                batch.noise.to(device),
                batch.timesteps.to(device),
                instances=instances,
                of=of,
                weights=batch.weights.to(device) if batch.weights is not None else None,
                prior_weight=self._settings.prior_loss_weight,
                snr_gamma=self._settings.snr_gamma,
                base_answer=self._base_answer,
            )

    @torch.no_grad()
    def _base_answer(self, *inputs: Any, **options: Any) -> Any:
        """What the base answers, without the atoms that are trained."""
        self._attached.set_strength(0.0)
        try:
            return self._base.unet(*inputs, **options)
        finally:
            self._attached.set_strength(1.0)
