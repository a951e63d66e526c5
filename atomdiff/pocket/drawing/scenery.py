"""Where a subject stands: one function a context.

Backdrops are drawn in frame units ([0, 1], y downwards) in a few layers of low contrast, so that the subject
reads at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from atomdiff.pocket.drawing.brush import INK, Colour, Points, box, ellipse, mix, tube

WHITE: Colour = (255, 255, 255)


class Stage:
    """A frame being painted: `draw` in frame units on a gradient."""

    def __init__(self, size: int, rng: np.random.Generator, light: float) -> None:
        self.size, self.rng, self.light = size, rng, light
        self.image = Image.new("RGB", (size, size))
        self.pen = ImageDraw.Draw(self.image)

    def gradient(self, top: Colour, bottom: Colour, y0: float = 0.0, y1: float = 1.0) -> None:
        """A vertical gradient between the heights y0 and y1; `light` brightens or dims it a little."""
        k = 0.93 + 0.14 * self.light
        t = np.linspace(0, 1, 32)[:, None, None]
        rows = (np.asarray(top) * (1 - t) + np.asarray(bottom) * t) * k
        strip = Image.fromarray(np.clip(rows, 0, 255).astype(np.uint8))
        a, b = round(y0 * self.size), round(y1 * self.size)
        self.image.paste(strip.resize((self.size, b - a), Image.Resampling.BILINEAR), (0, a))

    def poly(self, points: Points, fill: Colour) -> None:
        self.pen.polygon((np.asarray(points) * self.size).ravel().tolist(), fill=fill)

    def disc(self, x: float, y: float, rx: float, fill: Colour, ry: float | None = None) -> None:
        ry = rx if ry is None else ry
        s = self.size
        self.pen.ellipse(((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s), fill=fill)

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: Colour) -> None:
        s = self.size
        self.pen.rectangle((x0 * s, y0 * s, x1 * s, y1 * s), fill=fill)

    def hills(self, y: float, height: float, waves: float, fill: Colour) -> None:
        """A rolling line of hills down to the bottom edge."""
        x = np.linspace(0, 1, 24)
        line = y - height * np.sin(x * waves * math.pi + self.rng.uniform(0, 6.3)) * 0.5
        self.poly(np.concatenate([np.stack([x, line], 1), [(1, 1), (0, 1)]]), fill)

    def cloud(self, x: float, y: float, r: float, fill: Colour) -> None:
        for dx, dy, k in ((-1.1, 0.15, 0.62), (0, -0.2, 0.9), (1.0, 0.1, 0.7)):
            self.disc(x + dx * r, y + dy * r, r * k, fill)
        self.rect(x - 1.2 * r, y + 0.1 * r, x + 1.1 * r, y + 0.75 * r, fill)

    def scatter(self, count: int, y0: float, y1: float) -> np.ndarray:
        """count random points in a band, spread evenly from left to right, (count, 2)."""
        x = (np.arange(count) + self.rng.uniform(0.1, 0.9, count)) / count
        return np.stack([x, self.rng.uniform(y0, y1, count)], 1)


def beach(s: Stage) -> None:
    s.gradient((112, 200, 246), (206, 240, 252), 0, 0.5)
    s.disc(s.rng.choice([0.16, 0.84]), 0.15, 0.09, (255, 226, 92))
    s.gradient((40, 150, 205), (86, 202, 220), 0.46, 0.73)
    s.hills(0.655, 0.03, 3, (236, 250, 250))
    s.hills(0.68, 0.03, 3, (250, 222, 160))
    s.gradient((250, 222, 160), (240, 200, 128), 0.72, 1)


def snow(s: Stage) -> None:
    s.gradient((164, 188, 222), (222, 232, 246), 0, 0.7)
    s.hills(0.62, 0.12, 1.7, (214, 226, 244))
    for x in s.rng.choice([0.07, 0.2, 0.8, 0.93], 2, replace=False):
        for k in range(3):
            w, y = 0.085 - 0.02 * k, 0.66 - 0.07 * k
            s.poly(np.array([(x - w, y), (x, y - 0.13), (x + w, y)]), (150, 178, 196))
    s.hills(0.70, 0.05, 1.4, (246, 250, 255))
    for x, y in s.scatter(18, 0.02, 0.62):
        s.disc(x, y, 0.013, WHITE)


def night(s: Stage) -> None:
    s.gradient((22, 26, 72), (62, 66, 132), 0, 0.75)
    x = s.rng.choice([0.17, 0.83])
    s.disc(x, 0.17, 0.10, (255, 244, 200))
    s.disc(x + 0.045, 0.14, 0.085, (31, 35, 82))
    for sx, sy in s.scatter(12, 0.03, 0.5):
        s.disc(sx, sy, 0.010, (255, 250, 214))
    s.hills(0.68, 0.10, 1.6, (40, 52, 104))
    s.hills(0.75, 0.04, 1.3, (34, 62, 82))


def city(s: Stage) -> None:
    s.gradient((186, 212, 236), (238, 232, 226), 0, 0.75)
    for tone, low, high in (((176, 186, 208), 0.12, 0.4), ((134, 146, 178), 0.3, 0.5)):
        x = -0.05
        while x < 1:
            w, y = s.rng.uniform(0.15, 0.21), s.rng.uniform(low, high)
            s.rect(x, y, x + w - 0.012, 0.78, tone)
            if low > 0.2:
                for wy in np.arange(y + 0.05, 0.66, 0.10):
                    for wx in (x + w * 0.28, x + w * 0.66):
                        s.rect(wx - 0.018, wy, wx + 0.018, wy + 0.04, (255, 232, 160))
            x += w
    s.rect(0, 0.74, 1, 0.80, (196, 196, 204))
    s.gradient((122, 124, 138), (104, 106, 122), 0.79, 1)


def water(s: Stage) -> None:
    s.gradient((70, 196, 226), (18, 84, 158))
    for x in (0.1, 0.45, 0.8):
        s.poly(np.array([(x, 0), (x + 0.12, 0), (x - 0.05, 0.9), (x - 0.24, 0.9)]), (64, 170, 212))
    s.hills(0.92, 0.05, 2, (196, 190, 150))
    for x in (0.06, 0.15, 0.87, 0.95):
        h = s.rng.uniform(0.22, 0.4)
        s.poly(
            tube((x, 0.96), (x + 0.07, 0.94 - h * 0.5), (x - 0.01, 0.94 - h), w0=0.04, w1=0.02),
            (32, 142, 108),
        )
    for x, y in s.scatter(8, 0.06, 0.8):
        r = s.rng.uniform(0.016, 0.03)
        s.disc(x, y, r, (196, 240, 252))
        s.disc(x, y, r * 0.6, (104, 200, 232))


def space(s: Stage) -> None:
    s.gradient((24, 14, 52), (46, 22, 84))
    for x, y in s.scatter(26, 0.03, 0.97):
        s.disc(x, y, s.rng.choice([0.006, 0.010]), (250, 244, 255))
    x, y = s.rng.choice([0.15, 0.85]), s.rng.choice([0.16, 0.2])
    s.poly(ellipse(x, y, 0.155, 0.04, -18), (246, 206, 150))
    s.disc(x, y, 0.09, (236, 128, 104))
    s.poly(ellipse(x, y + 0.018, 0.12, 0.018, -18), (246, 206, 150))
    s.disc(1 - x, 0.86, 0.055, (120, 200, 214))


def room(s: Stage) -> None:
    s.gradient((250, 226, 214), (244, 210, 196), 0, 0.74)
    x = s.rng.choice([0.2, 0.8])
    s.rect(x - 0.14, 0.10, x + 0.14, 0.42, WHITE)
    s.rect(x - 0.115, 0.125, x - 0.012, 0.395, (164, 218, 246))
    s.rect(x + 0.012, 0.125, x + 0.115, 0.395, (164, 218, 246))
    s.rect(0, 0.70, 1, 0.735, WHITE)
    s.gradient((204, 150, 106), (182, 126, 86), 0.735, 1)
    s.disc(0.5, 0.885, 0.43, (150, 120, 180), 0.085)
    s.disc(0.5, 0.885, 0.36, (176, 148, 202), 0.065)


def forest(s: Stage) -> None:
    s.gradient((186, 222, 170), (112, 168, 122), 0, 0.8)
    for tone, count, w, crown in (
        ((126, 170, 122), 6, 0.045, (96, 158, 104)),
        ((98, 84, 70), 4, 0.075, (46, 116, 78)),
    ):
        for x, y in s.scatter(count, 0.04, 0.14):
            s.rect(x - w / 2, y, x + w / 2, 0.8, tone)
            s.disc(x, y, 0.17, crown)
    s.gradient((88, 132, 72), (62, 104, 60), 0.76, 1)
    for x in (0.08, 0.3, 0.62, 0.92):
        s.disc(x, 0.775, 0.10, (78, 136, 78), 0.05)


def desert(s: Stage) -> None:
    s.gradient((255, 214, 150), (255, 236, 190), 0, 0.66)
    s.disc(s.rng.choice([0.3, 0.7]), 0.14, 0.08, (255, 250, 222))
    s.hills(0.56, 0.14, 2.2, (232, 158, 98))
    s.hills(0.68, 0.09, 1.6, (222, 136, 76))
    for x in s.rng.choice([0.09, 0.91], 1):
        for p in (tube((x, 0.80), (x, 0.36), w0=0.075), tube((x, 0.66), (x + 0.10, 0.67), (x + 0.085, 0.48),
                  w0=0.045), tube((x, 0.70), (x - 0.10, 0.71), (x - 0.085, 0.54), w0=0.045)):  # fmt: skip
            s.poly(p, (74, 146, 92))
    s.gradient((240, 172, 104), (226, 148, 84), 0.78, 1)


def rain(s: Stage) -> None:
    s.gradient((104, 118, 142), (164, 176, 192), 0, 0.78)
    for x in (0.14, 0.5, 0.86):
        s.cloud(x, 0.08 + s.rng.uniform(-0.02, 0.02), 0.13, (78, 90, 114))
    s.gradient((112, 132, 138), (92, 112, 122), 0.76, 1)
    for x, y in ((0.15, 0.9), (0.85, 0.94)):
        s.disc(x, y, 0.13, (150, 180, 200), 0.028)
    for x, y in s.scatter(24, 0.2, 0.86):
        s.poly(tube((x, y), (x - 0.03, y + 0.09), w0=0.013), (206, 228, 246))


def meadow(s: Stage) -> None:
    s.gradient((126, 204, 246), (222, 244, 250), 0, 0.7)
    s.cloud(s.rng.uniform(0.12, 0.25), 0.16, 0.07, WHITE)
    s.cloud(s.rng.uniform(0.72, 0.88), 0.24, 0.06, WHITE)
    s.hills(0.62, 0.09, 2.1, (156, 212, 120))
    s.hills(0.72, 0.04, 1.5, (122, 194, 88))
    for i, (x, y) in enumerate(s.scatter(9, 0.78, 0.97)):
        s.disc(x, y, 0.019, (WHITE, (255, 170, 190), (255, 224, 96))[i % 3])
        s.disc(x, y, 0.008, (255, 190, 60))


def sunset(s: Stage) -> None:
    s.gradient((92, 56, 132), (238, 92, 112), 0, 0.42)
    s.gradient((238, 92, 112), (255, 190, 96), 0.42, 0.82)
    s.disc(s.rng.choice([0.2, 0.8]), 0.56, 0.15, (255, 236, 150))
    s.hills(0.66, 0.09, 1.8, (150, 70, 118))
    s.hills(0.76, 0.04, 1.4, (92, 50, 98))


def kitchen(s: Stage) -> None:
    s.gradient((232, 244, 240), (216, 234, 230), 0, 0.8)
    for x in np.arange(0, 1.01, 0.125):
        s.rect(x - 0.004, 0.3, x + 0.004, 0.8, WHITE)
    for y in np.arange(0.3, 0.75, 0.125):
        s.rect(0, y - 0.004, 1, y + 0.004, WHITE)
    s.rect(0, 0, 1, 0.20, (96, 170, 166))
    for x in (0.25, 0.5, 0.75):
        s.rect(x - 0.006, 0, x + 0.006, 0.20, (72, 144, 142))
        s.disc(x - 0.04, 0.15, 0.012, WHITE)
    s.rect(0, 0.20, 1, 0.225, (72, 144, 142))
    x = s.rng.choice([0.12, 0.88])
    for y0, y1 in ((0.26, 0.44), (0.455, 0.81)):
        s.poly(box(x - 0.13, y0, x + 0.13, y1, 0.03), (150, 206, 224))
        s.rect(x - 0.09, y0 + 0.05, x - 0.065, y0 + 0.12, WHITE)
    s.gradient((214, 206, 200), (196, 186, 182), 0.80, 1)


def _flat(wall: Colour) -> Callable[[Stage], None]:
    def backdrop(s: Stage) -> None:
        s.gradient(mix(wall, WHITE, 0.10), wall, 0, 0.8)
        s.gradient(wall, mix(wall, INK, 0.14), 0.8, 1)

    return backdrop


# key -> (painter, where feet stand (low, high) or None where the subject floats, the tone behind it, dark?)
BACKDROPS: dict[str, tuple[Callable[[Stage], None], tuple[float, float] | None, Colour, bool]] = {
    "beach": (beach, (0.86, 0.92), (180, 205, 190), False),
    "snow": (snow, (0.84, 0.92), (226, 234, 246), False),
    "night": (night, (0.86, 0.93), (46, 52, 106), True),
    "city": (city, (0.88, 0.94), (150, 156, 178), False),
    "water": (water, None, (44, 140, 192), True),
    "space": (space, None, (36, 20, 70), True),
    "room": (room, (0.87, 0.92), (246, 216, 202), False),
    "kitchen": (kitchen, (0.86, 0.93), (222, 234, 230), False),
    "forest": (forest, (0.86, 0.92), (112, 158, 110), True),
    "desert": (desert, (0.86, 0.92), (240, 180, 120), False),
    "rain": (rain, (0.86, 0.92), (138, 150, 168), True),
    "meadow": (meadow, (0.86, 0.92), (150, 210, 160), False),
    "sunset": (sunset, (0.86, 0.93), (190, 90, 110), True),
    "red": (_flat((222, 62, 62)), (0.86, 0.92), (222, 62, 62), False),
    "blue": (_flat((58, 112, 222)), (0.86, 0.92), (58, 112, 222), False),
    "yellow": (_flat((252, 210, 66)), (0.86, 0.92), (252, 210, 66), False),
}


def shadow(stage: Stage, x: float, y: float, half: float, dark: Colour) -> None:
    """A soft shadow on the ground: two translucent discs."""
    s = stage.size
    for grow_by, alpha in ((1.12, 40), (0.9, 60)):
        mask = Image.new("L", (max(2, round(2 * half * grow_by * s)), max(2, round(0.07 * s * grow_by))))
        ImageDraw.Draw(mask).ellipse((0, 0, mask.width - 1, mask.height - 1), fill=alpha)
        stage.image.paste(dark, (round(x * s - mask.width / 2), round(y * s - mask.height / 2)), mask)
