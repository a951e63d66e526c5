"""What a subject has on, in the figure's units: its coat's pattern, what it wears, what grows on it."""

from __future__ import annotations

import math

import numpy as np

from atomdiff.pocket.drawing.brush import (
    INK,
    Colour,
    Figure,
    Points,
    blob,
    box,
    ellipse,
    luminance,
    star,
    tube,
)

WHITE: Colour = (255, 255, 255)


# ---------------------------------------------------------------- patterns, in the figure's units
def _grid(x0: float, y0: float, x1: float, y1: float, step: float) -> list[tuple[float, float]]:
    """A triangular grid of points over a box."""
    rows = np.arange(y0, y1 + step, step * 0.87)
    return [
        (x + (step / 2 if i % 2 else 0), y)
        for i, y in enumerate(rows)
        for x in np.arange(x0, x1 + step, step)
    ]


def _band(y: float, x0: float, x1: float, rise: float, period: float, thick: float) -> Points:
    """A zigzag band from x0 to x1."""
    x = np.arange(x0 - period, x1 + period, period / 2)
    line = y + np.where(np.arange(len(x)) % 2 == 0, 0.0, rise)
    return np.concatenate([np.stack([x, line], 1), np.stack([x, line + thick], 1)[::-1]])


def motif(
    pattern: str, bounds: tuple[float, float, float, float], phase: tuple[float, float]
) -> list[Points]:
    """The polygons of a pattern over a box (x0, y0, x1, y1); `phase` in [0, 1] belongs to the subject."""
    x0, y0, x1, y1 = bounds
    ox, oy = phase
    if pattern == "plain":
        return []
    if pattern == "spots":
        return [ellipse(x, y, 5.8, n=14) for x, y in _grid(x0 - 19 * ox, y0 - 17 * oy, x1, y1, 19)]
    if pattern == "stripes":
        lean = 0.25 * (y1 - y0)
        return [np.array([(x, y0), (x + 6.8, y0), (x + 6.8 - lean, y1), (x - lean, y1)])
                for x in np.arange(x0 - 18 * ox, x1 + lean, 18)]  # fmt: skip
    if pattern == "checks":
        xs, ys = np.arange(x0 - 24 * ox, x1, 12), np.arange(y0 - 24 * oy, y1, 12)
        return [
            box(x, y, x + 10.2, y + 10.2) for i, x in enumerate(xs) for j, y in enumerate(ys) if (i + j) % 2
        ]
    if pattern == "patches":
        rng = np.random.default_rng(int(ox * 9999) * 10007 + int(oy * 9999))
        patches = []
        for x, y in _grid(x0 - 40 * ox, y0 - 34 * oy, x1, y1, 40):
            r = rng.uniform(0.75, 1.25, 7) * 11.5
            a = np.arange(7) * 2 * math.pi / 7
            cx, cy = x + rng.uniform(-5, 5), y + rng.uniform(-5, 5)
            patches.append(blob(*zip(cx + r * 1.15 * np.cos(a), cy + r * np.sin(a), strict=True), n=4))
        return patches
    if pattern == "zigzag":
        return [_band(y, x0, x1, 12, 19, 7.2) for y in np.arange(y0 - 20 * oy - 6, y1, 20)]
    if pattern == "stars":
        return [star(x, y, 11.5, turn=12) for x, y in _grid(x0 - 26 * ox, y0 - 23 * oy, x1, y1, 26)]
    if pattern == "rings":
        rings = []
        for x, y in _grid(x0 - 28 * ox, y0 - 24 * oy, x1, y1, 28):
            a = np.linspace(0, 2 * math.pi, 20)
            unit = np.stack([np.cos(a), np.sin(a)], 1)
            rings.append(np.concatenate([unit * 11.5, unit[::-1] * 6.5]) + np.array((x, y)))
        return rings
    raise ValueError(f"unknown pattern {pattern!r}")


# ---------------------------------------------------------------- worn things and body features
def wear(f: Figure, accessory: str) -> None:
    """Put an accessory on a figure with the anchors for it."""
    if accessory == "hat":
        (x, y), w = f.top, f.head
        red = (226, 48, 52)
        f.part(box(x - w * 0.36, y - w * 0.5, x + w * 0.36, y + 4, 4), red)
        f.part(box(x - w * 0.36, y - 6, x + w * 0.36, y + 2), (255, 240, 220), False)
        f.part(ellipse(x, y + 3, w * 0.62, 5), red)
    elif accessory == "glasses":
        r = f.eye * 1.62
        for x, y in f.eyes:
            a = np.linspace(0, 2 * math.pi, 24)
            unit = np.stack([np.cos(a), np.sin(a)], 1)
            if luminance(f.main) < 110:
                f.part(np.concatenate([unit * (r + 1.6), unit[::-1] * r]) + np.array((x, y)), WHITE, False)
            f.part(np.concatenate([unit * r, unit[::-1] * (r - 3.4)]) + np.array((x, y)), INK, False)
        if len(f.eyes) == 2:
            (ax, ay), (bx, by) = f.eyes
            f.part(tube((ax + r - 1, ay - 1), (bx - r + 1, by - 1), w0=3.2), INK, False)
        else:
            (x, y) = f.eyes[0]
            f.part(tube((x - r + 1, y - 1), (x - r - 12, y - 3), w0=3.2), INK, False)
    elif accessory == "scarf":
        (x, y), w = f.neck, f.neck_width
        yellow = (255, 206, 60)
        f.part(
            blob((x + w * 0.16, y), (x + w * 0.42, y), (x + w * 0.46, y + 24), (x + w * 0.16, y + 24)), yellow
        )
        f.part(blob((x - w * 0.58, y - 5), (x, y - 1), (x + w * 0.58, y - 5), (x + w * 0.56, y + 5),
                    (x, y + 9), (x - w * 0.56, y + 5)), yellow)  # fmt: skip
    elif accessory != "none":
        raise ValueError(f"unknown accessory {accessory!r}")


def grow(f: Figure, feature: str) -> None:
    """Add a body feature. Wings grow behind everything drawn so far, antlers in front."""
    if feature == "wings":
        x, y = f.back
        before, f.parts = f.parts, []
        for side in (-1, 1):
            f.part(blob((x, y + 6), (x + side * 22, y - 26), (x + side * 52, y - 30), (x + side * 54, y - 8),
                        (x + side * 42, y + 6), (x + side * 24, y + 14)), WHITE)  # fmt: skip
        f.parts += before
    elif feature == "antlers":
        (x, y), horn = f.top, (150, 98, 62)
        for side in (-1, 1):
            f.part(
                tube((x + side * 9, y + 4), (x + side * 12, y - 12), (x + side * 26, y - 24), w0=6, w1=4),
                horn,
            )
            f.part(tube((x + side * 15, y - 10), (x + side * 27, y - 9), w0=5, w1=4), horn)
    elif feature != "none":
        raise ValueError(f"unknown feature {feature!r}")
