"""X/Y/Z grids: the same picture over and over, with up to three settings changed along the axes.

    Grid(settings, x=Axis("strength", (0, 0.5, 1)), y=Axis("seed", (1, 2, 3)))

has a cell for every pair, rows under rows of y; a z axis gives one such table for each of its values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from atomdiff.errors import SettingsError
from atomdiff.sampling.settings import SAMPLERS, DrawingSettings

if TYPE_CHECKING:
    from PIL.Image import Image

    from atomdiff.concept.concept import Concept
    from atomdiff.core.blocks import Strength

MAX_CELLS = 400
NO_CONCEPT = "none"


@dataclass(frozen=True)
class Axis:
    """One setting and the values it takes; the values of "prompt" replace its first one in the prompt,
    those of "concept" are concepts or None."""

    kind: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SettingsError(f"A grid cannot go along {self.kind!r}: choose one of {', '.join(KINDS)}.")
        if not self.values:
            raise SettingsError(f"The axis {self.kind!r} has no values: write some, separated by commas.")

    def applied(self, settings: DrawingSettings, value: Any) -> DrawingSettings:
        """The settings at this value of the axis. Raises SettingsError where the prompt has no such part."""
        return KINDS[self.kind].apply(settings, self, value)

    def label(self, value: Any) -> str:
        """What stands beside a row or above a column."""
        if self.kind == "concept":
            return value.title if value is not None else "no concept"
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        return shown if self.kind in ("prompt", "sampler") else f"{KINDS[self.kind].title} {shown}"


@dataclass(frozen=True)
class Cell:
    """One picture of a grid: where it stands, what the axes say there, and how it is drawn."""

    x: int
    y: int
    z: int
    labels: tuple[str, ...]
    settings: DrawingSettings


@dataclass(frozen=True)
class Grid:
    """Settings and the axes along which they change. Raises SettingsError for what cannot be drawn."""

    settings: DrawingSettings
    x: Axis
    y: Axis | None = None
    z: Axis | None = None

    def __post_init__(self) -> None:
        kinds = [axis.kind for axis in self.axes]
        twice = next((kind for kind in kinds if kinds.count(kind) > 1 and kind != "prompt"), None)
        if twice:
            raise SettingsError(f"Two axes of the grid change {twice!r}: give each its own setting.")
        count = math.prod(len(axis.values) for axis in self.axes)
        if count > MAX_CELLS:
            raise SettingsError(f"The grid would have {count} pictures; at most {MAX_CELLS} are drawn.")
        self.cells()

    @property
    def axes(self) -> list[Axis]:
        """Those that there are: x, y, z."""
        return [axis for axis in (self.x, self.y, self.z) if axis is not None]

    def cells(self) -> list[Cell]:
        """Every picture: x changes fastest, then y, then z."""
        return [
            Cell(x, y, z, (*x_label, *y_label, *z_label), x_settings)
            for z, z_label, z_settings in _steps(self.z, self.settings)
            for y, y_label, y_settings in _steps(self.y, z_settings)
            for x, x_label, x_settings in _steps(self.x, y_settings)
        ]

    def sheet(self, images: Sequence[Image]) -> Image:
        """One labelled picture of all pictures, which are in the order of `cells`."""
        from atomdiff.sampling import sheets

        columns = [self.x.label(value) for value in self.x.values]
        rows = [self.y.label(value) for value in self.y.values] if self.y else [""]
        titles = [self.z.label(value) for value in self.z.values] if self.z else [""]
        size = len(columns) * len(rows)
        tables = [(title, list(images[i * size : (i + 1) * size])) for i, title in enumerate(titles)]
        return sheets.labelled_grid(columns, rows, tables)


@dataclass(frozen=True)
class Kind:
    """A setting that an axis can change: its name for people, how a value is written, and what it does."""

    title: str
    read: Callable[[str], Any]
    apply: Callable[[DrawingSettings, Axis, Any], DrawingSettings]


def parse_axis(kind: str, text: str, concept: Callable[[str], Concept] | None = None) -> Axis:
    """An axis from what a user wrote: values separated by commas (prompt parts may be separated by `|`);
    numbers also as `0..1 by 0.25` or `1..4`. `concept` finds one by its name. Raises SettingsError.
    """
    if kind not in KINDS:
        return Axis(kind, ())  # which says what there is
    separator = "|" if kind in ("prompt", "concept") and "|" in text else ","
    parts = [part.strip() for part in text.split(separator) if part.strip()]
    if kind == "concept":
        if concept is None:
            raise SettingsError("There are no concepts to choose from here.")
        return Axis(kind, tuple(None if part == NO_CONCEPT else concept(part) for part in parts))
    read = KINDS[kind].read
    if read in (_whole, _number):
        return Axis(kind, tuple(read(number) for part in parts for number in _expanded(part)))
    return Axis(kind, tuple(read(part) for part in parts))


def _steps(
    axis: Axis | None, settings: DrawingSettings
) -> Iterator[tuple[int, tuple[str, ...], DrawingSettings]]:
    if axis is None:
        yield 0, (), settings
        return
    for i, value in enumerate(axis.values):
        yield i, (axis.label(value),), axis.applied(settings, value)


def _expanded(part: str) -> list[str]:
    """`1..4` and `0..1 by 0.25` as their numbers; anything else as it is."""
    found = re.fullmatch(r"(-?[\d.]+)\s*\.\.\s*(-?[\d.]+?)(?:\s*by\s*([\d.]+))?", part)
    if found is None:
        return [part]
    first, last, step = _number(found[1]), _number(found[2]), _number(found[3] or "1")
    if step <= 0 or last < first or (last - first) / step > MAX_CELLS:
        raise SettingsError(f"{part!r} is no range that can be drawn: write 0..1 by 0.25, say.")
    count = int((last - first) / step + 1e-9) + 1
    return [f"{first + i * step:.10g}" for i in range(count)]


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SettingsError(f"{text!r} is not a number: write values separated by commas, 0.5, 1, say.")
    return value


def _whole(text: str) -> int:
    value = _number(text)
    if value != int(value):
        raise SettingsError(f"{text!r} is not a whole number: write values separated by commas, 1, 2, say.")
    return int(text) if re.fullmatch(r"-?\d+", text) else int(value)


def _sampler(text: str) -> str:
    names = {name: name for name in SAMPLERS} | {it.title.lower(): name for name, it in SAMPLERS.items()}
    if text.lower() not in names:
        raise SettingsError(f"There is no sampler {text!r}: choose one of {', '.join(SAMPLERS)}.")
    return names[text.lower()]


def _with_strength(settings: DrawingSettings, axis: Axis, value: float) -> DrawingSettings:
    if not settings.concepts:
        raise SettingsError("A grid along the strength needs a concept: choose one.")
    return replace(settings, concepts=tuple((concept, value) for concept, _ in settings.concepts))


def _with_concept(settings: DrawingSettings, axis: Axis, value: Concept | None) -> DrawingSettings:
    """The first concept is exchanged; the strength stays."""
    strength: Strength = settings.concepts[0][1] if settings.concepts else 1.0
    first = ((value, strength),) if value is not None else ()
    return replace(settings, concepts=(*first, *settings.concepts[1:]))


def _with_part(settings: DrawingSettings, axis: Axis, value: str) -> DrawingSettings:
    part = str(axis.values[0])
    if part not in settings.prompt:
        raise SettingsError(
            f"The prompt {settings.prompt!r} has no part {part!r}, which the other values are to replace: "
            "write first what stands in the prompt."
        )
    return replace(settings, prompt=settings.prompt.replace(part, value))


def _with(name: str) -> Callable[[DrawingSettings, Axis, Any], DrawingSettings]:
    return lambda settings, axis, value: replace(settings, **{name: value})


KINDS = {
    "strength": Kind("strength", _number, _with_strength),
    "seed": Kind("seed", _whole, _with("seed")),
    "steps": Kind("steps", _whole, _with("steps")),
    "guidance": Kind("CFG", _number, _with("guidance")),
    "sampler": Kind("sampler", _sampler, _with("sampler")),
    "concept": Kind("concept", str, _with_concept),
    "prompt": Kind("prompt", str, _with_part),
}
