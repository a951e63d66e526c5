"""The new tasks: pictures with a label each, unlike those of pretraining, or real."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from atomdiff.pocket import world

SIDE = 64  # pixels
Data = tuple[Tensor, Tensor]  # pictures uint8 (n, SIDE, SIDE, 3), labels (n,)


def _scene(rng: np.random.Generator, **fixed: Any) -> world.Scene:
    return world.random_scene(rng, world.random_subject(rng, fixed.pop("kind", None)), **fixed)


def _neon(rng: np.random.Generator) -> tuple[Image.Image, int]:
    scene = _scene(rng, style=next(iter(world.HELD_OUT_STYLES)))
    return world.render(scene, SIDE), world.CLASSES.index(scene.subject.kind)


def _orientation(rng: np.random.Generator) -> tuple[Image.Image, int]:
    turns = int(rng.integers(4))
    return world.render(_scene(rng, accessory="none"), SIDE).rotate(90 * turns), turns


def _counting(rng: np.random.Generator) -> tuple[Image.Image, int]:
    """How many of four small pictures show a dog."""
    dogs = int(rng.integers(5))
    kinds = ["dog"] * dogs + [str(rng.choice(world.CLASSES[1:])) for _ in range(4 - dogs)]
    sheet = Image.new("RGB", (SIDE, SIDE))
    for place, kind in enumerate(rng.permutation(kinds)):
        tile = world.render(_scene(rng, kind=str(kind), style="drawing"), 32)
        sheet.paste(tile, (place % 2 * 32, place // 2 * 32))
    return sheet, dogs


def _patterns(rng: np.random.Generator) -> tuple[Image.Image, int]:
    """Which of the patterns that pretraining never shows."""
    while True:
        subject = world.random_subject(rng, held_out=True)
        if subject.pattern in world.HELD_OUT_PATTERNS:
            scene = world.random_scene(rng, subject, style="drawing")
            return world.render(scene, SIDE), world.HELD_OUT_PATTERNS.index(subject.pattern)


def _digits(count: int) -> Data:
    """scikit-learn's handwritten digits: real, 8 × 8, enlarged."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.images))[:count]
    small = torch.from_numpy(found.images[order]).float()[:, None] / 16 * 255
    grey = interpolate(small, size=(SIDE, SIDE), mode="bilinear").round().to(torch.uint8)
    return grey.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous(), torch.from_numpy(found.target[order])


DRAWN = {"neon": _neon, "orientation": _orientation, "counting": _counting, "patterns": _patterns}
TASKS = (*DRAWN, "digits")


@cache
def task_data(name: str, count: int) -> Data:
    """`count` pictures of a task with their labels; always the same."""
    if name == "digits":
        return _digits(count)
    rng = np.random.default_rng([7, *name.encode()])
    pairs = [DRAWN[name](rng) for _ in range(count)]
    pictures = torch.from_numpy(np.stack([np.asarray(picture) for picture, _ in pairs]))
    return pictures, torch.tensor([label for _, label in pairs])
