"""The results as pictures: likeness against bytes, and contact sheets of what was drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from atomdiff.sampling.sheets import contact_sheet, save_picture

from ..court import CONTEXTS
from .handmade import AS_OURS, BASE, FULL
from .ours import EVERYWHERE
from .running import slug, strip_path
from .tables import SMALL, Row
from .tasks import Task

FAMILIES = {"ours": ("o", "atomdiff"), "peer": ("s", "peers"), AS_OURS: ("D", "peers, as ours")}


def plot(rows: Sequence[Row], path: Path) -> None:
    """Likeness against bytes, drift as colour; the base and full fine-tuning as lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # Likeness is that of the default, whose point it would hide.
    shown = [r for r in rows if r.family in FAMILIES and r.method != EVERYWHERE.name]
    high = max([r.drift for r in shown], default=1.0)
    for family, (marker, named) in FAMILIES.items():
        some = [r for r in shown if r.family == family]
        if shown and not some:
            continue
        points = axes.scatter(
            [r.bytes for r in some],
            [r.likeness for r in some],
            c=[r.drift for r in some],
            marker=marker,
            cmap="viridis_r",
            vmin=0,
            vmax=high,
            s=60,
            edgecolors="#3c3a38",
            linewidths=0.6,
            label=named,
        )
    axes.set(xscale="log", xlabel="bytes on disk", ylabel="likeness")
    axes.margins(x=0.12)
    for row in rows:
        if row.method in (BASE.name, FULL.name):
            axes.axhline(row.likeness, color="#8a8680", linewidth=0.8, linestyle="--")
            right = axes.get_yaxis_transform()
            axes.text(1, row.likeness, row.label, transform=right, fontsize=8, ha="right", va="bottom")
    axes.axvline(SMALL, color="#8a8680", linewidth=0.8, linestyle=":")
    _label(axes, shown)  # now that the limits are known
    axes.legend(loc="upper left")
    figure.colorbar(points, label="drift")
    path.parent.mkdir(parents=True, exist_ok=True)  # of a report that nothing was drawn for
    figure.savefig(path, dpi=120)


DOT = 0.03  # half the width of a point, in log10 of bytes


def _label(axes: Any, rows: Sequence[Row]) -> None:
    """Names each point, away from the nearer edge; higher, on a stem, where a name or point is already."""
    low, high = axes.get_ylim()
    middle, line = math.sqrt(math.prod(axes.get_xlim())), 0.022 * (high - low)
    # From, to and height of every point and name, in log10 of bytes.
    points = [(math.log10(row.bytes), row.likeness) for row in rows]
    taken = [(at - DOT, at + DOT, height) for at, height in points]
    for row in sorted(rows, key=lambda row: row.likeness):
        side = "left" if row.bytes < middle else "right"
        at, width = math.log10(row.bytes), 0.045 * len(row.label)
        begin, end = (at + DOT, at + width) if side == "left" else (at - width, at - DOT)
        height = row.likeness
        while any(begin < e and b < end and abs(height - h) < line for b, e, h in taken):
            height += line / 4
        taken.append((begin, end, height))
        axes.plot([row.bytes] * 2, [row.likeness, height], color="#b8b4ae", linewidth=0.6, zorder=0)
        offset = (7 if side == "left" else -7, -3)
        axes.annotate(
            row.label, (row.bytes, height), xytext=offset, textcoords="offset points", fontsize=8, ha=side
        )


def sheets(rows: Sequence[Row], tasks: Sequence[Task], out: Path) -> None:
    """A sheet for each method: a row for each task, a picture for each context, the same seeds in all."""
    for row in rows:
        strips = [(task.name, strip_path(out, row.label, task.name)) for task in tasks]
        there = [(f"{row.label}: {name}", _cut(path)) for name, path in strips if path.exists()]
        if there:
            save_picture(contact_sheet(there), out / "sheets" / f"{slug(row.label)}.jpg")


def comparison(rows: Sequence[Row], task: Task, out: Path, path: Path) -> None:
    """One task, a row for each method; the picture stays as it is where a row was drawn in another place."""
    strips = [(row.label, strip_path(out, row.label, task.name)) for row in rows]
    missing = [label for label, strip in strips if not strip.exists()]
    if missing:
        print(f"{path} stays as it is: the pictures of {', '.join(missing)} are not in {out}")
        return
    there = [(label, _cut(strip)) for label, strip in strips]
    sheet = contact_sheet([("the five pictures", task.pictures), *there])
    save_picture(sheet.reduce(2) if len(there) > 20 else sheet, path)  # many rows make a page heavy


def _cut(path: Path) -> list[Image.Image]:
    strip = Image.open(path).convert("RGB")
    side = strip.width // len(CONTEXTS)
    return [strip.crop((i * side, 0, (i + 1) * side, strip.height)) for i in range(len(CONTEXTS))]
