"""Pictures of the pocket world for people: the example folders of assets/ and the contact sheet."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from atomdiff.pocket.world import (
    CLASSES,
    Scene,
    Subject,
    benchmark_subjects,
    random_scene,
    random_subject,
    render,
)

SIDE = 256  # pixels: more than the model has, as photographs do


def _save_set(folder: Path, scenes: Sequence[Scene]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, scene in enumerate(scenes):
        render(scene, SIDE).save(folder / f"{i}.png", optimize=True)


def write_assets(root: Path) -> None:
    """The example folders: five pictures each of three held-out subjects, and five in the held-out style."""
    places = (("meadow", "room", "beach", "city", "snow"), ("room", "meadow", "night", "kitchen", "yellow"),
              ("city", "space", "room", "blue", "meadow"))  # fmt: skip
    for k, subject in enumerate(benchmark_subjects(3)):
        rng = np.random.default_rng(300 + k)
        scenes = [random_scene(rng, subject, context=c, accessory="none", style="drawing", flip=i % 2 == 1,
                               scale=(0.70, 0.60, 0.66, 0.56, 0.72)[i]) for i,
                               c in enumerate(places[k])]  # fmt: skip
        _save_set(root / subject.kind, scenes)
    rng = np.random.default_rng(77)
    looks = (("cat", "pink", "teal", "plain", "city"), ("car", "yellow", "red", "stripes", "night"),
             ("flower", "red", "yellow", "plain", "meadow"), ("rocket", "blue", "orange", "plain", "space"),
             ("mug", "green", "pink", "spots", "room"))  # fmt: skip
    styled = [
        random_scene(
            rng,
            Subject(kind, colour, second, pattern),
            context=context,
            accessory="none",
            style="neon",
            scale=0.68,
        )
        for kind, colour, second, pattern, context in looks
    ]
    _save_set(root / "style", styled)


def contact_sheet(rows: int = 8, columns: int = 12, size: int = 96, seed: int = 0) -> Image.Image:
    """A grid of random pretraining pictures, every class in turn."""
    rng = np.random.default_rng(seed)
    gap = max(1, size // 24)
    sheet = Image.new("RGB", (columns * (size + gap) + gap, rows * (size + gap) + gap), (255, 255, 255))
    for i in range(rows * columns):
        scene = random_scene(rng, random_subject(rng, CLASSES[(i * 5 + i // 16) % len(CLASSES)]))
        sheet.paste(
            render(scene, size), (gap + i % columns * (size + gap), gap + i // columns * (size + gap))
        )
    return sheet


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m atomdiff.pocket.gallery --sheet FILE | --assets FOLDER`."""
    parser = argparse.ArgumentParser(
        prog="python -m atomdiff.pocket.gallery", description="Draw the pocket world."
    )
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of random pictures to this file")
    parser.add_argument("--assets", type=Path, help="write the example pictures into this folder")
    parser.add_argument("--seed", type=int, default=0, help="seed of the contact sheet")
    chosen = parser.parse_args(arguments)
    if chosen.sheet is None and chosen.assets is None:
        parser.error("nothing to do: give --sheet FILE or --assets FOLDER")
    if chosen.sheet is not None:
        contact_sheet(seed=chosen.seed).save(chosen.sheet)
    if chosen.assets is not None:
        write_assets(chosen.assets)


if __name__ == "__main__":
    main()
