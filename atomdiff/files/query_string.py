"""The two fields of a concept file that hold several values, written like a query string:
`num_atoms=9&basis=dct`. A third shorter than JSON within JSON, and as legible.

`spec` must be known whole, since it tells what the numbers mean; `training` may say anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any
from urllib.parse import parse_qsl, urlencode

from atomdiff.core.spec import AtomSpec
from atomdiff.errors import ConceptError, SettingsError

ALWAYS = ("num_atoms", "basis", "conv_layers", "linear_atoms", "linear_block")
"""Fields of the spec that are written even if they are as usual; the others were added later."""
MAX_FIELDS = 100
MAX_PATTERN = 200  # letters
_RISKY_PATTERN = re.compile(  # a repeated group, a back reference or flags, doubled signs, many repetitions
    r"\)[*+{]|\\\d|\(\?[^:]|\[\[|--|&&|~~|\|\||([*+{].*){5}", re.DOTALL
)
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")

Summary = Mapping[str, str | int | float]


def query(values: Mapping[str, Any]) -> str:
    """The values as one line."""
    return urlencode(values, safe="/:,.*()^$|[]")


def spec_text(spec: AtomSpec) -> str:
    """The field `spec`."""
    values = {
        item.name: getattr(spec, item.name)
        for item in fields(AtomSpec)
        if item.name in ALWAYS or getattr(spec, item.name) != item.default
    }
    return query({key: value for key, value in values.items() if value != ""})


def spec_of(text: str) -> AtomSpec:
    """Inverse of `spec_text`. Raises ConceptError."""
    known = {item.name: type(item.default) for item in fields(AtomSpec)}
    values: dict[str, Any] = {}
    for key, value in _pairs(text).items():
        if key not in known:
            raise ConceptError(
                f"The concept's spec has a field {key[:60]!r} that is unknown here: update atomdiff."
            )
        if len(value) >= MAX_PATTERN:
            raise ConceptError(f"The concept's spec has a {key} of {len(value)} letters: it was altered.")
        values[key] = _field(known[key], value)
    try:
        _check_patterns(values.get("conv_layers", ""), values.get("linear_atoms", ""))
        return AtomSpec(**values)
    except SettingsError as error:
        raise ConceptError(f"The concept's spec cannot be right: {error}") from None


def training_text(training: Summary) -> str:
    """The field `training`."""
    return query({key: _text(value) for key, value in training.items()})


def training_of(text: str) -> dict[str, str | int | float]:
    """Inverse of `training_text`. Raises ConceptError."""
    return {key: _value(value) for key, value in _pairs(text).items()}


def check_patterns(spec: AtomSpec) -> None:
    """Refuses layer patterns that no reader would run: a stranger's file must not keep a computer busy.

    That is a repeated group, a back reference, inline flags, a set that Python warns of, more than four
    repetitions, or 200 and more letters. To be asked before training, since `to_bytes` asks too. Raises
    SettingsError.
    """
    _check_patterns(spec.conv_layers, spec.linear_atoms)


def _check_patterns(*patterns: str) -> None:
    """Before they are compiled, which some take long for as well."""
    for pattern in patterns:
        if len(pattern) >= MAX_PATTERN or _RISKY_PATTERN.search(pattern):
            raise SettingsError(
                f"The layer pattern {pattern[:60]!r} could take for ever to search: use one without repeated "
                "groups, back references, inline flags, doubled signs and more than four repetitions."
            )


def _pairs(text: str) -> dict[str, str]:
    """Inverse of `query`, all values as texts. Raises ConceptError."""
    if not text:
        return {}
    try:
        found = parse_qsl(
            text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=MAX_FIELDS
        )
    except ValueError:
        raise ConceptError(
            f"The file has a field that cannot be read: {text[:60]!r}; get it again."
        ) from None
    made = dict(found)
    if len(made) != len(found):
        raise ConceptError(f"The file has a field that says something twice: {text[:60]!r}; get it again.")
    return made


def _field(kind: type, text: str) -> int | float | str:
    """A value of the spec; as it is, to be refused later, where it is no number that is written."""
    if kind is int and re.fullmatch(r"[0-9]{1,7}", text):
        return int(text)
    return float(text) if kind is float and len(text) < 40 and _NUMBER.fullmatch(text) else text


def _text(value: str | int | float) -> str:
    """Numbers as they are; a text that would read as one, or starts with a quote, is quoted."""
    if not isinstance(value, str):
        return repr(value)
    return json.dumps(value, ensure_ascii=False) if _NUMBER.fullmatch(value) or value[:1] == '"' else value


def _value(text: str) -> str | int | float:
    if _NUMBER.fullmatch(text) and len(text) < 40:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    try:
        return str(json.loads(text)) if text[:1] == '"' else text
    except ValueError:
        raise ConceptError(f"The training summary has a value that cannot be read: {text[:60]!r}.") from None
