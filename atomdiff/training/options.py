"""Fields of a settings class that say all that flags, forms and checks are made from."""

import dataclasses
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atomdiff.concept.contents import MAX_TEXT
from atomdiff.errors import SettingsError


@dataclass(frozen=True)
class Range:
    """Values that can work, as a sentence puts them."""

    wanted: str
    holds: Callable[[Any], Any]


FROM_0 = Range("at least 0", lambda value: value >= 0)
FROM_1 = Range("at least 1", lambda value: value >= 1)
ABOVE_0 = Range("a number above 0", lambda value: value > 0)
SHARE = Range("from 0 to 1", lambda value: 0 <= value <= 1)
DECAY = Range("at least 0 and below 1", lambda value: 0 <= value < 1)
TEXT = Range(  # goes into the concept file: no control characters, no endless texts
    f"one line of printable text, at most {MAX_TEXT} characters",
    lambda text: text.isprintable() and len(text) <= MAX_TEXT,
)
FILE_NAME = Range(
    f"a plain file name, at most {MAX_TEXT} characters",
    lambda name: TEXT.holds(name) and Path(name).name == name and name != "..",
)


def option(
    default: Any,
    help_text: str,
    *aliases: str,
    choices: tuple[str, ...] = (),
    within: Range | None = None,
    inert: bool = False,
) -> Any:
    """A field with its help text, and what its value must be if it is not None; `inert` fields cannot change
    the numbers that training arrives at."""
    if choices:
        within = Range(f"one of {', '.join(choices)}", choices.__contains__)
    metadata = {"help": help_text, "aliases": aliases, "choices": choices, "within": within, "inert": inert}
    return field(default=default, metadata=metadata)


def check(settings: Any) -> None:
    """Types, then ranges. Integers are accepted for floats and lists for tuples, and put in their place;
    nothing else is converted. Raises SettingsError for the first field that cannot work."""
    items = dataclasses.fields(settings)
    for item in items:
        value = getattr(settings, item.name)
        converted = _of_type(item, value)
        if converted is not value:
            object.__setattr__(settings, item.name, converted)
    for item in items:
        value, within = getattr(settings, item.name), item.metadata["within"]
        if within and value is not None and not within.holds(value):
            raise _refused(item.name, within.wanted, value)


def _of_type(item: "dataclasses.Field[Any]", value: Any) -> Any:
    kinds = typing.get_args(item.type) or (item.type,)
    if value is None and type(None) in kinds:
        return value
    if typing.get_origin(item.type) is tuple:
        value = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        if not all(type(part) is str for part in value):
            raise _refused(item.name, "a list of texts", value)
        return value
    if kinds[0] is float and type(value) is int:
        value = float(value)
    if type(value) not in kinds:
        raise _refused(item.name, f"of type {kinds[0].__name__}", value)
    if kinds[0] is float and not abs(value) < float("inf"):
        raise _refused(item.name, "a finite number", value)
    return value


def _refused(name: str, wanted: str, value: Any) -> SettingsError:
    shown = repr(value)
    shown = shown if len(shown) <= 100 else f"{shown[:60]}..."
    return SettingsError(f"--{name} must be {wanted}, but {shown} was given.")
