"""Whether the clash measure tells what happens in pictures when two concepts are loaded at once.

    python -m benchmarks.clash [CONCEPT ...] [--pictures 16]

For every pair of the concepts (by default those trained on assets/dog, cat and robot that lie in outputs/),
and for the first one with itself: how much the two overlap, and for each of them how far the pictures of its
own prompt move when the other is loaded too, at the same seeds, and how like its subject they stay.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from PIL import Image

from atomdiff.concepts import algebra
from atomdiff.concepts.concept import Concept
from atomdiff.errors import ConceptError
from atomdiff.models.base import Base, load_base
from atomdiff.pictures.sampling import draw
from atomdiff.pocket import world

from .precision import CONTEXTS, difference, judged
from .report import machine, one_sentence, show

KINDS = ("dog", "cat", "robot")


def available(given: list[Path]) -> list[Concept]:
    """Raises ConceptError if there are none."""
    places = [
        Path("outputs") / folder / kind / f"{kind}.safetensors"
        for folder in ("", "likeness")
        for kind in KINDS
    ]
    found = [Concept.load(path) for path in given or places if given or path.exists()]
    first = {concept.class_word: concept for concept in reversed(found)}
    concepts = found if given else [first[kind] for kind in KINDS if kind in first]
    if not concepts:
        raise ConceptError(
            "There is no concept in outputs/ yet: train some with `python -m benchmarks.likeness`, or name "
            "files."
        )
    return concepts


def pictures_of(base: Base, prompt: str, concepts: list[Concept], count: int) -> list[Image.Image]:
    prompts = [f"{prompt} {world.CONTEXTS[CONTEXTS[i % len(CONTEXTS)]]}" for i in range(count)]
    return draw(base, prompts, concepts=concepts, seed=70, steps=20)


def rows_of(base: Base, concepts: list[Concept], count: int) -> list[tuple[str, ...]]:
    prompts = [f"a {concept.trigger} {concept.class_word}" for concept in concepts]
    alone = [pictures_of(base, p, [c], count) for p, c in zip(prompts, concepts, strict=True)]
    judges = [judged(concept.class_word) for concept in concepts]
    rows: list[tuple[str, ...]] = []
    for i, j in [(0, 0), *itertools.combinations(range(len(concepts)), 2)]:
        overlap = algebra.compare(concepts[i], concepts[j])
        for own, other in dict.fromkeys([(i, j), (j, i)]):
            both = pictures_of(base, prompts[own], [concepts[own], concepts[other]], count)
            judge = judges[own]
            rows.append(
                (
                    f"{concepts[own].title} with {concepts[other].title}",
                    f"{overlap.clash:.2f}",
                    f"{overlap.similarity:+.2f}",
                    f"{difference(alone[own], both):.1f}",
                    f"{judge(alone[own]):.2f}" if judge else "no judge yet",
                    f"{judge(both):.2f}" if judge else "no judge yet",
                )
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clash", description=__doc__)
    parser.add_argument("concepts", nargs="*", type=Path, help="concepts of the pocket model")
    parser.add_argument("--pictures", type=int, default=16, help="of each prompt and pair")
    a = parser.parse_args()
    base, concepts = load_base("pocket"), available(a.concepts)
    headers = ("concepts", "clash", "similarity", "pixels, of 255", "likeness alone", "likeness with both")
    show(f"warned of above {algebra.CLASH:g}", headers, rows_of(base, concepts, a.pictures))
    print(machine())


if __name__ == "__main__":
    with one_sentence():
        main()
