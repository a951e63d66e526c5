"""What every way of drawing shares: a base's pipeline is called with a sampler for batch after batch.

Picture i is made from seed + i, whatever its neighbours in the batch are; noise comes from the CPU's
generator, so that a seed means the same on every device.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from atomdiff.base import loading
from atomdiff.base.stable_diffusion import Base
from atomdiff.concept.concept import Concept
from atomdiff.core.blocks import Strength
from atomdiff.errors import SettingsError
from atomdiff.files.safetensors_file import sha256
from atomdiff.sampling import img2img
from atomdiff.sampling.settings import SAMPLERS, DrawingSettings, used

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Callback = Callable[[int, int], None]
Concepts = Sequence[tuple[Concept, Strength]]
NOT_FINITE = "The picture turned into NaN {where}: lower the concept's strength or guidance, or draw in fp32."


def draw_batch(
    base: Base, settings: DrawingSettings, told: Mapping[str, Any], seeds: Sequence[int],
    starts: Sequence[img2img.Start] = (), step: Callback = lambda done, total: None,
) -> list[Image]:  # fmt: skip
    """One call of the base's pipeline: a picture of each seed, or of each of `starts`, by settings that are
    filled in for the base. The pipeline is `told` so much; `step` hears of (steps done, of how many).

    Raises SettingsError where latents or pictures are no numbers any more.
    """
    import numpy as np
    import torch

    total = img2img.steps_done(settings.steps, starts[0].strength) if starts else settings.steps
    width, height = settings.size or (0, 0)
    noise = {"num_inference_steps": settings.steps, "width": width, "height": height}

    def tell(pipe: Any, number: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if not tensors["latents"].isfinite().all():
            raise SettingsError(NOT_FINITE.format(where=f"at step {number + 1}"))
        step(min(number + 1, total), total)
        return {}

    blending = img2img.blending(base) if starts and starts[0].mask is not None else contextlib.nullcontext()
    with torch.no_grad(), blending:
        made = base.pipe(
            **told,
            **(img2img.arguments(starts, settings.steps) if starts else noise),
            guidance_scale=settings.guidance,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            callback_on_step_end=tell,
            output_type="np",
        ).images  # (b, h, w, 3)
    if not np.isfinite(made).all():
        raise SettingsError(NOT_FINITE.format(where="when it was decoded"))
    images = base.pipe.image_processor.numpy_to_pil(made)
    return [start.finished(image) for start, image in zip(starts, images, strict=True)] if starts else images


class Batches:
    """Pictures drawn in so many batches, by settings that are filled in for the base; each from its own of
    `starts`, if there are any. `callback` is told of the steps of all batches."""

    def __init__(
        self, base: Base, settings: DrawingSettings, count: int, callback: Callback | None,
        starts: Sequence[img2img.Start] = (),
    ) -> None:  # fmt: skip
        self._base, self._settings, self._starts = base, settings, starts
        self._callback, self._count, self._begun = callback, count, 0
        self._images: dict[int, Image] = {}

    def draw(self, places: Sequence[int], told: Mapping[str, Any]) -> None:
        """The pictures at these places, of which the pipeline is told so."""
        starts = [self._starts[i] for i in places] if self._starts else []
        seeds = [self._settings.seed + i for i in places]
        made = draw_batch(self._base, self._settings, told, seeds, starts, self._tell)
        self._images |= zip(places, made, strict=True)
        self._begun += 1

    def finished(self, each: Sequence[DrawingSettings]) -> list[Image]:
        """All pictures in order; their texts, as A1111 writes them, tell these settings, whose concepts are
        objects, with a seed of their own."""
        checksum = functools.cache(sha256)
        for i, image in self._images.items():
            named = [
                used(concept.title, strength, checksum(concept)) for concept, strength in each[i].concepts
            ]
            own = replace(each[i], seed=self._settings.seed + i)
            image.info["parameters"] = str(own.generation(self._base.name, named))
        return [self._images[i] for i in range(len(each))]

    def _tell(self, done: int, total: int) -> None:
        if self._callback is not None:
            self._callback(self._begun * total + done, self._count * total)


@contextlib.contextmanager
def with_scheduler(
    base: Base, settings: DrawingSettings, preview: Callable[[Tensor], None] | None = None
) -> Iterator[None]:
    """The pipeline, muted, with the wanted sampler over the base's own noise schedule; its own one is put
    back."""
    import diffusers

    sampler = SAMPLERS[settings.sampler]
    own = base.pipe.scheduler
    with loading.quiet():
        made = getattr(diffusers, sampler.scheduler).from_config(own.config, **dict(sampler.options))
        if own.config.get("rescale_betas_zero_snr") and float(made.alphas_cumprod[-1]) > 1e-6:
            raise SettingsError(
                f"The sampler {settings.sampler!r} cannot begin in pure noise, where this base's schedule "
                "ends: take another, dpm++ or ddim, say."
            )
        if preview is not None:
            made.step = _watched(made, preview)
        base.pipe.scheduler = made
        try:
            yield
        finally:
            base.pipe.scheduler = own


def _watched(scheduler: Any, preview: Callable[[Tensor], None]) -> Callable[..., Any]:
    """A scheduler's step that also tells its estimate of the clean latents.

    Schedulers return it beside the next latents, or keep it (the multistep ones) among their past outputs.
    """
    own = scheduler.step

    @functools.wraps(own)  # pipelines look at the signature
    def step(*args: Any, **kwargs: Any) -> Any:
        made = own(*args, **kwargs)
        preview(made[1] if len(made) > 1 else scheduler.model_outputs[-1])
        return made

    return step
