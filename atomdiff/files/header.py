"""Reading a safetensors header that may come from anyone: everything is checked before anything is used.

The safetensors library accepts what must not be accepted here: a tensor named twice, gaps between tensors,
90 MB of metadata, 2^62-sized shapes. So the header, a small JSON text, is read by hand.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

from atomdiff.errors import ConceptError

MAX_HEADER = 2**20  # bytes: the header of a whole SDXL checkpoint, so that it is still known for one
MAX_CONCEPT = 16 * 2**20  # bytes of numbers: some hundred times the usual concept
MAX_NUMBERS = 2**22  # in a concept: recursive atoms of SD 1.5 with a β for every channel are a third of it
MAX_DATA = 64 * 2**20  # bytes of numbers in a timeline
MAX_TENSORS = 64
MAX_TEXTS = 1000  # entries of the metadata
MAX_PARTS = 100_000  # commas, brackets and quotes of a JSON text: what reading it costs time and memory by
MAX_SIDE = 2**20
_WRONG_KIND = {
    "concept": "This is the timeline of a training, not a concept: cut a step out of it with "
    "`atomdiff timeline FILE --cut STEP --out concept.safetensors`.",
    "timeline": "This is a concept, not the timeline of a training, which has a name that ends in "
    ".timeline.safetensors and lies beside it if steps were kept.",
}
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
Made = TypeVar("Made")


@dataclass(frozen=True)
class Entry:
    """One tensor: where its bytes lie after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def parse_header(data: bytes, kind: str = "concept") -> tuple[dict[str, str], list[Entry], int]:
    """Metadata, tensors and the offset of the first tensor's bytes of a file of this kind, "concept" or
    "timeline". Raises ConceptError."""
    size = _header_size(data[:8], len(data))
    return (*_parse(data[8 : 8 + size], len(data) - 8 - size, kind), 8 + size)


def read_header(
    file: BinaryIO, file_size: int, kind: str = "concept"
) -> tuple[dict[str, str], list[Entry], int]:
    """The same from an open file, of which only the header is read. Raises ConceptError."""
    size = _header_size(file.read(8), file_size)
    return (*_parse(file.read(size), file_size - 8 - size, kind), 8 + size)


def read_file(
    path: Path, make: Callable[[dict[str, str], list[Entry], memoryview], Made], kind: str = "concept"
) -> Made:
    """What `make` makes of a file's metadata, tensors and numbers; of the file only the header is read before
    that is found sound. Raises ConceptError, which names the file."""
    try:
        with path.open("rb") as file:
            metadata, entries, start = read_header(file, path.stat().st_size, kind)
            file.seek(start)
            return make(metadata, entries, memoryview(file.read()))
    except ConceptError as error:
        raise ConceptError(f"{str(path)!r}: {error}") from None
    except OSError as error:
        what = "concept file" if kind == "concept" else kind
        raise ConceptError(
            f"The {what} {str(path)!r} cannot be read ({error.strerror or error}): check the path."
        ) from error


def _header_size(start: bytes, file_size: int) -> int:
    if len(start) < 8:
        raise ConceptError(f"The file is only {file_size} bytes long: it is cut off or empty, get it again.")
    (size,) = struct.unpack("<Q", start)
    if size > MAX_HEADER:
        raise ConceptError("This is no safetensors file, or its header is over 1 MiB: it is not a concept.")
    if 8 + size > file_size:
        raise ConceptError("The file ends within its header: it is cut off, get it again.")
    return int(size)


def _parse(text: bytes, data_size: int, kind: str) -> tuple[dict[str, str], list[Entry]]:
    if too_many_parts(text):
        raise ConceptError("The file's header has far more parts than a concept's: it is not a concept.")
    try:
        header = json.loads(text.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except ConceptError:
        raise
    except (ValueError, RecursionError):
        raise ConceptError(
            "This is no safetensors file (its header is not JSON): it is not a concept."
        ) from None
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ConceptError(
            "This is no safetensors file (its header has the wrong form): it is not a concept."
        )
    _check_format(metadata, list(header), kind)
    limit = MAX_DATA if kind == "timeline" else MAX_CONCEPT
    if data_size > limit:
        raise ConceptError(
            f"The file holds {data_size / 2**20:.0f} MiB, too much for a {kind} (at most {limit >> 20} MiB)."
        )
    if len(metadata) > MAX_TEXTS:
        raise ConceptError(
            f"The file holds {len(metadata)} texts, too many for a {kind} (at most {MAX_TEXTS})."
        )
    if len(header) > MAX_TENSORS:
        raise ConceptError(
            f"The file holds {len(header)} tensors, too many for a concept (at most {MAX_TENSORS})."
        )
    entries = sorted((_entry(name, value) for name, value in header.items()), key=lambda entry: entry.start)
    position = 0
    for entry in entries:
        if entry.start != position:
            raise ConceptError(
                f"The tensor {entry.name[:60]!r} does not follow the one before it: the file was altered."
            )
        position = entry.end
    if position > data_size:
        raise ConceptError("The file ends before its last number: it is cut off, get it again.")
    if position < data_size:
        raise ConceptError(
            f"The file holds {data_size - position} bytes that belong to no tensor: it was altered."
        )
    return metadata, entries


def too_many_parts(text: bytes) -> bool:
    """Whether reading this JSON would take long: it has no more values than commas and brackets."""
    return sum(map(text.count, (b",", b"[", b"{", b'"'))) > MAX_PARTS


def _entry(name: str, value: Any) -> Entry:
    try:
        dtype, shape, (start, end) = value["dtype"], value["shape"], value["data_offsets"]
        sound = len(value) == 3 and isinstance(shape, list) and 0 < len(shape) <= 8
        sound = sound and all(type(number) is int and number >= 0 for number in (*shape, start, end))
        sound = sound and all(0 < side <= MAX_SIDE for side in shape)
        sound = sound and end - start == prod(shape) * WIDTHS[dtype]
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise ConceptError(
            f"The tensor {name[:60]!r} is described in a way that cannot be right: the file is damaged."
        )
    return Entry(name, dtype, tuple(shape), start, end)


def _check_format(metadata: dict[str, str], names: list[str], kind: str) -> None:
    found = metadata.get("format", "")
    version = re.fullmatch(r"atomdiff(-timeline)?/(\d{1,4})(\.\d{1,4})?", found)
    if version is None:
        raise ConceptError(f"This is {_what_else(names)}, not an atomdiff {kind}.")
    if (kind == "timeline") != bool(version[1]):
        raise ConceptError(_WRONG_KIND[kind])
    if version[2] != "1":
        raise ConceptError(
            f"The file has the format {found}, newer than this version of atomdiff reads: update atomdiff."
        )


def _what_else(names: list[str]) -> str:
    """What a foreign safetensors file probably is, by its tensors."""
    for pattern, kind in (
        (r"lora[_.]|\.alpha$", "a LoRA"),
        (r"hada_|lokr_|oft_", "a LyCORIS file"),
        (r"^model\.diffusion_model\.", "a whole checkpoint (a base)"),
        (r"^emb_params$|string_to_param", "a textual-inversion embedding"),
        (r"^(encoder|decoder|first_stage_model)\.", "an autoencoder"),
        (r"^(down_blocks|conv_in|transformer_blocks)", "the weights of a model"),
    ):
        if any(re.search(pattern, name) for name in names[:5000]):
            return kind
    return "another kind of safetensors file" + (
        f" (with {names[0][:60]!r})" if names else " (without tensors)"
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ConceptError("The file's header names something twice: it was altered, get it again.")
    return made


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
