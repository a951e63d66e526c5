"""When to stop: the kept steps of a training judged, and the best proposed.

Of each step pictures are drawn in some contexts, the same seeds for all steps, and looked at by a network
that turns pictures into vectors of length 1 (DINO, DINOv2, CLIP, or on the pocket its judge):

    L   likeness: mean cosine of the pictures to the photographs
    K   contexts kept, over what the base has on pictures of the class, at most 1: the mean distance (1 -
    cosine)
        of pictures of different contexts, since an overcooked concept draws one picture everywhere; on the
        pocket the share of pictures that the judge sees in the context asked for

The best step has the greatest 2 L K / (L + K).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image
from torch import Tensor

from atomdiff import pocket
from atomdiff.base.stable_diffusion import Base
from atomdiff.concept.concept import Concept
from atomdiff.concept.timeline import Timeline
from atomdiff.errors import SettingsError
from atomdiff.evaluation.likeness import likeness, spread
from atomdiff.evaluation.pocket_figures import in_context
from atomdiff.evaluation.towers import Tower, load_tower
from atomdiff.pocket.judge import Judge
from atomdiff.sampling.draw import draw

CONTEXTS = ("on the beach", "in the snow", "in the city", "in the forest")


class Eyes(Protocol):
    """What looks at the pictures."""

    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(n, d) vectors of length 1."""

    def contexts(self, pictures: Sequence[Image.Image], each: int) -> float:
        """How well the contexts of `each` pictures of each of `CONTEXTS` can be told."""


@dataclass(frozen=True)
class TowerEyes:
    """DINO, DINOv2 or CLIP."""

    tower: Tower

    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        return self.tower.images(pictures)

    def contexts(self, pictures: Sequence[Image.Image], each: int) -> float:
        return spread(self.images(pictures), each)


@dataclass(frozen=True)
class PocketEyes:
    """The pocket's own judge."""

    judge: Judge

    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        return self.judge(pictures).identity

    def contexts(self, pictures: Sequence[Image.Image], each: int) -> float:
        return in_context(self.judge(pictures), [where.split()[-1] for where in CONTEXTS])


def eyes_for(family: str, tower: str | Path = "", device: str = "cpu") -> Eyes | None:
    """A tower's, of the folder of that name, else the pocket's own judge on the pocket; None on other
    families. Raises SettingsError."""
    if tower:
        return TowerEyes(load_tower(Path(tower), device=device))
    return PocketEyes(Judge.load(Path(pocket.path()) / "judge.safetensors")) if family == "pocket" else None


@dataclass(frozen=True)
class Judged:
    """One step: L, K, and what they come to."""

    step: int
    likeness: float
    contexts: float

    @property
    def score(self) -> float:
        low = max(0.0, self.likeness)
        return 2 * low * self.contexts / (low + self.contexts) if low + self.contexts else 0.0


def judge_steps(
    base: Base,
    timeline: Timeline,
    photographs: Sequence[Image.Image],
    eyes: Eyes,
    states: int = 8,
    each: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **drawing: int | float | None,
) -> list[Judged]:
    """At most `states` of the kept steps, evenly spread, judged on `each` pictures of each context. Raises
    SettingsError for a concept that is not said of what class it is."""
    last = timeline.last
    if not last.class_word:
        raise SettingsError("The concept does not say of what class it is, so nothing can be asked of it.")
    real = eyes.images(photographs)

    def drawn(concepts: Sequence[Concept], called: str) -> list[Image.Image]:
        prompts = [f"a {called} {where}" for where in CONTEXTS]
        return draw(base, prompts, concepts=concepts, count=each, **drawing)  # type: ignore[arg-type]

    usual = eyes.contexts(drawn([], last.class_word), each)
    steps, found = timeline.spread(states), []
    for number, step in enumerate(steps):
        progress(number, len(steps))
        pictures = drawn([timeline.at(step)], f"{last.trigger} {last.class_word}".strip())
        kept = min(1.0, eyes.contexts(pictures, each) / max(usual, 1e-6))
        found.append(Judged(step, likeness(eyes.images(pictures), real), kept))
    return found


def best(judged: Sequence[Judged]) -> Judged:
    """The step with the greatest score; of equal ones the earliest, which has moved least."""
    return max(judged, key=lambda one: (round(one.score, 6), -one.step))
