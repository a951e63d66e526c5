"""Whether the clash warnings tell what happens in pictures when two concepts are loaded at once.

    python -m benchmarks.clash [CONCEPT ...] [--pictures 16] [--check]

For every two of the concepts, how far the pictures of the one's prompt move when the other is loaded too, at
the same seeds, and how like its subject the judge finds them: once with both called by one word, as the
subjects were trained, and once with the other called by a word that the prompt does not hold, but acting all
the same, as in a prompt that calls both. Then the same
with others of which a share is the concept itself, for overlaps that no two subjects have. Concepts of the
pocket model in outputs/ are used where they were trained on its present weights; if fewer than two are, they
are trained now. With --check the exit status is 1 if what is warned of does no more harm than the rest.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

import atomdiff
from atomdiff.base.stable_diffusion import Base, load_base
from atomdiff.base.textual_inversion import token_ids
from atomdiff.concept import algebra
from atomdiff.concept.concept import Concept
from atomdiff.errors import ConceptError
from atomdiff.pocket import world
from atomdiff.sampling import hints
from atomdiff.sampling.draw import draw

from .precision import CONTEXTS, difference, judged, made_for
from .report import Target, machine, one_sentence, show, verdict

KINDS = ("dog", "cat", "robot")
FOLDERS = ("outputs", "outputs/likeness", "outputs/clash")  # of KIND/KIND.safetensors
SHARES = (-0.5, 0.5, 1.0)  # of the concept itself in what is loaded beside it
WORDS = ("zwx", "ohwx", "vxq")  # for a concept that the prompt does not call


@dataclass(frozen=True)
class Case:
    """A concept, what is loaded beside it, and what came of that; likeness is NaN without a judge."""

    name: str
    overlap: float
    warned: bool
    one_word: bool
    pixels: float
    alone: float
    both: float

    @property
    def lost(self) -> float:
        """Likeness that the other takes away."""
        return self.alone - self.both


def available(base: Base, given: list[Path]) -> list[Concept]:
    """The concepts to try; trained now if there are too few. Raises ConceptError for files of another
    base."""
    if given:
        found = [made_for(base, [file]) for file in given]
    else:
        kept = {kind: [Path(folder, kind, f"{kind}.safetensors") for folder in FOLDERS] for kind in KINDS}
        kept["dog"].append(Path("outputs/precision/dog.safetensors"))
        found = [made_for(base, files) for files in kept.values()]
    concepts = [concept for concept in found if concept]
    if given and len(concepts) < max(2, len(given)):
        raise ConceptError("Two concepts or more of this pocket model are needed: train them anew.")
    for kind in KINDS:
        if len(concepts) < 2 and all(concept.class_word != kind for concept in concepts):
            print(f"training on assets/{kind}, some minutes")
            out = f"outputs/clash/{kind}"
            concepts.append(
                atomdiff.train(f"assets/{kind}", out=out, base=base, timeline_steps=0, overwrite=True)
            )
    return concepts


def beside(base: Base, own: Concept, others: list[Concept]) -> Iterator[tuple[str, Concept]]:
    """What is loaded beside a concept, each with a name: others as they are, called apart, and mixed with
    it."""
    for other in others:
        yield other.title, other
        yield f"{other.title}, called apart", apart(base, other, own)
    quiet = apart(base, without_word(others[0]), own)
    for share in SHARES:
        mixed = algebra.mix([(quiet, 1.0), (without_word(own), share)])
        yield f"{others[0].title} {share:+g} {own.title}, called apart", mixed


def apart(base: Base, concept: Concept, own: Concept) -> Concept:
    """The concept under a word of as many tokens that is none of `own`'s."""
    count = len(token_ids(base, concept.trigger)["token"])
    words = (w for w in WORDS if w != own.trigger and len(token_ids(base, w)["token"]) == count)
    return replace(concept, trigger=next(words))


def without_word(concept: Concept) -> Concept:
    """The concept's change of the UNet alone."""
    return replace(concept, atoms={key: a for key, a in concept.atoms.items() if key not in concept.token})


def pictures_of(base: Base, prompt: str, concepts: list[Concept], count: int) -> list[Image.Image]:
    prompts = [f"{prompt} {world.CONTEXTS[CONTEXTS[i % len(CONTEXTS)]]}" for i in range(count)]
    return draw(base, prompts, concepts=concepts, seed=70, steps=20, acting="plain")


def cases_of(base: Base, concepts: list[Concept], count: int) -> list[Case]:
    cases = []
    for own in concepts:
        prompt, likeness = f"a {own.trigger} {own.class_word}", judged(own.class_word)
        alone = pictures_of(base, prompt, [own], count)
        before = likeness(alone) if likeness else float("nan")
        for name, other in beside(base, own, [c for c in concepts if c is not own]):
            both = pictures_of(base, prompt, [own, other], count)
            cases.append(
                Case(
                    f"{own.title} with {name}",
                    algebra.compare(own, other).clash,
                    any(hints.clashes([(own, 1.0), (other, 1.0)])),
                    other.trigger == own.trigger,
                    difference(alone, both),
                    before,
                    likeness(both) if likeness else float("nan"),
                )
            )
    return cases


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Spearman's, without ties; NaN of fewer than two."""
    if len(a) < 2:
        return float("nan")
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def targets_of(cases: list[Case]) -> list[Target]:
    """What the warnings promise: harm where there is one, hardly any where there is none."""
    lost = {
        warned: float(np.mean([case.lost for case in cases if case.warned == warned] or [np.nan]))
        for warned in (True, False)
    }
    called_apart = [case for case in cases if not case.one_word]
    ranks = rank_correlation([c.overlap for c in called_apart], [c.pixels for c in called_apart])
    return [
        Target("likeness lost where warned, above that elsewhere", lost[True] - lost[False], low=0.02),
        Target("rank correlation of overlap and moved pixels, called apart", ranks, low=0.5),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clash", description=__doc__)
    parser.add_argument("concepts", nargs="*", type=Path, help="two concepts of the pocket model or more")
    parser.add_argument("--pictures", type=int, default=16, help="of each prompt and pair")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    a = parser.parse_args()
    base = load_base("pocket")
    cases = cases_of(base, available(base, a.concepts), a.pictures)
    cases.sort(key=lambda case: (not case.one_word, case.overlap))
    headers = ("concepts", "overlap", "warned", "pixels, of 255", "likeness alone", "with both", "lost")
    rows = [
        (
            case.name,
            f"{case.overlap:.2f}",
            ("one word" if case.one_word else "overlap") if case.warned else "no",
            f"{case.pixels:.1f}",
            *(f"{value:.2f}" for value in (case.alone, case.both, case.lost)),
        )
        for case in cases
    ]
    show(f"overlap is warned of above {algebra.CLASH:g}, and one word for two always", headers, rows)
    print(machine())
    verdict(targets_of(cases), a.check)


if __name__ == "__main__":
    with one_sentence():
        main()
