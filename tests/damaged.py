"""Pictures of codes (6 pixels a module, as `atomdiff qr` draws) as chats, screens and cameras leave them."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import torch
from PIL import Image, ImageFilter

WALL = 190  # the grey that lies around a photographed sheet
Damage = Callable[[Image.Image, random.Random], Image.Image]


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
