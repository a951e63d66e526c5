"""How a placed figure on its painted backdrop becomes a picture: one function a style.

Each takes a `Job` and returns the RGB picture at `job.size`; the backdrop is painted larger and reduced here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from atomdiff.pocket.drawing.brush import Colour, Figure, Placement, Points, luminance, mix, paint

PAPER, GRAPHITE, VOID = (250, 246, 236), (74, 72, 82), (14, 9, 34)


@dataclass(frozen=True)
class Actor:
    """A figure in a picture: its place, its pattern, its rim."""

    figure: Figure
    where: Placement
    bounds: tuple[float, float, float, float]
    motif: list[Points]
    halo: Colour | None

    def paint(
        self, image: Image.Image, line: float, halo: Colour | None = None, figure: Figure | None = None
    ) -> Image.Image:
        """Draws it (or `figure` in its place) and returns the silhouette (mode L)."""
        return paint(image, figure or self.figure, self.where, self.bounds, self.motif, line, halo)

    def outline(self, draw: ImageDraw.ImageDraw, points: Points, fill: Colour, width: int) -> None:
        """Strokes a closed shape given in figure units."""
        xy = self.where(points).ravel().tolist()
        draw.line(xy + xy[:4], fill=fill, width=width)


@dataclass(frozen=True)
class Job:
    """One picture to finish: the backdrop, who is in it from back to front, the final size."""

    image: Image.Image
    actors: tuple[Actor, ...]
    size: int

    def width(self, fraction: float) -> int:
        """The width in pixels of a line so wide as a fraction of the frame."""
        return max(1, round(self.image.size[0] * fraction))


def drawing(job: Job) -> Image.Image:
    """The plain picture-book style."""
    for actor in job.actors:
        actor.paint(job.image, 0.0115, actor.halo)
    return job.image.resize((job.size, job.size), Image.Resampling.BOX)


def pixel(job: Job) -> Image.Image:
    """Pixel art: 32 x 32 square pixels of few tones, one dark outline around the whole."""
    draw = ImageDraw.Draw(job.image)
    for actor in job.actors:
        for part in actor.figure.parts:
            if part.line is not None:
                actor.outline(draw, part.points, (34, 26, 52), job.width(0.05))
        actor.paint(job.image, 0.0)
    tones = [min(255, (v // 32) * 36) for v in range(256)] * 3
    grid = job.image.resize((32, 32), Image.Resampling.BOX).point(tones)
    return grid.resize((job.size, job.size), Image.Resampling.NEAREST)


def _ragged_square(inset: float) -> Points:
    """The edge of a hastily filled square, inset from the frame, in frame units (112, 2)."""
    t = np.linspace(0, 1, 28, endpoint=False)
    wave = inset + 0.022 * np.sin(t * 61) * np.cos(t * 17)
    along = inset + t * (1 - 2 * inset)
    sides = ((along, wave), (1 - wave, along), (1 - along, 1 - wave), (wave, 1 - along))
    return np.concatenate([np.stack(np.broadcast_arrays(*side), 1) for side in sides])


def sketch(job: Job) -> Image.Image:
    """A coloured-pencil sketch: a faint scene on paper, hatching that lets it through, graphite lines."""
    big = job.image.size[0]
    pale = Image.new("RGB", job.image.size, PAPER)
    torn = Image.new("L", job.image.size)
    ImageDraw.Draw(torn).polygon((big * _ragged_square(0.06)).ravel().tolist(), fill=110)
    pale.paste(job.image, mask=torn)
    hatch = Image.new("L", job.image.size)
    strokes = ImageDraw.Draw(hatch)
    for x in range(-big, big, round(big * 0.04)):
        strokes.line((x, big, x + big, 0), fill=44, width=job.width(0.016))
    draw = ImageDraw.Draw(pale)
    for actor in job.actors:
        parts = [replace(part, line=part.line and GRAPHITE) for part in actor.figure.parts]
        figure = actor.paint(pale, 0.013, figure=replace(actor.figure, parts=parts))
        pale.paste(PAPER, mask=ImageChops.multiply(hatch, figure))
        for part in actor.figure.parts:
            if part.line is not None:
                again = part.points * 1.03 + np.array((-1.5, -2.6))
                actor.outline(draw, again, mix(GRAPHITE, PAPER, 0.2), job.width(0.005))
    return pale.resize((job.size, job.size), Image.Resampling.BOX)


def neon(job: Job) -> Image.Image:
    """Neon signs: glowing lines on near-black."""
    dark = Image.blend(Image.new("RGB", job.image.size, VOID), job.image, 0.22)
    lamps = dark.copy()
    glow = Image.new("RGB", job.image.size)
    pen = ImageDraw.Draw(glow)
    for actor in job.actors:
        figure = actor.paint(lamps, 0.0)
        dark.paste(lamps.point([round(v * 0.42) for v in range(256)] * 3), mask=figure)
        for part in actor.figure.parts:
            pen.polygon(actor.where(part.points).ravel().tolist(), fill=(0, 0, 0))
            if part.line is not None:
                light = mix(part.fill, (255, 255, 255), 0.4 if luminance(part.fill) < 100 else 0.12)
                actor.outline(pen, part.points, light, job.width(0.022))
    soft = glow.filter(ImageFilter.BoxBlur(job.image.size[0] * 0.022))
    lit = ImageChops.lighter(ImageChops.add(dark, soft), glow)
    return lit.resize((job.size, job.size), Image.Resampling.BOX)


FINISH: dict[str, Callable[[Job], Image.Image]] = {
    "drawing": drawing,
    "sketch": sketch,
    "pixel": pixel,
    "neon": neon,
}
