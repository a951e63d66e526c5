"""How each class is drawn: one function a class, from a `Figure` (colours) and six shape numbers in [0, 1].

Every figure stands on y = 100 and is about 100 units high; the main colour covers most of it, the second
colour is seen in a few parts, and the pattern is added by `brush.paint` on every part drawn with `coat`.
Here are the animals and the robot; `objects` has the rest.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from atomdiff.pocket.drawing import objects
from atomdiff.pocket.drawing.brush import INK, Figure, Shape, blob, box, ellipse, mix, outline_of, span, tube

STEEL, BEAK, NOSE = (196, 204, 214), (255, 170, 50), (70, 48, 60)


def dog(f: Figure, s: Shape) -> None:
    ear, long, eye, leg = span(s[0], 15, 24), span(s[1], 22, 30), span(s[2], 5.4, 7.0), span(s[3], 12, 20)
    bx, by = 40.0, 86 - leg
    f.coat(tube((bx - long + 4, by - 8), (bx - long - 15, by - 14), (bx - long - 12, by - 34), w0=9, w1=7))
    for x in (bx - long + 13, bx + long - 5):
        f.coat(box(x - 7, by, x + 7, 97, 6), mix(f.main, INK, 0.16))
    f.coat(ellipse(bx, by - 5, long + 5, 23))
    for x in (bx - long + 6, bx + long - 12):
        f.coat(box(x - 7.5, by, x + 7.5, 100, 7))
    hx, hy = bx + long + 2, by - 33
    f.top, f.head, f.neck, f.neck_width, f.back = (hx, hy - 21), 40, (hx - 4, hy + 21), 34, (bx - 4, by - 14)
    f.coat(ellipse(hx, hy, 24, 22))
    f.part(ellipse(hx + 2, hy + 11, 13, 9.5), mix(f.main, (255, 255, 255), 0.72))
    f.part(ellipse(hx + 2, hy + 6.5, 5.5, 4), NOSE, False)
    f.part(tube((hx + 2, hy + 9), (hx + 2, hy + 15), w0=1.6), NOSE, False)
    f.face(hx + 1, hy - 5, 20, eye, cheeks=False)
    for side in (-1, 1):
        x = hx + side * 21
        f.part(blob((x - side * 5, hy - 19), (x + side * 5, hy - 13), (x + side * 8, hy - 15 + ear),
                    (x + side * 1, hy - 8 + ear), (x - side * 4, hy - 6)), f.second)  # fmt: skip


def cat(f: Figure, s: Shape) -> None:
    ear, fat, eye, tall = span(s[0], 14, 22), span(s[1], 20, 28), span(s[2], 5.6, 7.4), span(s[3], 0, 8)
    f.coat(tube((50 + fat - 6, 92), (50 + fat + 28, 96), (50 + fat + 16, 58 - 12 * s[4]), w0=10, w1=9))
    f.coat(blob((50, 46), (50 + fat * 0.75, 60), (50 + fat, 88), (50 + fat * 0.7, 99), (50, 100),
                (50 - fat * 0.7, 99), (50 - fat, 88), (50 - fat * 0.75, 60)))  # fmt: skip
    for side in (-1, 1):
        f.coat(ellipse(50 + side * 9, 95, 8.5, 6))
    hy = 36 - tall
    f.top, f.head, f.neck, f.neck_width, f.back = (50, hy - 21), 42, (50, hy + 22), 36, (50, 62)
    for side in (-1, 1):
        x = 50 + side * 17
        tip = (x + side * 6, hy - 14 - ear)
        f.coat(np.array([(x - side * 14, hy - 14), tip, (x + side * 9, hy - 2)]))
        f.part(
            np.array([(x - side * 7, hy - 14), (tip[0] - side * 1.5, tip[1] + 6), (x + side * 5, hy - 7)]),
            f.second,
            False,
        )
    f.coat(ellipse(50, hy, 28, 23))
    f.face(50, hy - 1, 25, eye)
    f.part(ellipse(50, hy + 9, 4, 3), (240, 120, 140))
    for side in (-1, 1):
        f.part(
            tube((50, hy + 12), (50 + side * 3, hy + 16), (50 + side * 7, hy + 13), w0=1.8),
            outline_of(f.main),
            False,
        )
        for d in (-3, 3):
            f.part(
                tube((50 + side * 20, hy + 9 + d * 0.5), (50 + side * 36, hy + 8 + d * 1.6), w0=1.6),
                outline_of(f.main),
                False,
            )


def rabbit(f: Figure, s: Shape) -> None:
    ear, fat, eye, wide = span(s[0], 32, 46), span(s[1], 19, 25), span(s[2], 5.4, 7), span(s[3], 6.5, 9)
    f.part(ellipse(50 + fat + 2, 88, 9, 9), f.second)
    f.coat(ellipse(50, 80, fat, 20))
    hy = 50.0
    for side in (-1, 1):
        lean = side * span(s[4], 4, 14)
        f.coat(ellipse(50 + side * 11 + lean * 0.8, hy - 14 - ear / 2, wide, ear / 2 + 4, lean))
        f.part(
            ellipse(50 + side * 11 + lean * 0.8, hy - 13 - ear / 2, wide * 0.5, ear / 2 - 3, lean),
            f.second,
            False,
        )
    f.part(ellipse(50, 85, fat * 0.55, 12), mix(f.main, (255, 255, 255), 0.72), False)
    f.coat(ellipse(50, hy, 25, 21))
    f.top, f.head, f.neck, f.neck_width, f.back = (50, hy - 19), 36, (50, hy + 20), 34, (50, 74)
    f.face(50, hy - 2, 23, eye)
    f.part(ellipse(50, hy + 7, 3.6, 2.8), (240, 120, 140), False)
    f.part(box(47, hy + 11, 53, hy + 17, 1), (255, 255, 255))
    for side in (-1, 1):
        f.coat(ellipse(50 + side * 14, 95, 12, 6))
        f.coat(ellipse(50 + side * 10, 77, 5.5, 7.5))


def bird(f: Figure, s: Shape) -> None:
    fat, eye, tail, wing = span(s[0], 31, 37), span(s[2], 6, 8), span(s[1], 16, 30), span(s[4], 15, 20)
    for x in (44, 58):
        f.part(tube((x, 86), (x, 97), w0=4), BEAK)
        f.part(ellipse(x + 3, 97.5, 7, 3), BEAK)
    f.part(blob((22, 60), (16 - tail, 42), (10 - tail, 54), (20, 76)), f.second)
    f.coat(blob((50, 18), (74, 24), (50 + fat, 52), (76, 80), (50, 89), (24, 78), (14, 58), (26, 36)))
    f.part(tube((50, 19), (44, 6), (34, 8), w0=5, w1=3), f.second)
    f.part(blob((50 + fat - 4, 38), (50 + fat + 16, 44), (50 + fat - 3, 52)), BEAK)
    f.coat(blob((26, 52), (44, 48), (54, 58), (40, 60 + wing), (22, 66 + wing * 0.4)), mix(f.main, INK, 0.12))
    f.top, f.head, f.neck, f.neck_width, f.back = (54, 19), 38, (62, 57), 44, (34, 48)
    f.eyes, f.eye = ((68, 40),), eye
    f.part(ellipse(72, 54, 6, 4), (255, 150, 150), False)
    f.one_eye(68, 38, eye)


def fish(f: Figure, s: Shape) -> None:
    tall, eye, fin, tail = (
        span(s[0], 25, 33),
        span(s[2], 6.5, 8.5),
        span(s[1], 12, 22),
        span(s[3], 20, 30),
    )
    y = 100 - tall - 6.0
    f.part(
        blob((16, y), (-8, y - tail), (-14, y - tail + 6), (-6, y), (-14, y + tail - 6), (-8, y + tail)),
        f.second,
    )
    f.coat(blob((30, y - tall + 6), (38, y - tall - fin), (64, y - tall - fin * 0.6), (74, y - tall + 8)))
    f.coat(blob((40, y + tall - 5), (36, y + tall + 6), (50, y + tall + 5), (60, y + tall - 3)))
    f.coat(blob((8, y), (26, y - tall * 0.75), (56, y - tall), (86, y - tall * 0.62), (98, y),
                (86, y + tall * 0.62), (56, y + tall), (26, y + tall * 0.75)))  # fmt: skip
    f.part(blob((46, y + 2), (60, y + 6), (56, y + 16), (38, y + 14)), f.second)
    f.eyes, f.eye, f.top, f.back = ((78, y - 7),), eye, (62, y - tall), (50, y - tall + 6)
    f.part(ellipse(84, y + 7, 6, 4), (255, 150, 150), False)
    f.one_eye(78, y - 7, eye)
    f.part(tube((90, y + 12), (92, y + 9), (97, y + 7), w0=2.4), outline_of(f.main), False)


def robot(f: Figure, s: Shape) -> None:
    head, body, eye, leg = span(s[0], 22, 28), span(s[1], 18, 25), span(s[2], 6, 8), span(s[3], 9, 15)
    top = 96 - leg - 36.0
    for side in (-1, 1):
        f.part(box(50 + side * 10 - 5, 88 - leg, 50 + side * 10 + 5, 98), STEEL)
        f.part(box(50 + side * 11 - 9, 92, 50 + side * 11 + 9, 100, 4), f.second)
        f.part(
            tube(
                (50 + side * body, top + 8),
                (50 + side * (body + 12), top + 10),
                (50 + side * (body + 11), top + 26),
                w0=8,
            ),
            f.main,
        )
        f.part(ellipse(50 + side * (body + 11), top + 28, 6.5), f.second)
    f.part(box(44, top - 6, 56, top + 4), STEEL)
    f.coat(box(50 - body, top, 50 + body, top + 38, 7))
    hy = top - 24.0
    f.part(tube((50, hy - 16), (50, hy - 30), w0=3.5), STEEL)
    f.part(ellipse(50, hy - 31, 6), f.second)
    for side in (-1, 1):
        f.part(box(50 + side * (head + 2) - 4, hy - 7, 50 + side * (head + 2) + 4, hy + 7, 2), f.second)
    f.coat(box(50 - head, hy - 18, 50 + head, hy + 19, 8))
    f.part(box(50 - head + 5, hy - 12, 50 + head - 5, hy + 7, 7), (52, 58, 84))
    f.top, f.head, f.neck, f.neck_width, f.back = (50, hy - 18), 42, (50, top - 2), 34, (50, top + 12)
    f.eyes, f.eye = ((50 - head * 0.42, hy - 2.5), (50 + head * 0.42, hy - 2.5)), eye
    for x, y in f.eyes:
        f.part(ellipse(x, y, eye * 0.78, eye * 0.9), (140, 245, 250), False)
    f.part(tube((43, hy + 12), (50, hy + 16), (57, hy + 12), w0=2.6), outline_of(f.main), False)


def butterfly(f: Figure, s: Shape) -> None:
    wing, low, eye = span(s[0], 24, 30), span(s[1], 17, 22), 5.2
    for side in (-1, 1):
        f.coat(
            blob(
                (50, 62),
                (50 + side * low, 58),
                (50 + side * (low + 16), 78),
                (50 + side * low, 96),
                (50 + side * 8, 84),
            )
        )
        f.coat(blob((50, 54), (50 + side * 14, 26), (50 + side * (wing + 16), 16), (50 + side * (wing + 20),
                    42), (50 + side * wing, 62)))  # fmt: skip
        f.part(tube((50, 34), (50 + side * 5, 16), (50 + side * 14, 12), w0=3), outline_of(f.second), False)
        f.part(ellipse(50 + side * 14, 12, 3.2), f.second)
    f.part(ellipse(50, 66, 6.5, 24), f.second)
    f.part(ellipse(50, 40, 10.5, 10), f.second)
    f.face(50, 39, 9.5, eye - 1.2, cheeks=False, skin=f.second)
    f.top, f.back = (50, 31), (50, 56)


DRAW: dict[str, Callable[[Figure, Shape], None]] = {
    "dog": dog, "cat": cat, "rabbit": rabbit, "bird": bird, "fish": fish, "robot": robot,
    "car": objects.car, "house": objects.house, "mug": objects.mug, "tree": objects.tree,
    "flower": objects.flower, "butterfly": butterfly, "boat": objects.boat, "teapot": objects.teapot,
    "mushroom": objects.mushroom, "rocket": objects.rocket,
}  # fmt: skip
