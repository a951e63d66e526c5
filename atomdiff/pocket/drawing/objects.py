"""How each thing is drawn, in the manner of `characters`: one function a class."""

from __future__ import annotations

import numpy as np

from atomdiff.pocket.drawing.brush import CREAM, INK, Figure, Shape, blob, box, ellipse, mix, span, star, tube

WOOD, LEAF, GLASS, STEEL = (150, 98, 62), (86, 170, 84), (178, 226, 245), (196, 204, 214)
TYRE, SMILE, STEM = (62, 58, 72), (70, 48, 60), (255, 236, 208)


def _ring(cx: float, cy: float, rx: float, ry: float, thick: float) -> np.ndarray:
    """A handle: the right-hand part of a ring, as one polygon."""
    a = np.radians(np.linspace(-112, 112, 22))
    outer = np.stack([cx + rx * np.cos(a), cy + ry * np.sin(a)], 1)
    inner = np.stack([cx + (rx - thick) * np.cos(a), cy + (ry - thick) * np.sin(a)], 1)
    return np.concatenate([outer, inner[::-1]])


def car(f: Figure, s: Shape) -> None:
    roof, long, wheel = span(s[0], 22, 30), span(s[1], 54, 62), span(s[3], 11, 14)
    f.coat(blob((50 - long * 0.62, 66), (50 - long * 0.44, 62 - roof), (50, 58 - roof),
                (50 + long * 0.34, 62 - roof), (50 + long * 0.6, 66), (50, 74)))  # fmt: skip
    f.part(box(50 - long * 0.40, 64 - roof, 47, 64, 5), GLASS)
    f.part(
        blob((52, 64.5 - roof), (50 + long * 0.28, 65 - roof), (50 + long * 0.44, 63), (52, 64), n=4), GLASS
    )
    f.coat(box(50 - long, 62, 50 + long, 90, 11))
    f.part(ellipse(50 + long - 4, 73, 5, 5.5), (255, 240, 160))
    f.part(box(50 - long - 1, 70, 50 - long + 5, 78, 2), (235, 70, 70))
    f.part(box(50 - long - 2, 84, 50 + long + 2, 90, 3), STEEL)
    for x in (50 - long * 0.58, 50 + long * 0.58):
        f.part(ellipse(x, 100 - wheel, wheel, wheel), TYRE)
        f.part(ellipse(x, 100 - wheel, wheel * 0.5), f.second, False)
    f.top, f.back = (48, 60 - roof), (30, 64 - roof)


def house(f: Figure, s: Shape) -> None:
    wide, roof, door = span(s[0], 33, 41), span(s[1], 22, 30), span(s[3], 14, 18)
    y = 41.0
    f.part(box(50 + wide * 0.35, y - roof, 50 + wide * 0.35 + 12, y - 4), f.second)
    f.coat(box(50 - wide, y - 3, 50 + wide, 100))
    f.part(np.array([(50 - wide - 9, y + 1), (50, y - roof), (50 + wide + 9, y + 1)]), mix(f.main, INK, 0.42))
    f.part(box(50 - door / 2 - 1, 100 - 31, 50 + door / 2 + 1, 100, 5), f.second)
    for side in (-1, 1):
        f.part(
            box(50 + side * wide * 0.62 - 7, y + 11, 50 + side * wide * 0.62 + 7, y + 27, 2), (255, 236, 150)
        )
    f.top, f.back = (50, y - roof), (50, y - roof * 0.3)


def mug(f: Figure, s: Shape) -> None:
    wide, tall, handle = span(s[0], 27, 34), span(s[1], 56, 70), span(s[3], 18, 25)
    top = 100 - tall
    f.coat(_ring(50 + wide + 3, top + tall * 0.5, handle * 0.85, handle, 9))
    high, low = box(50 - wide, top - 13, 50 + wide, 90, 13), box(50 - wide, top, 50 + wide, 100, 13)
    f.coat(np.concatenate([high[:6], low[6:18], high[18:]]))
    f.part(ellipse(50, top, wide, 8.5), f.second)
    f.part(ellipse(50, top + 1, wide - 5.5, 5.5), (104, 62, 44), False)
    for x in (40, 58):
        f.part(tube((x, top - 10), (x + 8, top - 17), (x, top - 26), w0=5, w1=3), (250, 250, 252))
    f.top, f.back = (50, top - 4), (50, top + 20)


def tree(f: Figure, s: Shape) -> None:
    wide, trunk, tip = span(s[0], 30, 38), span(s[1], 16, 24), span(s[2], 0, 8)
    f.part(box(43, 84 - trunk, 57, 100, 3), WOOD)
    base = 96 - trunk
    for step in range(3):
        w, y = wide * (1 - 0.25 * step), base - step * 20
        f.coat(blob((50 - w, y), (50 - w * 0.5, y - 14), (50, y - 33 - (tip if step == 2 else 0)),
                    (50 + w * 0.5, y - 14), (50 + w, y), (50, y + 5), n=5))  # fmt: skip
    f.part(star(50, base - 72 - tip, 12), f.second)
    f.top, f.back = (50, base - 68), (50, base - 30)


def flower(f: Figure, s: Shape) -> None:
    count, petal, heart, stem = (
        5 + round(s[0] * 2),
        span(s[1], 14, 17),
        span(s[2], 9, 11.5),
        span(s[3], 0, 10),
    )
    cy = 38.0 - stem * 0.3
    f.part(tube((50, cy), (52 - 8 * (s[4] - 0.5), 70), (50, 100), w0=6), LEAF)
    for side, y in ((1, 84), (-1, 90)):
        f.part(blob((50, y), (50 + side * 12, y - 13), (50 + side * 27, y - 12), (50 + side * 17, y)), LEAF)
    for i in range(count):
        a = 2 * np.pi * i / count - np.pi / 2
        f.coat(ellipse(50 + 21 * np.cos(a), cy + 21 * np.sin(a), petal + 2, petal - 1, np.degrees(a)))
    f.part(ellipse(50, cy, heart), f.second)
    f.top, f.back = (50, cy - 34), (50, cy)


def boat(f: Figure, s: Shape) -> None:
    sail, deep, mast = span(s[0], 26, 34), span(s[1], 24, 32), span(s[3], 0, 8)
    y = 100 - deep
    f.part(box(47, 8 - mast, 52, y + 4), WOOD)
    f.coat(np.array([(54, 14 - mast), (54, y - 6), (56 + sail, y - 6)]))
    f.coat(np.array([(45, 20 - mast), (45, y - 6), (45 - sail * 0.8, y - 6)]))
    f.part(np.array([(50, -2 - mast), (66, 4 - mast), (50, 10 - mast)]), f.second)
    f.coat(
        blob(
            (6, y), (50, y + 2), (96, y - 3), (88, y + deep * 0.6), (74, 100), (28, 100), (14, y + deep * 0.6)
        )
    )
    f.part(blob((5, y - 1), (50, y + 1), (97, y - 4), (96, y + 4), (50, y + 9), (7, y + 7)), f.second)
    f.top, f.back = (50, 4 - mast), (50, y - 22)


def teapot(f: Figure, s: Shape) -> None:
    fat, tall, spout = span(s[0], 32, 39), span(s[1], 25, 30), span(s[3], 0, 10)
    y = 97 - tall
    f.coat(_ring(-50 + fat + 2, y, 20, 20, 8) * (-1, 1))
    f.coat(blob((50 + fat - 8, y - 2), (50 + fat + 9, y - 4), (50 + fat + 15, y - 20 - spout),
                (50 + fat + 25, y - 23 - spout), (50 + fat + 21, y + 2), (50 + fat - 6, y + 20)))  # fmt: skip
    f.part(box(50 - fat * 0.55, 93, 50 + fat * 0.55, 100, 3), f.second)
    f.coat(ellipse(50, y, fat, tall))
    f.part(
        blob(
            (50 - fat * 0.62, y - tall + 7),
            (50, y - tall - 11),
            (50 + fat * 0.62, y - tall + 7),
            (50, y - tall + 11),
        ),
        f.second,
    )
    f.part(ellipse(50, y - tall - 9, 6.5), f.second)
    f.top, f.back = (50, y - tall - 14), (50, y - 10)


def mushroom(f: Figure, s: Shape) -> None:
    wide, tall, stem, eye = span(s[0], 38, 46), span(s[1], 34, 42), span(s[3], 15, 20), span(s[2], 4.6, 6)
    y = 58.0
    f.part(blob((50 - stem * 0.8, y - 4), (50 + stem * 0.8, y - 4), (50 + stem, 82), (50 + stem * 0.9, 98),
                (50, 100), (50 - stem * 0.9, 98), (50 - stem, 82)), STEM)  # fmt: skip
    f.part(ellipse(50, y + 1, wide * 0.8, 7), mix(f.second, CREAM, 0.25))
    f.coat(blob((50 - wide, y), (50 - wide * 0.86, y - tall * 0.6), (50, y - tall - 10),
                (50 + wide * 0.86, y - tall * 0.6), (50 + wide, y), (50 + wide * 0.5, y + 5), (50, y + 3),
                (50 - wide * 0.5, y + 5)))  # fmt: skip
    f.face(50, 79, 15, eye * 0.85, skin=STEM)
    f.part(tube((46.5, 88), (50, 91), (53.5, 88), w0=2), SMILE, False)
    f.top, f.back = (50, y - tall - 7), (50, y - 14)


def rocket(f: Figure, s: Shape) -> None:
    wide, nose, fin = span(s[0], 16, 21), span(s[1], 20, 28), span(s[3], 13, 19)
    f.part(blob((42, 86), (58, 86), (56, 95), (50, 104), (44, 95)), (255, 190, 60))
    for side in (-1, 1):
        f.coat(blob((50 + side * wide * 0.7, 58), (50 + side * (wide + fin), 76), (50 + side * (wide + fin),
                    100), (50 + side * wide * 0.6, 86)))  # fmt: skip
    f.coat(blob((50, 2), (50 + wide * 0.75, 22), (50 + wide, 50), (50 + wide * 0.8, 82), (50, 88),
                (50 - wide * 0.8, 82), (50 - wide, 50), (50 - wide * 0.75, 22)))  # fmt: skip
    f.part(blob((50, -2), (50 + wide * 0.56, nose - 5), (50 + wide * 0.6, nose), (50, nose + 3),
                (50 - wide * 0.6, nose), (50 - wide * 0.56, nose - 5)), f.second)  # fmt: skip
    f.part(ellipse(50, 46, 10.5), mix(f.second, CREAM, 0.2))
    f.part(ellipse(50, 46, 7.2), GLASS)
    f.top, f.back = (50, -2), (50, 50)
