"""What someone asks the studio to draw: a drawing, on a base, so often, from a picture or not."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from atomdiff.core.blocks import check_strength
from atomdiff.errors import SettingsError
from atomdiff.sampling.infotext import Generation
from atomdiff.sampling.prompts import styled
from atomdiff.sampling.settings import DrawingSettings
from atomdiff.studio.session import Studio

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_COUNT = 64  # pictures of one request
MAX_STEPS = 200
MAX_SIDE = 2048
MAX_PROMPT = 10_000  # letters
SEEDS = 2**32  # a random seed is below: short enough to read out, exact in a browser


@dataclass(frozen=True)
class DrawRequest(DrawingSettings):
    """What someone wants drawn. Raises SettingsError for what cannot work.

    `concepts` are known by their ids in the library, `loras` and `embeddings` by their names in
    `Studio.others`. Drawing starts from `image`, if there is one, which changes where `mask` is white, or
    everywhere. `style` is one of `Studio.styles`. With `carry` each picture has its concept inside, if it was
    drawn with one.
    """

    base: str = ""
    count: int = 1
    batch: int | None = None
    carry: bool = False
    style: str = ""
    image: Image | None = None
    mask: Image | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise SettingsError("There is no prompt: write what to draw.")
        if len(self.prompt) + len(self.negative) > MAX_PROMPT:
            raise SettingsError(f"The prompt is longer than {MAX_PROMPT} letters: say it shorter.")
        if not 1 <= self.count <= MAX_COUNT:
            raise SettingsError(f"1 to {MAX_COUNT} pictures are drawn at a time, not {self.count}.")
        if self.batch is not None and not 1 <= self.batch <= MAX_COUNT:
            raise SettingsError(f"A batch has 1 to {MAX_COUNT} pictures, not {self.batch}.")
        if self.steps > MAX_STEPS or max(self.size or (0, 0)) * self.hires > MAX_SIDE:
            raise SettingsError(f"The studio draws at most {MAX_STEPS} steps and sides of {MAX_SIDE} pixels.")
        for _, strength in self.concepts:
            numbers = check_strength(strength)
            _bounded(numbers.values() if isinstance(numbers, Mapping) else [numbers])
        _bounded(strength for _, strength in self.loras)
        super().__post_init__()

    @property
    def started(self) -> dict[str, Any]:
        """What `draw` is told of the picture to start from."""
        return {"image": self.image, "mask": self.mask}

    def loaded(self, studio: Studio) -> DrawingSettings:
        """What the core draws: with its concepts and files, in its style. Raises ConceptError if one is not
        in the library any more."""
        settings = DrawingSettings(
            **{item.name: getattr(self, item.name) for item in fields(DrawingSettings)}
        )
        prompt, negative = styled(self.prompt.strip(), self.negative, self.style, studio.styles())
        loras, embeddings = studio.others.paths(self.loras, self.embeddings)
        return replace(
            settings, prompt=prompt, negative=negative, concepts=studio.load_concepts(self.concepts),
            loras=loras, embeddings=embeddings,
        )  # fmt: skip


def _bounded(strengths: Iterable[float]) -> None:
    if max(map(abs, strengths), default=0) > 10:
        raise SettingsError("A strength is a number from -10 to 10: 1 is as trained, 0 is without.")


def random_seed() -> int:
    """A seed that nobody chose."""
    return secrets.randbelow(SEEDS)


def request_of(generation: Generation, studio: Studio) -> DrawRequest:
    """The request that would draw a picture again, as far as its text tells and the studio has what it needs.

    Raises SettingsError for settings that cannot work here.
    """
    model, entries = generation.fields.get("Model", ""), studio.concepts()
    told = DrawingSettings.of(generation)
    concepts = []
    for used, strength in told.concepts:
        same = [entry for entry in entries if used.sha256 and entry.id.startswith(used.sha256)]
        same += [entry for entry in entries if entry.title == used.title]
        concepts += [(entry.id, strength) for entry in same[:1]]
    here = {
        "prompt": told.prompt or "a picture",
        "concepts": tuple(concepts),
        "seed": random_seed() if generation.whole("Seed") is None else told.seed,
        "strength": told.strength if told.hires > 1 else None,
        "loras": tuple((name, s) for used, s in told.loras if (name := studio.others.known("lora", used))),
        "embeddings": tuple(filter(None, (studio.others.known("embedding", one) for one in told.embeddings))),
        "regions": told.regions if len(concepts) == len(told.concepts) else (),
        "base": model if model in studio.bases.names else studio.bases.default,
    }
    return DrawRequest(**(vars(told) | here))
