"""The concept file: a safetensors file of a few KB, the same bytes for the same concept on every machine.

docs/format.md says what is in it and why. In short: one packed tensor a family, `conv` or `conv.KHxKW`
(layers, m, k²) and `linear` (layers, kc², kc²), and for a data-driven subspace `basis` or `basis.KHxKW` like
`conv`, in one of four precisions; metadata in the order of `KNOWN`. A reader refuses another major version
and any field of `spec` that it does not know, since that would change what the numbers mean; it keeps every
other unknown key.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomdiff.concept.contents import Contents
from atomdiff.concept.passport import BasePassport
from atomdiff.core.spec import TENSORS
from atomdiff.errors import ConceptError, SettingsError
from atomdiff.files import atomic, quantization, query_string
from atomdiff.files.header import MAX_NUMBERS, WIDTHS, Entry, parse_header, read_file
from atomdiff.files.quantization import Part
from atomdiff.files.query_string import check_patterns

if TYPE_CHECKING:
    from atomdiff.concept.concept import Concept

FORMAT = "atomdiff/1"
_FAMILY = rf"(?:{TENSORS}|basis(?:\.[1-9]\d?x[1-9]\d?)?|token2?)"
_TENSOR_NAME = re.compile(rf"{_FAMILY}(?:\.scale)?", re.ASCII)
_INT4 = re.compile(rf"({_FAMILY})=([1-9]\d{{0,6}})x([1-9]\d{{0,6}})x([1-9]\d{{0,6}})", re.ASCII)
_ARCHITECTURE = re.compile(r"[a-z0-9]{1,20}-[0-9a-f]{8}")
_BASE_NAME = re.compile(r"[^/\\]{0,200}|[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}")
_REQUIRED = ("base", "base_sketch", "spec", "layers")
KNOWN = (
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
    "int4",
)


def to_bytes(concept: Concept, dtype: str | None = None, max_bytes: int | None = None) -> bytes:
    """The file's bytes, in `dtype` (fp32, fp16, int8 or int4; by default the concept's own) or, with
    `max_bytes`, in the best precision from `dtype` down that fits.

    Raises SettingsError for an unknown dtype, ConceptError if fp16 overflows or nothing fits.
    """
    known, dtype = quantization.PRECISIONS, dtype or concept.precision
    if dtype not in known:
        raise SettingsError(f"A concept is saved as {', '.join(known[:-1])} or {known[-1]}, not {dtype!r}.")
    check_patterns(concept.spec)
    if max_bytes is None:
        return assemble(_metadata(concept, dtype), to_parts(concept, dtype))
    size = 0
    for coarser in known[known.index(dtype) :]:
        try:
            data = assemble(_metadata(concept, coarser), to_parts(concept, coarser))
        except ConceptError:  # beyond the range of fp16, which the scales of int8 and int4 stretch
            continue
        size = len(data)
        if size <= max_bytes:
            return data
    raise ConceptError(
        f"The concept {concept.title!r} takes {size:,} bytes in its smallest form, more than the "
        f"{max_bytes:,} asked for: allow more, or train fewer layers or atoms."
    )


def sha256(concept: Concept) -> str:
    """What a concept is known by: the checksum of the file that it came from, or that `save_concept` writes
    by default (in fp32 where its own precision cannot hold it)."""
    try:
        data = to_bytes(concept)
    except ConceptError:
        data = to_bytes(concept, "fp32")
    return hashlib.sha256(data).hexdigest()


def to_parts(concept: Concept, dtype: str) -> list[Part]:
    """The tensors of the file in `dtype`. Raises ConceptError where the range of fp16 does not suffice."""
    tensors = dict(concept.atoms) | {
        key.replace("conv", "basis"): value for key, value in concept.bases.items()
    }
    made = [quantization.encode(name, tensor.numpy(), dtype) for name, tensor in tensors.items()]
    return [part for parts in made for part in parts]


def assemble(metadata: dict[str, str], parts: list[Part]) -> bytes:
    """A safetensors file in the one canonical layout: wider numbers first (as the safetensors library orders
    them too, so that none is misaligned), then by name."""
    parts = sorted(parts, key=lambda part: canonical_place(part.code, part.name))
    int4 = {part.name: "x".join(map(str, part.int4)) for part in parts if part.int4}
    header: dict[str, Any] = {"__metadata__": _in_order(metadata | {"int4": query_string.query(int4)})}
    offset = 0
    for part in parts:
        end = offset + len(part.data)
        header[part.name] = {"dtype": part.code, "shape": list(part.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(part.data for part in parts)


def canonical_place(code: str, name: str) -> tuple[int, str]:
    """What tensors are sorted by."""
    return -WIDTHS[code], name


def _in_order(metadata: dict[str, str]) -> dict[str, str]:
    """Known keys in their order, then the others by name; empty known ones are left out."""
    known = {key: metadata[key] for key in KNOWN if metadata.get(key)}
    return known | {key: metadata[key] for key in sorted(metadata) if key not in KNOWN}


def from_bytes(data: bytes) -> Concept:
    """Inverse of `to_bytes`. Raises ConceptError on anything that is not a sound concept file."""
    return concept_of(contents(data))


def contents(data: bytes) -> Contents:
    """Everything that the file's bytes say, found sound; needs no torch. Raises ConceptError."""
    metadata, entries, start = parse_header(data)
    return _contents(metadata, entries, memoryview(data)[start:])


def concept_of(said: Contents) -> Concept:
    """The same with tensors, which share the arrays' memory."""
    import torch

    from atomdiff.concept.concept import Concept

    values = vars(said) | {
        kind: {key: torch.from_numpy(array) for key, array in getattr(said, kind).items()}
        for kind in ("atoms", "bases")
    }
    return Concept(**values)


def precision_of(data: bytes) -> str:
    """The precision of a sound file: fp32, fp16, int8 or int4."""
    return quantization.of(parse_header(data)[1])


def size_report(data: bytes) -> dict[str, int]:
    """Bytes of each part of a sound file: conv atoms (with β), conv coefficients, linear atoms, token, bases,
    scales, header with the texts."""
    kinds = {"conv": "conv atoms", "coef": "conv coefficients", "linear": "linear atoms"}
    kinds |= {"token": "token", "token2": "token", "basis": "bases"}
    report = dict.fromkeys([*kinds.values(), "scales"], 0)
    _, entries, start = parse_header(data)
    for entry in entries:
        kind = "scales" if entry.name.endswith(quantization.SCALE) else kinds.get(entry.name.split(".")[0])
        report[kind or "conv atoms"] += entry.end - entry.start
    return report | {"header": start}


def save_concept(
    concept: Concept, path: str | Path, dtype: str | None = None, max_bytes: int | None = None
) -> Path:
    """Writes the concept as safetensors, whole or not at all; equal concepts give equal bytes.

    `dtype` is "fp32", "fp16", "int8" or "int4", by default the concept's own; with `max_bytes` it is the best
    of these, from `dtype` down, with which the file is no larger. Raises ConceptError if it cannot be written
    or nothing fits.
    """
    return write_data(to_bytes(concept, dtype, max_bytes), Path(path))


def write_data(data: bytes, path: Path) -> Path:
    """Saves the bytes of a concept at `path`, whole or not at all. Raises ConceptError."""
    return atomic.write(path, data, "The concept")


def load_concept(path: str | Path) -> Concept:
    """Reads a concept file. Raises ConceptError if it is missing, broken, foreign or hostile."""
    return concept_of(read_file(Path(path), _contents))


def _metadata(concept: Concept, dtype: str) -> dict[str, str]:
    """All texts of the file; `assemble` puts them in order and leaves out empty ones."""
    clash = next((key for key in concept.extra if key in KNOWN), None)
    if clash is not None:
        raise ConceptError(f"The extra field {clash!r} is one of the format's own: name it otherwise.")
    known: dict[str, str] = {
        "format": FORMAT,
        "name": concept.name,
        "trigger": concept.trigger,
        "class_word": concept.class_word,
        "base": concept.base.architecture,
        "base_name": concept.base.name,
        "base_sketch": concept.base.sketch_text(),
        "spec": query_string.spec_text(concept.spec),
        "layers": concept.layers,
        "training": query_string.training_text(concept.training),
    }
    return known | dict(concept.extra)


def _contents(metadata: dict[str, str], entries: list[Entry], data: memoryview) -> Contents:
    missing = [key for key in _REQUIRED if key not in metadata]
    if missing:
        raise ConceptError(f"The file lacks {', '.join(missing)}: it is damaged, get it again.")
    for entry in entries:
        if not _TENSOR_NAME.fullmatch(entry.name) or entry.dtype not in ("F32", "F16", "I8", "U8"):
            raise ConceptError(
                f"The file holds a tensor {entry.name[:60]!r} of type {entry.dtype} and shape "
                f"{list(entry.shape)[:8]}, which this version of atomdiff does not know: update atomdiff."
            )
    if entries != sorted(entries, key=lambda entry: canonical_place(entry.dtype, entry.name)):
        raise ConceptError("The file's tensors are not in canonical order: it was altered.")
    numbers = sum(prod(entry.shape) * (2 if entry.dtype == "U8" else 1) for entry in entries)
    if numbers > MAX_NUMBERS:
        raise ConceptError(
            f"The file holds {numbers:,} numbers, too many for a concept (at most {MAX_NUMBERS:,})."
        )
    spec = query_string.spec_of(metadata["spec"])
    dtype, arrays = quantization.decode(entries, data, int4_shapes(metadata))
    if not re.fullmatch(r"[0-9a-f]{8}", metadata["layers"]):
        raise ConceptError(f"The file's digest of layers is not 8 hex digits: {metadata['layers'][:60]!r}.")
    base = metadata["base"]
    if not _ARCHITECTURE.fullmatch(base) or not _BASE_NAME.fullmatch(metadata.get("base_name", "")):
        raise ConceptError(f"The file names its base in a form that atomdiff never writes: {base[:60]!r}.")
    return Contents(
        atoms={name: array for name, array in arrays.items() if not name.startswith("basis")},
        bases={name.replace("basis", "conv"): a for name, a in arrays.items() if name.startswith("basis")},
        layers=metadata["layers"],
        spec=spec,
        base=BasePassport.from_text(base, metadata["base_sketch"], metadata.get("base_name", "")),
        trigger=metadata.get("trigger", ""),
        class_word=metadata.get("class_word", ""),
        name=metadata.get("name", ""),
        training=query_string.training_of(metadata.get("training", "")),
        extra={key: text for key, text in metadata.items() if key not in KNOWN},
        precision=dtype,
    )


def int4_shapes(metadata: dict[str, str]) -> dict[str, tuple[int, ...]]:
    """Shapes (L, r, c) of the int4 tensors, which lie flat in the file. Raises ConceptError."""
    text = metadata.get("int4", "")
    found = [_INT4.fullmatch(item) for item in text.split("&")] if text else []
    shapes = {str(item[1]): tuple(map(int, item.groups()[1:])) for item in found if item}
    if len(shapes) != len(found):
        raise ConceptError(f"The file's shapes of int4 numbers cannot be read: {text[:60]!r}.")
    return shapes
