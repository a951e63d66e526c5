"""Figures of what a concept learned: how far each layer moves, its maps, its atoms before and after.

Every function makes a Figure of its own, without pyplot and its global state, so that threads may draw at
once; `picture` turns one into a PIL image.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from atomdiff.concept.concept import Concept
from atomdiff.core.blocks import level_of
from atomdiff.evaluation import map_sheet
from atomdiff.evaluation.drift import LayerDrift, by_block, total
from atomdiff.evaluation.layer_maps import LayerMap
from atomdiff.evaluation.map_sheet import COLOURS, FAINT, INK, PAPER, RULE
from atomdiff.files.fonts import font_for, showable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from PIL.Image import Image

WIDTH = 15.0  # inches
DPI = 130


def learned_figure(concept: Concept, layers: Sequence[LayerMap], drifts: Sequence[LayerDrift]) -> Figure:
    """Everything on one sheet: title, drift per layer, maps and atoms per layer."""
    bars, maps = 2.5, map_sheet.height(layers, WIDTH)
    figure = _figure(height=1.7 + bars + 0.7 + maps)
    _title(figure, concept, total(drifts))
    _draw_drift(_axes(figure, 1.7, bars, left=0.7), drifts)
    map_sheet.draw(_axes(figure, 1.7 + bars + 0.7, maps, left=0.0), layers)
    return figure


def drift_figure(drifts: Sequence[LayerDrift]) -> Figure:
    """A bar for each layer, ‖ΔW‖ / ‖W‖, coloured by block."""
    figure = _figure(height=3.4)
    _draw_drift(_axes(figure, 0.7, 2.3, left=0.7), drifts)
    return figure


def maps_figure(layers: Sequence[LayerMap]) -> Figure:
    """The map of each layer, with the atoms before and after of a convolution; a row for each level."""
    height = map_sheet.height(layers, WIDTH)
    figure = _figure(height)
    map_sheet.draw(_axes(figure, 0, height, left=0.0), layers)
    return figure


def picture(figure: Figure, dpi: int = DPI) -> Image:
    """The figure as an RGB picture."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor=PAPER)
    return Image.open(buffer).convert("RGB")


# ------------------------------------------------------------------------------------------------ drift


def _draw_drift(axes: Axes, drifts: Sequence[LayerDrift]) -> None:
    heights = [100 * item.ratio for item in drifts]
    tops = max([*heights, 1e-9]) * 1.16
    for x, (item, height) in enumerate(zip(drifts, heights, strict=True)):
        axes.bar(x, height, 0.78, color=COLOURS[item.block], alpha=1.0 if item.spatial else 0.42, lw=0)
    axes.set(xlim=(-0.8, len(drifts) - 0.2), ylim=(0, tops))
    axes.set_title("How far each layer moves", loc="left", fontsize=12, color=INK, weight="bold", pad=20)
    axes.text(
        1, 1.075, "‖ΔW‖ / ‖W‖ in per cent;  strong colour: convolutions, pale: linear layers",
        transform=axes.transAxes, ha="right", color=FAINT, fontsize=9,
    )  # fmt: skip
    averages = by_block(drifts)
    for block, span in _spans([item.block for item in drifts]):
        axes.text(
            (span[0] + span[1]) / 2, tops * 0.985, f"{block}  {averages[block]:.1%}",
            ha="center", va="top", fontsize=9.5, weight="bold", color=COLOURS[block],
        )  # fmt: skip
    levels = list(_spans([level_of(item.layer) for item in drifts]))
    for _, span in levels[1:]:
        axes.axvline(span[0] - 0.5, color=RULE, lw=0.8, zorder=0)
    axes.set_xticks([(a + b) / 2 for _, (a, b) in levels], [name for name, _ in levels])
    axes.tick_params(length=0, labelsize=8.5, labelcolor=FAINT)
    axes.yaxis.grid(True, color=RULE, lw=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def _spans(names: Sequence[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Runs of equal names, with the first and the last place of each."""
    start = 0
    for i, name in enumerate(names):
        if i + 1 == len(names) or names[i + 1] != name:
            yield name, (start, i)
            start = i + 1


# ------------------------------------------------------------------------------------------------ sheets


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), facecolor=PAPER)


def _axes(figure: Figure, top: float, height: float, left: float) -> Axes:
    """Axes of `height` inches, `top` inches below the upper edge, over the whole width but the margins."""
    whole = figure.get_figheight()
    width = (WIDTH - left - 0.35) / WIDTH if left else 1.0
    axes = figure.add_axes((left / WIDTH, 1 - (top + height) / whole, width, height / whole))
    axes.set_facecolor(PAPER)
    return axes


def _title(figure: Figure, concept: Concept, drift: float) -> None:
    whole = figure.get_figheight()
    steps = concept.training.get("steps")
    facts = [
        f"“{concept.trigger}”" if concept.trigger else "",
        f"on {concept.base.name or concept.base.architecture}",
        f"{concept.num_parameters():,} numbers",
        f"{steps:,} steps" if isinstance(steps, int) else "",
        f"weights moved by {drift:.1%}",
    ]
    at = 0.7 / WIDTH
    name = showable(concept.title)[:60]
    line = "   ·   ".join(filter(None, map(showable, facts)))[:160]
    for text, drop, size, weight, colour in (
        (name, 0.55, 24, "bold", INK),
        (line, 0.88, 11, "normal", FAINT),
    ):
        figure.text(
            at,
            1 - drop / whole,
            _plain(text),
            fontproperties=_font_for(text),
            fontsize=size,
            weight=weight,
            color=colour,
        )


def _font_for(text: str) -> FontProperties | None:
    """One of the system's fonts, where matplotlib's own lacks letters."""
    from matplotlib.font_manager import FontProperties

    file = getattr(font_for(text, 24), "path", "")
    return FontProperties(fname=file) if isinstance(file, str) and "DejaVu" not in file else None


def _plain(text: str) -> str:
    """A stranger's text is no formula: matplotlib reads what stands between dollars as one."""
    return text.replace("$", r"\$")
