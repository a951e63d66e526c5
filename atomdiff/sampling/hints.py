"""What one should know before drawing: what may surprise about concepts, a prompt and a base together."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atomdiff.base.stable_diffusion import Base
    from atomdiff.concept.concept import Concept
    from atomdiff.core.blocks import Strength
    from atomdiff.sampling.settings import DrawingSettings

Weighted = Sequence[tuple["Concept", "Strength"]]


@dataclass(frozen=True)
class Hint:
    """A sentence, which begins with a small letter or a quotation; a `warning` or only a note."""

    text: str
    warning: bool = True

    def __str__(self) -> str:
        """The sentence on its own."""
        return self.text[:1].upper() + self.text[1:]


def before_drawing(base: Base, settings: DrawingSettings) -> Iterator[Hint]:
    """Everything about a drawing that may surprise; its concepts are objects, other people's files paths.
    Raises ConceptError for a concept of another base."""
    from atomdiff.base.textual_inversion import has_trigger

    prompt, plain = settings.prompt, settings.acting == "plain"
    placed = {i for region in settings.regions for i in region.concepts}  # called in prompts of their own
    acting = []
    for i, (concept, strength) in enumerate(settings.concepts):
        cousin = concept.check_base(base.passport)
        if cousin:
            yield Hint(cousin)
        yield from _schedules(base, concept)
        called = has_trigger(prompt, concept.trigger)
        if i not in placed and (plain or called):
            acting.append((concept, strength))
        if i not in placed and not called:
            then = "will show but little" if plain else "does not act on it"
            yield Hint(
                f"the prompt lacks {concept.trigger!r}, the word that calls {concept.title!r}, which "
                f"therefore {then}."
            )
    yield from clashes(acting)
    yield from _of_other_files(f"{prompt}\n{settings.negative}", settings.embeddings)


def _schedules(base: Base, concept: Concept) -> Iterator[Hint]:
    """Where a concept was trained on a base that was said to predict something else than this one does."""
    predicted = concept.training.get("prediction_type", base.prediction_type)
    if predicted != base.prediction_type:
        yield Hint(
            f"{concept.title!r} was trained on a base that predicts {predicted!r}, and {base.name!r} "
            f"predicts {base.prediction_type!r}: --prediction_type {predicted} draws as it was trained."
        )
    if concept.training.get("zero_terminal_snr") and not base.scheduler.config.get("rescale_betas_zero_snr"):
        yield Hint(
            f"{concept.title!r} was trained from pure noise, and drawing on {base.name!r} does not begin in "
            "it: --zero_terminal_snr does."
        )


def _of_other_files(prompts: str, embeddings: Iterable[Path]) -> Iterator[Hint]:
    """What may surprise about LoRAs and textual inversions; `prompts` are the prompt and the negative one."""
    from atomdiff.base.textual_inversion import has_trigger

    for path in embeddings:
        if not has_trigger(prompts, path.stem):
            yield Hint(
                f"no prompt says {path.stem!r}, the word of that embedding, which therefore does nothing."
            )
    if found := re.search(r"<lora:[^<>]*>", prompts):
        yield Hint(
            f"{found[0]} in the prompt is read as text: a LoRA is given as a file, beside the concepts."
        )


def clashes(weighted: Weighted) -> Iterator[Hint]:
    """Pairs of concepts that get in each other's way when they are used together."""
    from atomdiff.concept import algebra

    used = [concept for concept, strength in weighted if strength]
    for one, other in itertools.combinations(used, 2):
        clash = algebra.clash(one, other)
        if clash is not None and clash > algebra.CLASH:
            yield Hint(
                f"{one.title!r} and {other.title!r} overlap by {clash:.0%} in what they change, so each will "
                "show in the other: lower their strengths, or draw them apart."
            )
        elif shared := set(one.trigger.lower().split()) & set(other.trigger.lower().split()):
            yield Hint(
                f"{one.title!r} and {other.title!r} are both called by {min(shared)!r}, so a prompt calls "
                "both and each will show in the other: draw them apart, or train one with another trigger."
            )
