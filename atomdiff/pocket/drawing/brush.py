"""Shapes, the display list of a figure, and how a figure is painted.

A figure is drawn in its own units (about 100 high, y downwards) as a list of parts; `place` maps it into the
frame by one similarity, so that nothing can hang off the edge; `paint` then draws it with its pattern, its
shading and its outline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageChops, ImageDraw

Colour = tuple[int, int, int]
Points = np.ndarray  # (n, 2) float
Shape = tuple[float, ...]  # six numbers in [0, 1]

INK: Colour = (43, 36, 56)
CREAM: Colour = (255, 248, 234)


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """The colour a fraction t of the way from a to b."""
    return (round(a[0] + (b[0] - a[0]) * t), round(a[1] + (b[1] - a[1]) * t), round(a[2] + (b[2] - a[2]) * t))


def luminance(c: Colour) -> float:
    """Perceived brightness in [0, 255]."""
    return 0.3 * c[0] + 0.59 * c[1] + 0.11 * c[2]


def outline_of(c: Colour) -> Colour:
    """The tinted dark that outlines a fill: a deep shade of it, never pure black."""
    return mix(c, INK, 0.9) if luminance(c) < 60 else mix(mix(c, INK, 0.62), (0, 0, 0), 0.08)


# ---------------------------------------------------------------- geometry
def span(s: float, low: float, high: float) -> float:
    """The number a fraction s of the way from low to high."""
    return low + (high - low) * s


def ellipse(
    cx: float, cy: float, rx: float, ry: float | None = None, turn: float = 0.0, n: int = 30
) -> Points:
    """An ellipse as a polygon; turn in degrees."""
    a = np.linspace(0, 2 * math.pi, n, endpoint=False)
    p = np.stack([rx * np.cos(a), (rx if ry is None else ry) * np.sin(a)], axis=1)
    return rotate(p, turn) + np.array((cx, cy))


def rotate(p: Points, degrees: float) -> Points:
    """p turned about the origin (clockwise on screen)."""
    if not degrees:
        return p
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return p @ np.array([[c, s], [-s, c]])


def blob(*knots: tuple[float, float], n: int = 6) -> Points:
    """A closed Catmull-Rom curve through the knots."""
    p = np.asarray(knots, float)
    t = np.linspace(0, 1, n, endpoint=False)[:, None, None]
    a, b, c, d = np.roll(p, 1, 0), p, np.roll(p, -1, 0), np.roll(p, -2, 0)
    out = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return out.transpose(1, 0, 2).reshape(-1, 2)


def box(x0: float, y0: float, x1: float, y1: float, r: float = 0.0) -> Points:
    """A rectangle with corners rounded by r."""
    if r <= 0:
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)
    corners = ((x1 - r, y0 + r, -90), (x1 - r, y1 - r, 0), (x0 + r, y1 - r, 90), (x0 + r, y0 + r, 180))
    a = np.radians(np.linspace(0, 90, 6))
    return np.concatenate(
        [np.stack([cx + r * np.cos(a + math.radians(s)), cy + r * np.sin(a + math.radians(s))], 1)
         for cx, cy, s in corners]
    )  # fmt: skip


def tube(*knots: tuple[float, float], w0: float, w1: float | None = None, n: int = 12) -> Points:
    """A tapered tube with round ends along the quadratic curve of three knots (or the segment of two)."""
    k = np.asarray(knots, float)
    if len(k) == 2:
        k = np.stack([k[0], (k[0] + k[1]) / 2, k[1]])
    t = np.linspace(0, 1, n)[:, None]
    mid = (1 - t) ** 2 * k[0] + 2 * t * (1 - t) * k[1] + t**2 * k[2]
    tangent = 2 * (1 - t) * (k[1] - k[0]) + 2 * t * (k[2] - k[1])
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-6)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
    r = (w0 + ((w0 if w1 is None else w1) - w0) * t) / 2
    a = np.radians(np.linspace(90, -90, 7))[1:-1, None]

    def cap(i: int, sign: float) -> Points:
        return mid[i] + r[i] * (np.cos(a) * tangent[i] * sign + np.sin(a) * normal[i] * sign)

    return np.concatenate([mid + normal * r, cap(-1, 1.0), (mid - normal * r)[::-1], cap(0, -1.0)])


def star(cx: float, cy: float, r: float, inner: float = 0.46, turn: float = 0.0) -> Points:
    """A five-pointed star."""
    a = np.radians(np.arange(10) * 36 - 90 + turn)
    rr = np.where(np.arange(10) % 2 == 0, r, r * inner)
    return np.stack([cx + rr * np.cos(a), cy + rr * np.sin(a)], 1)


# ---------------------------------------------------------------- figures
@dataclass(frozen=True)
class Part:
    """One polygon of a figure. `coat`: the subject's pattern is seen on it."""

    points: Points
    fill: Colour
    coat: bool = False
    line: Colour | None = None  # None: no outline


@dataclass
class Figure:
    """A subject being drawn: its colours, its parts from back to front, and where things can be worn.

    Anchors: `top` (where a hat sits) with `head` (head width), `eyes` (two points), `eye` (radius), `neck`
    with `neck_width`, `back` (where wings grow).
    """

    main: Colour
    second: Colour
    parts: list[Part] = field(default_factory=list)
    top: tuple[float, float] = (50, 0)
    head: float = 40
    eyes: tuple[tuple[float, float], ...] = ()
    eye: float = 5
    neck: tuple[float, float] = (50, 50)
    neck_width: float = 30
    back: tuple[float, float] = (50, 40)

    def coat(self, points: Points, fill: Colour | None = None) -> None:
        """A part that carries the pattern."""
        fill = fill or self.main
        self.parts.append(Part(points, fill, True, outline_of(fill)))

    def part(self, points: Points, fill: Colour, line: bool = True) -> None:
        """A part without the pattern."""
        self.parts.append(Part(points, fill, False, outline_of(fill) if line else None))

    def face(
        self, cx: float, cy: float, gap: float, r: float, cheeks: bool = True, skin: Colour | None = None
    ) -> None:
        """Two big friendly eyes a gap apart, and cheeks, on bare skin that keeps the pattern off them."""
        self.eyes, self.eye = ((cx - gap / 2, cy), (cx + gap / 2, cy)), r
        for x, y in self.eyes:
            self.part(ellipse(x, y + r * 0.2, r * 1.45, r * 1.65), skin or self.main, False)
        if cheeks:
            for s in (-1, 1):
                self.part(
                    ellipse(cx + s * (gap / 2 + r * 0.95), cy + r * 1.75, r * 0.8, r * 0.5),
                    (255, 150, 150),
                    False,
                )
        for x, y in self.eyes:
            self.one_eye(x, y, r)

    def one_eye(self, x: float, y: float, r: float) -> None:
        """A white eye with a large pupil and a highlight."""
        self.part(ellipse(x, y, r, r * 1.12), (255, 255, 255))
        self.part(ellipse(x + r * 0.08, y + r * 0.1, r * 0.68, r * 0.8), INK, False)
        self.part(ellipse(x + r * 0.3, y - r * 0.3, r * 0.28), (255, 255, 255), False)


@dataclass(frozen=True)
class Placement:
    """The similarity from a figure's units to pixels: p -> k R(tilt) F (p - centre) + at."""

    k: float
    tilt: float
    flip: bool
    at: tuple[float, float]

    def __call__(self, p: Points) -> Points:
        q = p * (-self.k if self.flip else self.k, self.k)
        return rotate(q, self.tilt) + self.at


def place(figure: Figure, size: float, scale: float, x: float, foot: float, tilt: float, flip: bool,
          centred: bool, widest: float = 0.82,
          ) -> tuple[Placement, tuple[float, float, float, float]]:  # fmt: skip
    """Put a figure into a frame of `size` pixels, always inside it; returns its box in pixels too.

    scale: side of the square (a fraction of the frame) that has the figure's area; x: its centre; foot: its
    lowest point, or its centre if `centred`; tilt in degrees; widest: the most it may take of the frame.
    """
    p = Placement(1.0, tilt, flip, (0.0, 0.0))(np.concatenate([part.points for part in figure.parts]))
    lo, hi = p.min(0), p.max(0)
    w, h = hi - lo
    margin = 0.035
    k = min(scale / math.sqrt(h * max(w, 0.55 * h)), 0.76 / h, widest / w)
    if centred:
        foot = min(max(foot + k * h / 2, margin + k * h), 1 - margin)
    k = min(k, (foot - margin) / h)
    x = min(max(x, margin + k * w / 2), 1 - margin - k * w / 2)
    at = (size * (x - k * (lo[0] + hi[0]) / 2), size * (foot - k * hi[1]))
    bounds = (size * (x - k * w / 2), size * (foot - k * h), size * (x + k * w / 2), size * foot)
    return Placement(k * size, tilt, flip, at), bounds


def _flat(points: Points) -> list[float]:
    return points.ravel().tolist()


def _stroke(draw: ImageDraw.ImageDraw, xy: list[float], fill: Colour | int, width: int) -> None:
    draw.line(xy + xy[:4], fill=fill, width=width, joint="curve" if len(xy) < 26 else None)


def paint(image: Image.Image, figure: Figure, where: Placement, bounds: tuple[float, float, float, float],
          motif: list[Points], line: float, halo: Colour | None) -> Image.Image:  # fmt: skip
    """Draw a figure: halo, parts with outlines, the pattern (`motif`, in figure units) on its coat, shading.

    line: width of the outlines as a fraction of the frame, 0 for none. Returns the silhouette (mode L).
    """
    draw = ImageDraw.Draw(image)
    size = image.size[0]
    width = max(1, round(line * size))
    flat = [_flat(where(part.points)) for part in figure.parts]
    if halo is not None:
        for part, xy in zip(figure.parts, flat, strict=True):
            if part.line is not None:
                draw.line(xy + xy[:4], fill=halo, width=width * 3, joint="curve")
    silhouette = Image.new("L", image.size)
    whole = ImageDraw.Draw(silhouette)
    coat = Image.new("L", image.size) if motif else None
    on_coat = ImageDraw.Draw(coat) if coat is not None else None
    for part, xy in zip(figure.parts, flat, strict=True):
        draw.polygon(xy, fill=part.fill)
        whole.polygon(xy, fill=255)
        if on_coat is not None:
            on_coat.polygon(xy, fill=255 if part.coat else 0)
        if part.line is not None and line > 0:
            _stroke(draw, xy, part.line, width)
            if on_coat is not None:
                _stroke(on_coat, xy, 0, width)
    if coat is not None:
        pattern = Image.new("L", image.size)
        inked = ImageDraw.Draw(pattern)
        for p in motif:
            inked.polygon(_flat(where(p)), fill=255)
        image.paste(figure.second, mask=ImageChops.multiply(pattern, coat))
    _shade(image, silhouette, bounds)
    return silhouette


def _shade(image: Image.Image, silhouette: Image.Image, bounds: tuple[float, float, float, float]) -> None:
    """A soft light from above and a soft shade below, clipped to the silhouette."""
    x0, y0, x1, y1 = (int(v) for v in bounds)
    if x1 - x0 < 2 or y1 - y0 < 2:
        return
    window = (x0, y0, x1 + 1, y1 + 1)
    fall = Image.linear_gradient("L").resize((x1 + 1 - x0, y1 + 1 - y0), Image.Resampling.BILINEAR)
    clip = silhouette.crop(window)
    for tone, table in (
        ((255, 250, 235), [round(max(0.0, 0.5 - v / 255) * 0.36 * 255) for v in range(256)]),
        ((40, 20, 70), [round(max(0.0, v / 255 - 0.5) * 0.30 * 255) for v in range(256)]),
    ):
        image.paste(tone, window, ImageChops.multiply(fall.point(table), clip))
