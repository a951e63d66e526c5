"""Pictures of different requests in one call of the UNet: each with its own prompts, concepts and seed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from atomdiff.errors import AtomdiffError, Interrupted
from atomdiff.sampling.settings import DrawingSettings, used

if TYPE_CHECKING:
    from PIL.Image import Image

    from atomdiff.base.stable_diffusion import Base
    from atomdiff.core.blocks import Strength
    from atomdiff.sampling.img2img import Start
    from atomdiff.sampling.region import Region
    from atomdiff.sampling.resident import Resident

MAX_HELD = 256 << 20  # bytes of concepts that are held ready; those not used for longest make room

Step = Callable[[int, int], None]
"""Told of every step: how many are done, and of how many."""


@dataclass(frozen=True)
class Stored:
    """A concept as it travels: its file's bytes and their checksum."""

    sha256: str
    data: bytes

    def __hash__(self) -> int:
        return hash(self.sha256)


@dataclass(frozen=True)
class Wanted:
    """One picture. `settings` are filled in for the base, their concepts `Stored`; `start` is a picture to
    start from, of the size in the settings."""

    base: str
    settings: DrawingSettings
    start: Start | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for pictures that can share a batch: with regions, those that differ by the seed alone."""
        s, masked = self.settings, self.start is not None and self.start.mask is not None
        common = self.base, s.steps, s.guidance, s.size, s.sampler, s.strength, self.start is None, masked
        if not s.regions:
            return common
        concepts = tuple((concept.sha256, str(strength)) for concept, strength in s.concepts)
        return *common, s.regions, s.prompt, s.negative, concepts


class Drawer:
    """Draws on one base, whose concepts it holds ready between batches."""

    def __init__(self, base: Base) -> None:
        from atomdiff.sampling.resident import Residents

        self.base = base
        self.residents = Residents(base)

    def draw(self, wanted: Sequence[Wanted], step: Step) -> list[Image | AtomdiffError]:
        """The pictures, all of one key; in the place of each that cannot be drawn its error: the others are
        drawn all the same. Raises what `step` raises (`Interrupted`)."""
        made: dict[int, Image | AtomdiffError] = {}
        ready: dict[int, list[tuple[Resident, Strength]]] = {}
        for i, one in enumerate(wanted):
            try:
                ready[i] = [(self._resident(c), strength) for c, strength in one.settings.concepts]
            except AtomdiffError as error:
                made[i] = error
        if ready:
            made |= self._drawn(wanted, ready, list(ready), step)
        self._make_room()
        return [made[i] for i in range(len(wanted))]

    def _drawn(
        self, wanted: Sequence[Wanted], ready: dict[int, Any], together: list[int], step: Step
    ) -> dict[int, Image | AtomdiffError]:
        """Some of the pictures; if the batch breaks, each alone, so that it breaks for the one alone that
        broke it."""
        try:
            images = self._batch([wanted[i] for i in together], [ready[i] for i in together], step)
            return dict(zip(together, images, strict=True))
        except Interrupted:
            raise
        except AtomdiffError as error:
            if len(together) == 1:
                return {together[0]: error}
        made: dict[int, Image | AtomdiffError] = {}
        for i in together:
            made |= self._drawn(wanted, ready, [i], step)
        return made

    def _batch(self, wanted: Sequence[Wanted], concepts: Sequence[Any], step: Step) -> list[Image]:
        from atomdiff.sampling import img2img
        from atomdiff.sampling.pipeline import draw_batch, with_scheduler

        common, starts = wanted[0].settings, [one.start for one in wanted if one.start is not None]
        base = img2img.with_pipeline(self.base, starts[0].mask is not None) if starts else self.base
        with with_scheduler(base, common), _told(base, wanted, concepts) as (told, regions):
            made = draw_batch(base, common, told, [one.settings.seed for one in wanted], starts, step)
        for one, image, own in zip(wanted, made, concepts, strict=True):
            named = [used(resident.title, strength, resident.sha256) for resident, strength in own]
            plain = replace(one.settings, acting="plain", regions=regions)
            image.info["parameters"] = str(plain.generation(self.base.name, named))
        return made

    def _resident(self, concept: Stored) -> Resident:
        """Held ready, and the last to make room. Raises ConceptError for a concept of another base."""
        from atomdiff.files.safetensors_file import from_bytes

        held = self.residents.held.pop(concept.sha256, None)
        if held is None:
            return self.residents.add(from_bytes(concept.data), concept.sha256)
        self.residents.held[concept.sha256] = held
        return held

    def _make_room(self) -> None:
        while self.residents.nbytes > MAX_HELD:
            self.residents.drop(next(iter(self.residents.held.values())))


@contextlib.contextmanager
def _told(
    base: Base, wanted: Sequence[Wanted], concepts: Sequence[Any]
) -> Iterator[tuple[dict[str, Any], tuple[Region, ...]]]:
    """Within: the base's pipeline, told this, draws pictures of one key with these concepts; their regions,
    each with its prompt."""
    from atomdiff.sampling.mixed import mixer
    from atomdiff.sampling.regions import placed

    every = [one.settings for one in wanted]
    if every[0].regions:
        with placed(base, every[0], concepts[0]) as (told_of, settings):
            yield told_of(len(wanted)), settings.regions
        return
    with mixer(base) as mixed:
        prompts, avoided = [one.prompt for one in every], [one.negative for one in every]
        yield mixed.told(prompts, concepts, avoided), ()
