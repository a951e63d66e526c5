"""The sheet of maps: a row for each level of the UNet, in it every layer's map and a convolution's atoms.

Laid out in units of which the map of a 3×3 convolution has 9 a side; the axes' own coordinates are these
units, y down.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from atomdiff.evaluation.layer_maps import LayerMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"down": "#2a8c82", "mid": "#d9902f", "up": "#7659a8", "other": "#6b7280"}
PAPER, INK, FAINT, RULE = "#faf9f7", "#2b2a29", "#85817c", "#e3e0db"
CHANGES, SHAPES = "RdBu_r", "gray"  # colour maps: of what was learned, around 0; of atoms, which are patterns

MARGIN, LEFT, RIGHT = 0.047, 0.108, 0.023  # parts of the width: before texts, before and after all tiles
MIDDLE, NARROWEST = 8.0, 230.0  # from convolutions to linear layers; all tiles, lest few become huge
MAP, ATOMS, BLOCKS, GAP = 9.5, 11.5, 11.0, 1.8  # sides of a map, of atoms, of a block map; between them
AFTER = {"conv": 4.5, "linear": 3.0}  # between the tiles of one layer and the next
MOST = {"conv": 7, "linear": 12}  # layers in a line
MOST_WITH_BASES = 4  # convolutions in a line where each also shows the atoms that it began with
HEAD, ROW_GAP = 22.0, 5.0
LINE = {"conv": 17.5, "linear": 17.0}  # height of a line of tiles with the names above them


@dataclass(frozen=True, eq=False)
class _Plan:
    """How many tiles a line holds, and what has full colour: the largest number but a few, over all layers.

    `basis` is the one that all convolutions start from, drawn once; None if each has its own.
    """

    rows: dict[str, dict[str, list[LayerMap]]]  # level -> its convolutions and its linear layers
    basis: LayerMap | None
    per_line: dict[str, int]
    conv_limit: float
    linear_limit: float
    atoms_limit: float

    @property
    def cell(self) -> float:
        """Width of a convolution's tiles: its map, its atoms before unless drawn once, and after."""
        return MAP + GAP + ATOMS + AFTER["conv"] + (0 if self.basis else ATOMS + GAP)

    @property
    def width(self) -> float:
        """Of the whole sheet."""
        tiles = self.per_line["conv"] * self.cell + self.per_line["linear"] * (BLOCKS + AFTER["linear"])
        return max(NARROWEST, tiles + MIDDLE) / (1 - LEFT - RIGHT)

    @property
    def linear_start(self) -> float:
        """Where the linear layers begin."""
        conv = self.per_line["conv"]
        return LEFT * self.width + (conv * self.cell + MIDDLE if conv else 0)

    @property
    def height(self) -> float:
        """Of the whole sheet."""
        return HEAD + sum(self.row_height(level) for level in self.rows)

    def row_height(self, level: str) -> float:
        """Height of a level's row, with the gap below."""
        counts = {kind: len(items) for kind, items in self.rows[level].items()}
        return max(-(-counts[kind] // max(1, self.per_line[kind])) * LINE[kind] for kind in counts) + ROW_GAP


def height(layers: Sequence[LayerMap], width: float) -> float:
    """How high the sheet of these layers is at this width, in the same unit."""
    plan = _plan(layers)
    return plan.height * width / plan.width


def draw(axes: Axes, layers: Sequence[LayerMap]) -> None:
    """Draws the sheet into axes of the proportions that `height` tells."""
    plan = _plan(layers)
    axes.axis("off")
    _heads(axes, plan)
    left, right, y = MARGIN * plan.width, (1 - RIGHT) * plan.width, HEAD
    for level, row in plan.rows.items():
        colour = COLOURS[next(layer for items in row.values() for layer in items).block]
        axes.plot([left, right], [y - 3.2] * 2, color=RULE, lw=0.8)
        axes.text(left, y + 8.3, level, color=colour, weight="bold", fontsize=11, va="center")
        for i, layer in enumerate(row["conv"]):
            line, column = divmod(i, plan.per_line["conv"])
            _convolution(axes, plan, layer, LEFT * plan.width + column * plan.cell, y + line * LINE["conv"])
        for i, layer in enumerate(row["linear"]):
            line, column = divmod(i, plan.per_line["linear"])
            x = plan.linear_start + column * (BLOCKS + AFTER["linear"])
            _blocks(axes, plan, layer, x, y + line * LINE["linear"])
        y += plan.row_height(level)
    axes.set(xlim=(0, plan.width), ylim=(plan.height, 0), aspect="auto")  # imshow changed them


def short_name(layer: str) -> str:
    """A layer's name within its level: `res 0.1`, `attn 0 q`, `downsample`."""
    for pattern, made in (
        (r"resnets\.(\d+)\.conv(\d)", r"res \1.\2"),
        (r"attentions\.(\d+)\.transformer_blocks\.0\.attn2\.to_(q|k|v|out)", r"attn \1 \2"),
        (r"attentions\.(\d+)\.transformer_blocks\.(\d+)\.attn(\d)\.to_(q|k|v|out)", r"attn \1.\2.\3 \4"),
        (r"(down|up)samplers", r"\1sample"),
        (r"^conv_(in|out)$", "conv"),
    ):
        found = re.search(pattern, layer)
        if found:
            return found.expand(made)
    return ".".join(layer.split(".")[-2:])[-14:]


def _plan(layers: Sequence[LayerMap]) -> _Plan:
    rows: dict[str, dict[str, list[LayerMap]]] = {}
    for layer in layers:
        row = rows.setdefault(layer.level, {"conv": [], "linear": []})
        row["linear" if layer.before is None else "conv"].append(layer)
    conv = [layer for layer in layers if layer.before is not None]
    linear = [layer for layer in layers if layer.before is None]
    alike = bool(conv) and all(_same(layer.before, conv[0].before) for layer in conv)
    most = MOST if alike else MOST | {"conv": MOST_WITH_BASES}
    per_line = {
        kind: min(most[kind], max((len(row[kind]) for row in rows.values()), default=0)) for kind in most
    }
    return _Plan(
        rows,
        conv[0] if alike else None,
        per_line,
        _limit([layer.map for layer in conv]),
        _limit([layer.map for layer in linear]),
        _limit([layer.after for layer in conv]),
    )


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and torch.equal(a, b)


def _limit(tensors: Sequence[Any]) -> float:
    numbers = np.concatenate([np.abs(tensor.numpy()).ravel() for tensor in tensors] or [np.zeros(1)])
    return float(np.quantile(numbers, 0.995)) or 1.0


def _heads(axes: Axes, plan: _Plan) -> None:
    """Titles of the two columns, each with what its tiles are."""
    if plan.per_line["conv"]:
        then = (
            "then its atoms as they are now" if plan.basis else "then its atoms before, and as they are now"
        )
        _head(
            axes,
            MARGIN * plan.width,
            "What each convolution learned",
            f"the map M (±{plan.conv_limit:.2g}), {then}",
        )
        if plan.basis is not None and plan.basis.before is not None:
            x = plan.linear_start - MIDDLE - AFTER["conv"] - ATOMS
            _image(
                axes, _atoms(plan.basis.before, plan.basis.kernel), x, 1.5, ATOMS, plan.atoms_limit, SHAPES
            )
            axes.text(x - 2, 7.2, "all began\nwith these", ha="right", fontsize=9, color=FAINT, va="center")
    if plan.per_line["linear"]:
        about = f"the map of its blocks (±{plan.linear_limit:.2g}); 0 k: keys of attention 0"
        start = plan.linear_start if plan.per_line["conv"] else MARGIN * plan.width
        _head(axes, start, "What each linear layer learned", about)


def _head(axes: Axes, x: float, title: str, about: str) -> None:
    axes.text(x, 4, title, fontsize=12, weight="bold", color=INK, va="center")
    axes.text(x, 10, about, fontsize=9, color=FAINT, va="center")


def _convolution(axes: Axes, plan: _Plan, layer: LayerMap, x: float, y: float) -> None:
    axes.text(x, y, _name(layer), fontsize=7.5, color=FAINT, va="center")
    _image(axes, layer.map, x, y + 2.6 + (ATOMS - MAP) / 2, MAP, plan.conv_limit, CHANGES)
    x += MAP + GAP
    for atoms in (layer.after,) if plan.basis else (layer.before, layer.after):
        assert atoms is not None
        _image(axes, _atoms(atoms, layer.kernel), x, y + 2.6, ATOMS, plan.atoms_limit, SHAPES)
        x += ATOMS + GAP


def _blocks(axes: Axes, plan: _Plan, layer: LayerMap, x: float, y: float) -> None:
    axes.text(x, y, _name(layer).removeprefix("attn "), fontsize=7.5, color=FAINT, va="center")
    _image(axes, layer.map, x, y + 2.6, BLOCKS, plan.linear_limit, CHANGES)


def _name(layer: LayerMap) -> str:
    """The short name, with how much the map explains where that is not everything."""
    return short_name(layer.layer) + (f" ({layer.share:.0%})" if layer.share < 0.995 else "")


def _atoms(atoms: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Atoms (m, kh kw) side by side, about as many across as down, NaN between them."""
    (m, _), (kh, kw) = atoms.shape, kernel
    columns = int(np.ceil(m**0.5))
    lines = -(-m // columns)
    sheet = torch.full((lines * (kh + 1) - 1, columns * (kw + 1) - 1), torch.nan)
    for i, atom in enumerate(atoms):
        top, left = i // columns * (kh + 1), i % columns * (kw + 1)
        sheet[top : top + kh, left : left + kw] = atom.view(kh, kw)
    return sheet


def _image(axes: Axes, numbers: Tensor, x: float, y: float, side: float, limit: float, colours: str) -> None:
    """A tile with its upper left corner at (x, y), its longer side of the given length."""
    rows, columns = numbers.shape
    wide, tall = side * columns / max(rows, columns), side * rows / max(rows, columns)
    axes.imshow(
        numbers.numpy(), cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest",
        extent=(x, x + wide, y + tall, y), aspect="auto",
    )  # fmt: skip
