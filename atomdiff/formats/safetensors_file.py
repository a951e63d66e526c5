"""The concept file: a safetensors file of a few KB, the same bytes for the same concept on every machine.

A file MUST
- be valid safetensors, with tensors in ascending order of their names, back to back from offset 0 (one
layout only,
  so that a checksum identifies a concept);
- hold one packed tensor a family, `conv` or `conv.KHxKW` (layers, m, k²) and `linear` (layers, kc², kc²),
and for a
  data-driven subspace `basis` or `basis.KHxKW` of the same shape, all fp16 or all fp32 (52 tensors would
  cost 5 KB more);
- carry the metadata below in the order of `_metadata`, then unknown keys in ascending order.

`format` is `atomdiff/1`. A reader refuses another major version, and any field of `spec` that it does not
know, since that would change what the numbers mean; it keeps every other unknown key. `spec` and `training`
are written like a query string (`steps=300&learning_rate=0.001`), a third shorter than JSON in JSON.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np
import torch
from torch import Tensor

from atomdiff.concept import Concept
from atomdiff.errors import ConceptError, SettingsError
from atomdiff.formats.files import write_atomically
from atomdiff.formats.header import Entry, parse_header, read_header
from atomdiff.inject import AtomSpec
from atomdiff.passport import BasePassport

FORMAT = "atomdiff/1"
BYTES = {"fp16": 2, "fp32": 4}
_CODES = {"fp16": "F16", "fp32": "F32"}
_NUMPY: dict[str, Any] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
_TENSOR_NAME = re.compile(r"(conv|basis)(\.[1-9]\d?x[1-9]\d?)?|linear")
_ARCHITECTURE = re.compile(r"[a-z0-9]{1,20}-[0-9a-f]{8}")
_BASE_NAME = re.compile(r"[^/\\]{0,200}|[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}")
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?", re.IGNORECASE)
_RISKY_PATTERN = re.compile(
    r"\)[*+{]|\\\d|([*+{].*){5}|.{200}"
)  # a repeated group, a back reference, much of it
_REQUIRED = ("base", "base_sketch", "spec", "layers")
_KNOWN = (
    "format",
    "name",
    "trigger",
    "class_word",
    "base",
    "base_name",
    "base_sketch",
    "spec",
    "layers",
    "training",
)


def to_bytes(concept: Concept, dtype: str = "fp16") -> bytes:
    """The file's bytes. Raises SettingsError for an unknown dtype, ConceptError if fp16 overflows."""
    if dtype not in BYTES:
        raise SettingsError(f"A concept is saved as {' or '.join(BYTES)}, not {dtype!r}.")
    check_patterns(concept.spec)
    tensors = dict(concept.atoms) | {
        key.replace("conv", "basis"): value for key, value in concept.bases.items()
    }
    header: dict[str, Any] = {"__metadata__": _metadata(concept)}
    parts: list[bytes] = []
    offset = 0
    for name in sorted(tensors):
        parts.append(_encode(name, tensors[name], dtype))
        end = offset + len(parts[-1])
        header[name] = {
            "dtype": _CODES[dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(parts)


def check_patterns(spec: AtomSpec) -> None:
    """Refuses layer patterns that no reader would run: a stranger's file must not keep a computer busy.

    That is a repeated group, a back reference, more than four repetitions, or over 1,000 letters. To be
    asked before training, since `to_bytes` asks too. Raises SettingsError.
    """
    for pattern in (spec.conv_layers, spec.linear_atoms):
        if _RISKY_PATTERN.search(pattern):
            raise SettingsError(
                f"The layer pattern {pattern[:60]!r} could take for ever to search: use one without repeated "
                "groups, back references and more than four repetitions."
            )


def from_bytes(data: bytes) -> Concept:
    """Inverse of `to_bytes`. Raises ConceptError on anything that is not a sound concept file."""
    metadata, entries, start = parse_header(data)
    return _concept(metadata, entries, data[start:])


def write(concept: Concept, path: Path, dtype: str = "fp16") -> Path:
    """Saves the concept at `path`, whole or not at all. Raises ConceptError if it cannot be written."""
    data = to_bytes(concept, dtype)
    try:
        write_atomically(path, data)
    except OSError as error:
        raise ConceptError(
            f"The concept cannot be written to {str(path)!r} ({error.strerror or error}): choose a folder "
            "that can be written, or free some space."
        ) from error
    return path


def read(path: Path) -> Concept:
    """Loads a concept file; only its header is read before that is found sound. Raises ConceptError."""
    try:
        with path.open("rb") as file:
            metadata, entries, start = read_header(file, path.stat().st_size)
            file.seek(start)
            return _concept(metadata, entries, file.read())
    except ConceptError as error:
        raise ConceptError(f"{str(path)!r}: {error}") from None
    except OSError as error:
        raise ConceptError(
            f"The concept file {str(path)!r} cannot be read ({error.strerror or error}): check the path."
        ) from error


def _metadata(concept: Concept) -> dict[str, str]:
    """Ordered; empty texts are left out."""
    spec = {item.name: getattr(concept.spec, item.name) for item in fields(AtomSpec)}
    known = {
        "format": FORMAT,
        "name": concept.name,
        "trigger": concept.trigger,
        "class_word": concept.class_word,
        "base": concept.base.architecture,
        "base_name": concept.base.name,
        "base_sketch": concept.base.sketch_text(),
        "spec": _query({key: value for key, value in spec.items() if value != ""}),
        "layers": concept.layers,
        "training": _query({key: _text(value) for key, value in concept.training.items()}),
    }
    return {key: text for key, text in known.items() if text} | dict(sorted(concept.extra.items()))


def _concept(metadata: dict[str, str], entries: list[Entry], data: bytes) -> Concept:
    missing = [key for key in _REQUIRED if key not in metadata]
    if missing:
        raise ConceptError(f"The file lacks {', '.join(missing)}: it is damaged, get it again.")
    tensors: dict[str, Tensor] = {}
    for entry in entries:
        if not _TENSOR_NAME.fullmatch(entry.name) or entry.dtype not in _NUMPY or len(entry.shape) != 3:
            raise ConceptError(
                f"The file holds a tensor {entry.name[:60]!r} of type {entry.dtype} and shape "
                f"{list(entry.shape)[:8]}, which this version of atomdiff does not know: update atomdiff."
            )
        tensors[entry.name] = _decode(entry, data)
    if [entry.name for entry in entries] != sorted(tensors) or len({entry.dtype for entry in entries}) != 1:
        raise ConceptError("The file's tensors are not in canonical order and of one type: it was altered.")
    if not re.fullmatch(r"[0-9a-f]{8}", metadata["layers"]):
        raise ConceptError(f"The file's digest of layers is not 8 hex digits: {metadata['layers'][:60]!r}.")
    base = metadata["base"]
    if not _ARCHITECTURE.fullmatch(base) or not _BASE_NAME.fullmatch(metadata.get("base_name", "")):
        raise ConceptError(f"The file names its base in a form that atomdiff never writes: {base[:60]!r}.")
    return Concept(
        atoms={name: tensor for name, tensor in tensors.items() if not name.startswith("basis")},
        bases={name.replace("basis", "conv"): t for name, t in tensors.items() if name.startswith("basis")},
        layers=metadata["layers"],
        spec=_spec(metadata["spec"]),
        base=BasePassport.from_text(base, metadata["base_sketch"], metadata.get("base_name", "")),
        trigger=metadata.get("trigger", ""),
        class_word=metadata.get("class_word", ""),
        name=metadata.get("name", ""),
        training={key: _value(text) for key, text in _pairs(metadata.get("training", ""))},
        extra={key: text for key, text in metadata.items() if key not in _KNOWN},
    )


def _spec(text: str) -> AtomSpec:
    known = {item.name: type(item.default) for item in fields(AtomSpec)}
    values: dict[str, Any] = {}
    for key, value in _pairs(text):
        if key not in known or key in values:
            raise ConceptError(
                f"The concept's spec has a field {key[:60]!r} that is unknown here: update atomdiff."
            )
        values[key] = int(value) if known[key] is int and re.fullmatch(r"\d{1,6}", value) else value
    try:
        spec = AtomSpec(**values)
        check_patterns(spec)
    except SettingsError as error:
        raise ConceptError(f"The concept's spec cannot be right: {error}") from None
    return spec


def _query(values: dict[str, Any]) -> str:
    return urlencode(values, safe="/:,.*()^$|[]")


def _pairs(text: str) -> list[tuple[str, str]]:
    if not text:
        return []
    try:
        return parse_qsl(
            text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=100
        )
    except ValueError:
        raise ConceptError(
            f"The file has a field that cannot be read: {text[:60]!r}; get it again."
        ) from None


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


def _encode(name: str, tensor: Tensor, dtype: str) -> bytes:
    with np.errstate(over="ignore"):
        numbers = tensor.numpy().astype(_NUMPY[_CODES[dtype]])
    if not np.isfinite(numbers).all():
        raise ConceptError(
            f"The {name!r} atoms reach {float(tensor.abs().max()):.3g}, which fp16 cannot hold: save as "
            "fp32, or train with a lower learning rate."
        )
    return numbers.tobytes()


def _decode(entry: Entry, data: bytes) -> Tensor:
    numbers = np.frombuffer(data[entry.start : entry.end], _NUMPY[entry.dtype]).reshape(entry.shape)
    return torch.from_numpy(numbers.astype(np.float32))
