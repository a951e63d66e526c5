"""Whether a concept comes back, byte for byte, from pictures of its QR codes that were treated badly.

    python -m benchmarks.qr [--rounds 5] [--check]

Concepts of four sizes are drawn as QR codes (6 pixels a module, as `atomdiff qr` does), the picture is
damaged the way a chat, a screen or a camera would, and read again. A last row asks the same of a card's mark:
whether a card that a site saved anew is still known for one. With --check the exit status is 1 if a target is
missed, and the last line names those.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import random
import time
from collections.abc import Callable

import torch
from PIL import Image, ImageFilter

from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import BasePassport
from atomdiff.core.inject import AtomSpec
from atomdiff.errors import AtomdiffError
from atomdiff.files import card_image, qr, qr_image
from atomdiff.files.safetensors_file import to_bytes
from benchmarks import report

TARGET = 1.0  # share of the pictures that give the concept back, in each column
CONCEPTS = [  # Stable Diffusion 1.5: convolutions alone, and with cross-attention, as trained by default
    (52, 0, "int4"),
    (52, 0, "fp16"),
    (52, 64, "int8"),
    (52, 64, "fp16"),
]
WALL = 190  # the grey that lies around a photographed sheet
Damage = Callable[[Image.Image, random.Random], Image.Image]

# ------------------------------------------------------------------------------------------ damages


def jpeg(image: Image.Image, dice: random.Random) -> Image.Image:
    """What a chat does to it."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=60)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("L")


def blur(image: Image.Image, dice: random.Random) -> Image.Image:
    """A third of a module, as from a lens a little out of focus."""
    return image.filter(ImageFilter.GaussianBlur(dice.uniform(1.5, 2.2)))


def half(image: Image.Image, dice: random.Random) -> Image.Image:
    """A screenshot of a smaller display: three pixels a module."""
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.BILINEAR)


def rotation(image: Image.Image, dice: random.Random) -> Image.Image:
    """Any angle."""
    return image.rotate(dice.uniform(-180, 180), Image.Resampling.BILINEAR, expand=True, fillcolor=WALL)


def perspective(image: Image.Image, dice: random.Random) -> Image.Image:
    """A camera held askew: every corner moves inwards by up to 8 % of the side."""
    width, height = image.size
    inward = [(dice.uniform(0, 0.08) * width, dice.uniform(0, 0.08) * height) for _ in range(4)]
    corners = [(0, 0), (width, 0), (width, height), (0, height)]
    moved = [
        (x + (dx if x == 0 else -dx), y + (dy if y == 0 else -dy))
        for (x, y), (dx, dy) in zip(corners, inward, strict=True)
    ]
    coefficients = _homography(moved, corners)
    return image.transform(
        image.size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR, fillcolor=WALL
    )


def photo(image: Image.Image, dice: random.Random) -> Image.Image:
    """All of it together, a little weaker, under uneven light: five pixels a module."""
    image = perspective(image, dice).rotate(
        dice.uniform(-9, 9), Image.Resampling.BILINEAR, True, fillcolor=WALL
    )
    image = image.resize((image.width * 5 // 6, image.height * 5 // 6), Image.Resampling.BILINEAR)
    light = Image.linear_gradient("L").resize(image.size).point(lambda value: 140 + value * 90 // 255)
    shaded = Image.composite(image, image.point(lambda value: value // 2 + 20), light)
    return jpeg(shaded.filter(ImageFilter.GaussianBlur(1.0)), dice)


DAMAGES: dict[str, Damage] = {
    "JPEG 60": jpeg,
    "blur": blur,
    "50 %": half,
    "rotation": rotation,
    "perspective": perspective,
    "photo": photo,
}


def _homography(source: list[tuple[float, float]], target: list[tuple[int, int]]) -> tuple[float, ...]:
    """The a … h with u = (a x + b y + c) / (g x + h y + 1), v = (d x + e y + f) / (…), for four pairs."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    matrix, right = torch.tensor(rows, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
    return tuple(torch.linalg.solve(matrix, right).tolist())


# ------------------------------------------------------------------------------------------ measuring


def concept_file(conv: int, linear: int, precision: str = "fp16", seed: int = 0) -> bytes:
    """A concept of as many maps as asked for, with numbers like trained ones."""
    generator = torch.Generator().manual_seed(seed)
    atoms = {"conv": 0.02 * torch.randn(conv, 9, 9, generator=generator)}
    if linear:
        atoms["linear"] = 0.02 * torch.randn(linear, 16, 16, generator=generator)
    sketch = tuple(math.sin(i) for i in range(16))
    concept = Concept(
        atoms=atoms,
        layers="0badcafe",
        spec=AtomSpec(linear_atoms="attn2" if linear else "none"),
        base=BasePassport("sd1-1a2b3c4d", sketch, "sd15"),
        trigger="sks",
        class_word="dog",
        name="Biscuit",
        training={"steps": 300, "learning_rate": 0.001, "instance_prompt": "a sks dog"},
    )
    return to_bytes(concept, precision)


def share_read(image: Image.Image, concept: bytes, damage: Damage, rounds: int) -> tuple[float, float]:
    """The share of damaged pictures that give the concept back, and the seconds that reading one takes."""
    read, seconds = 0, 0.0
    for i in range(rounds):
        damaged = damage(image, random.Random(i))
        start = time.perf_counter()
        with contextlib.suppress(AtomdiffError):
            read += qr_image.read([damaged]) == concept
        seconds += time.perf_counter() - start
    return read / rounds, seconds / rounds


def share_known(card: Image.Image, mark: str, damage: Damage, rounds: int) -> float:
    """The share of damaged cards whose mark is still read."""
    return sum(mark in qr_image.find(damage(card, random.Random(i))).marks for i in range(rounds)) / rounds


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="pictures a cell")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    options = parser.parse_args()
    rows, targets = [], []
    for conv, linear, precision in CONCEPTS:
        concept = concept_file(conv, linear, precision)
        codes, image = qr.split(concept), qr_image.sheet(concept, "Biscuit")
        cells, slowest = [], 0.0
        for name, damage in DAMAGES.items():
            share, seconds = share_read(image, concept, damage, options.rounds)
            slowest = max(slowest, seconds)
            cells.append(f"{share:.0%}")
            targets.append(report.Target(f"{len(concept):,} bytes, {name}", share, low=TARGET))
        packed = len(qr.pack(concept))
        title = f"{precision}: {len(concept):,} bytes → {packed:,} in {len(codes)} × {len(codes[0]):,}"
        rows.append((title, *cells, f"{slowest:.2f} s"))
    concept = concept_file(52, 0)
    card = Image.open(io.BytesIO(card_image.make(concept))).convert("L")
    known = qr_image.mark(concept).rpartition(":")[2].lower()
    shares = [share_known(card, known, damage, options.rounds) for damage in DAMAGES.values()]
    rows.append(("the mark of a card", *(f"{share:.0%}" for share in shares), ""))
    for name, share in zip(DAMAGES, shares, strict=True):
        targets.append(report.Target(f"mark, {name}", share, low=TARGET))
    headers = ("concept", *DAMAGES, "slowest read")
    report.show(f"QR codes read again ({report.machine()})", headers, rows)
    report.verdict(targets, options.check)


if __name__ == "__main__":
    main()
