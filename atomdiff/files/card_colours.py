"""The colours of a card: two that follow from its first picture, and what is legible on them."""

from __future__ import annotations

import colorsys
import hashlib
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from PIL.Image import Image

Colour = tuple[int, int, int]
PAPER, INK, FAINT = (252, 250, 246), (33, 30, 36), (128, 122, 128)


def accents_of(picture: Image | None, data: bytes) -> tuple[Colour, Colour]:
    """Two lively colours of the picture, of different hue; without one, two that follow from the file."""
    hues: list[float] = []
    for hue in _hues(picture) if picture is not None else ():
        if all(_apart(hue, other) > 0.09 for other in hues):
            hues.append(hue)
    hues = hues or [hashlib.sha256(data).digest()[0] / 256]
    hues = [hues[0], hues[1] if len(hues) > 1 else (hues[0] + 0.42) % 1]
    if 0.09 < hues[0] < 0.2 or 0.09 < hues[1] < 0.12:  # yellow is for the sticker: it makes a muddy frame
        hues.reverse()
    return _lively(hues[0]), _lively(hues[1])


def _hues(picture: Image) -> list[float]:
    """The hues of a picture's vivid colours, those that cover most of it first."""
    small = picture.convert("RGB").resize((96, 96)).quantize(16)
    palette = small.getpalette() or []
    found = []
    for count, i in cast("list[tuple[int, int]]", small.getcolors() or []):
        r, g, b = (value / 255 for value in palette[3 * i : 3 * i + 3])
        hue, light, vivid = colorsys.rgb_to_hls(r, g, b)
        found.append((count**0.5 * vivid * (1 - abs(2 * light - 1)), hue))
    return [hue for weight, hue in sorted(found, reverse=True) if weight > 1]


def _apart(a: float, b: float) -> float:
    return min(abs(a - b), 1 - abs(a - b))


def _lively(hue: float) -> Colour:
    """A colour of this hue that carries letters: warm hues lighter, or they turn to mud."""
    warm = max(0.0, 1 - _apart(hue, 0.11) / 0.08)
    return _rgb(hue, 0.42 + 0.12 * warm, 0.62 + 0.3 * warm)


def _rgb(hue: float, light: float, vivid: float) -> Colour:
    r, g, b = colorsys.hls_to_rgb(hue, light, vivid)
    return round(255 * r), round(255 * g), round(255 * b)


def ink_on(colour: Colour) -> Colour:
    """Dark or light, whichever is legible on a colour."""
    r, g, b = colour
    return INK if 0.3 * r + 0.59 * g + 0.11 * b > 165 else PAPER


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """From a, share 0, to b, share 1."""
    r, g, v = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return r, g, v


def neighbour(colour: Colour) -> Colour:
    """A darker colour of a hue beside this one's, away from brown."""
    r, g, b = (value / 255 for value in colour)
    hue, light, vivid = colorsys.rgb_to_hls(r, g, b)
    turn = -0.09 if hue > 0.85 or hue < 0.17 else 0.09
    return _rgb((hue + turn) % 1, 0.7 * light, vivid)
