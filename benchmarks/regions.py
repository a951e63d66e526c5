"""Two subjects in one picture: each in a region of its own, beside both mixed as usual.

    python -m benchmarks.regions [--subject CONCEPT=PICTURES ...] [--pictures 16] [--docs] [--check]

Pictures of the pocket model, two native squares side by side. A half is right where the judge sees in it the
class and the first colour of the subject that belongs there, as it sees them in most of the pictures that
the subject was trained on; its likeness is the cosine of the two embeddings. Mixed as usual, both act
on the whole picture and the prompt names both; a picture counts as right whichever side they are on. Without
--subject, assets/dog and assets/cat are trained first. With --check the exit status is 1 if a target is
missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import atomdiff
from atomdiff import pocket
from atomdiff.base.stable_diffusion import Base, load_base
from atomdiff.concept.concept import Concept
from atomdiff.errors import SettingsError
from atomdiff.files.safetensors_file import load_concept
from atomdiff.pocket import world
from atomdiff.pocket.corpus import HEADS
from atomdiff.pocket.judge import Judge
from atomdiff.sampling.draw import draw
from atomdiff.sampling.region import Region

from .report import Target, command, conclude, one_sentence

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
PLACES = ("beach", "forest", "snow", "city")
HEADERS = ("drawn", "both right", "left right", "right right", "likeness left", "likeness right")


@dataclass(frozen=True)
class Subject:
    """A concept, and what the judge sees in the pictures that it was trained on."""

    concept: Concept
    answers: dict[str, int]
    centre: Tensor

    @staticmethod
    def of(judge: Judge, concept: Concept, pictures: Sequence[Image.Image]) -> Subject:
        seen = judge(list(pictures))
        most = {head: int(seen.answers[head].mode().values) for head in ("class", "colour")}
        return Subject(concept, most, torch.nn.functional.normalize(seen.identity.mean(0), dim=0))


def subjects(base: Base, judge: Judge, given: Sequence[str]) -> list[Subject]:
    """Those given as CONCEPT=PICTURES; or a dog and a cat, trained now unless they were before. Raises
    SettingsError for another number than two."""
    pairs = [tuple(item.rsplit("=", 1)) for item in given]
    if not pairs:
        for kind in ("dog", "cat"):
            file = Path("outputs/regions") / kind / f"{kind}.safetensors"
            if not file.exists():
                print(f"training on assets/{kind}, some minutes", flush=True)
                atomdiff.train(f"assets/{kind}", file.parent, base, name=kind, timeline_steps=0)
            pairs.append((str(file), f"assets/{kind}"))
    if len(pairs) != 2 or any(len(pair) != 2 for pair in pairs):
        raise SettingsError(
            "Two subjects are drawn together: --subject CONCEPT=PICTURES, twice or not at all."
        )
    found = []
    for source, folder in pairs:
        pictures = [
            Image.open(path).convert("RGB").resize((world.SIDE, world.SIDE))
            for path in _pictures(Path(folder))
        ]
        found.append(Subject.of(judge, load_concept(source), pictures))
    return found


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".webp"))


def figures(
    judge: Judge, images: Sequence[Image.Image], two: Sequence[Subject], either: bool
) -> dict[str, float]:
    """Shares of pictures right, and likeness, of the halves; with `either`, on the sides that suit better."""
    right, alike = (
        torch.stack(parts)
        for parts in zip(*(_halves(judge, images, order) for order in (two, two[::-1])), strict=True)
    )
    turned = right[1].sum(1) > right[0].sum(1) if either else torch.zeros(len(images), dtype=torch.bool)
    chosen = torch.where(turned[:, None], right[1].flip(1), right[0])
    likeness = torch.where(turned[:, None], alike[1].flip(1), alike[0])
    return {
        "both": float(chosen.all(1).float().mean()),
        "first": float(chosen[:, 0].float().mean()),
        "second": float(chosen[:, 1].float().mean()),
        "likeness first": float(likeness[:, 0].mean()),
        "likeness second": float(likeness[:, 1].mean()),
    }


def _halves(judge: Judge, images: Sequence[Image.Image], order: Sequence[Subject]) -> tuple[Tensor, Tensor]:
    """Whether each half shows the subject that `order` has there, (n, 2), and how alike it is, (n, 2)."""
    right, alike = [], []
    for place, subject in enumerate(order):
        halves = [
            image.crop((place * image.width // 2, 0, (place + 1) * image.width // 2, image.height))
            for image in images
        ]
        seen = judge([half.resize((world.SIDE, world.SIDE)) for half in halves])
        right.append(
            torch.stack([seen.answers[head] == value for head, value in subject.answers.items()]).all(0)
        )
        alike.append(seen.identity @ subject.centre)
    return torch.stack(right, 1), torch.stack(alike, 1)


def pictures_of(base: Base, two: Sequence[Subject], count: int, steps: int) -> dict[str, list[Image.Image]]:
    """By how they are drawn: `count` pictures each, over several places."""
    size, each = (2 * base.resolution, base.resolution), max(1, count // len(PLACES))
    concepts = [subject.concept for subject in two]
    called = [f"a {concept.trigger} {concept.class_word}" for concept in concepts]
    found: dict[str, list[Image.Image]] = {"in regions": [], "mixed as usual": []}
    for number, place in enumerate(PLACES):
        where = world.CONTEXTS[place]
        options: dict[str, Any] = {"count": each, "seed": 100 * number, "steps": steps, "size": size}
        halves = [Region(LEFT, (0,)), Region(RIGHT, (1,))]
        found["in regions"] += draw(base, where, concepts=concepts, regions=halves, **options)
        prompt = f"{called[0]} and {called[1]} {where}"
        found["mixed as usual"] += draw(base, prompt, concepts=concepts, **options)
    return found


def main() -> None:
    parser = command("regions", __doc__, docs="docs/scale.md")
    parser.add_argument("--subject", action="append", default=[], metavar="CONCEPT=PICTURES")
    parser.add_argument("--pictures", type=int, default=16, help="of each way")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sheet", type=Path, default=Path("outputs/regions/sheet.png"))
    a = parser.parse_args()
    base, judge = load_base("pocket"), Judge.load(pocket.path() / "judge.safetensors")
    two = subjects(base, judge, a.subject)
    drawn = pictures_of(base, two, a.pictures, a.steps)
    found = {way: figures(judge, images, two, way != "in regions") for way, images in drawn.items()}
    rows = [(way, *(f"{value:.2f}" for value in own.values())) for way, own in found.items()]
    names = [HEADS["class"][subject.answers["class"]] for subject in two]
    title = f"A {names[0]} and a {names[1]} in one picture, {len(drawn['in regions'])} of each way"
    a.sheet.parent.mkdir(parents=True, exist_ok=True)
    contact = [(way, images[:8]) for way, images in drawn.items()]
    print(atomdiff.save_picture(atomdiff.contact_sheet(contact), a.sheet))
    target = Target("both subjects right, in regions", found["in regions"]["both"], low=0.7)
    conclude(a, title, (HEADERS, rows), [target], "regions")


if __name__ == "__main__":
    with one_sentence():
        main()
