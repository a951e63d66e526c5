"""A concept as text: one line for a chat message, and JSON for version control, both as in docs/format.md.

    atomdiff:v1:BASE64URL      of CRC-32 (4 bytes, big-endian) and the bytes of the file

    {"metadata": {…}, "tensors": {"conv": {"dtype": "F16", "shape": […], "rows": [[…], …]}, …}}

Both give back the very bytes of the file, so a concept keeps its checksum on the way.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from itertools import chain
from math import prod
from typing import Any, NoReturn

import numpy as np

from atomdiff.errors import ConceptError
from atomdiff.files import quantization
from atomdiff.files.header import Entry, parse_header, too_many_parts
from atomdiff.files.quantization import Part
from atomdiff.files.safetensors_file import assemble, contents, int4_shapes

MAX_LINE = 2**19  # letters of a chat message
MAX_LETTERS = 2**20  # of JSON: enough for the blocks of every linear layer of SD 1.5, in fp16
MAX_VALUES = 200_000  # of JSON: numbers, texts and lists, which is what reading it takes time by
_PREFIX = "atomdiff:v1:"
_DTYPES: dict[str, Any] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "I8": np.int8, "I4": np.int8}
_AROUND = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff`\"'<>*"  # what chat programs put between letters


def to_text(data: bytes) -> str:
    """The line for a chat message. Raises ConceptError if `data` is no sound concept file or too long."""
    contents(data)
    _check_length(len(data) * 4 // 3, MAX_LINE)
    checked = zlib.crc32(data).to_bytes(4, "big") + data
    return _PREFIX + base64.urlsafe_b64encode(checked).decode().rstrip("=")


def from_text(text: str) -> bytes:
    """The file's bytes of the text that `to_text` made, whatever white space, line breaks, quotation marks
    and the like a chat program put around or into it. Raises ConceptError."""
    if len(text) > MAX_LINE:
        raise ConceptError(
            f"The text has {len(text):,} letters, too many for a concept: check what was copied."
        )
    letters = "".join(text.split())
    for odd in _AROUND:
        letters = letters.replace(odd, "")
    version = re.match(r"atomdiff:v(\d{1,4}):", letters, re.IGNORECASE)
    if version is None:
        raise ConceptError(
            f"This is not the text of a concept ({text.strip()[:20]!r}): it starts with {_PREFIX}; "
            "copy all of it."
        )
    if version[1] != "1":
        raise ConceptError(
            f"The text has the form v{version[1]}, newer than this version of atomdiff reads: "
            "update atomdiff."
        )
    body = letters[version.end() :].rstrip("=")
    foreign = re.search(r"[^A-Za-z0-9_-]", body)
    if foreign:
        raise ConceptError(
            f"The text of the concept holds {foreign[0]!r}, which cannot be part of it: copy it alone and "
            "whole."
        )
    try:
        checked = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except (binascii.Error, ValueError):
        checked = b""
    data = checked[4:]
    whole = base64.urlsafe_b64encode(checked).decode().rstrip("=") == body
    if not whole or len(checked) < 4 or zlib.crc32(data).to_bytes(4, "big") != checked[:4]:
        raise ConceptError(
            "The text of the concept was cut off or changed on its way (its checksum is wrong): copy all "
            "of it once more."
        )
    contents(data)
    return data


def to_json(data: bytes) -> str:
    """The file as JSON, one line for each row of numbers, so that versions can be compared.

    Raises ConceptError if it is no sound concept file in its canonical form, which JSON would not keep.
    """
    contents(data)
    metadata, entries, start = parse_header(data)
    _check_length(3 * sum(prod(entry.shape) for entry in entries), MAX_LETTERS)
    int4 = int4_shapes(metadata)
    kept = {key: text for key, text in metadata.items() if key != "int4"}
    tensors = [_tensor(entry, data[start:], int4) for entry in entries]
    text = '{\n "metadata": ' + json.dumps(kept, ensure_ascii=False, indent=2)[:-1] + " },\n"
    text += ' "tensors": {\n' + ",\n".join(tensors) + "\n }\n}\n"
    _check_length(len(text), MAX_LETTERS)
    if from_json(text) != data:
        raise ConceptError(
            "The file is not in the canonical form, so its JSON would not give it back: write it anew with "
            "`atomdiff convert` first."
        )
    return text


def from_json(text: str) -> bytes:
    """The file's bytes of the JSON that `to_json` made, also of one edited by hand. Raises ConceptError."""
    if len(text) > MAX_LETTERS:
        raise ConceptError(f"The JSON has {len(text):,} letters, too many for a concept: check the file.")
    if text.count(",") > MAX_VALUES or too_many_parts(text.replace(",", "").encode(errors="replace")):
        raise ConceptError("The JSON has far more values than a concept: check the file.")
    try:
        content = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
        metadata, tensors = content["metadata"], content["tensors"]
        sound = len(content) == 2 and all(isinstance(value, str) for value in metadata.values())
        parts = [_part(name, value) for name, value in tensors.items()]
        data = assemble(dict(metadata), parts)
    except ConceptError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
        sound = False
    if not sound or "int4" in metadata:
        raise ConceptError("This is not a concept written as JSON (or a part of one): export it again.")
    contents(data)
    return data


def from_either(raw: bytes) -> bytes:
    """The file's bytes of a line or of JSON, as a text file or the standard input holds it (UTF-8, with or
    without a byte order mark). Raises ConceptError."""
    if len(raw) > 4 * MAX_LETTERS:
        raise ConceptError(f"The text has {len(raw):,} bytes, too many for a concept: check what was copied.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConceptError("This is not text: give what `atomdiff export` wrote.") from None
    return from_json(text) if text[:1000].lstrip().startswith("{") else from_text(text)


def _tensor(entry: Entry, data: bytes, int4: dict[str, quantization.Shape]) -> str:
    """One tensor as JSON, a row a line; the numbers of an int4 one laid open."""
    raw = data[entry.start : entry.end]
    if entry.dtype == "U8":
        code, numbers = "I4", quantization.unpack(raw, int4[entry.name])
    else:
        code, numbers = entry.dtype, np.frombuffer(raw, _DTYPES[entry.dtype]).reshape(entry.shape)
    rows = numbers.reshape(-1, numbers.shape[-1])
    lines = ",\n".join("   [" + ", ".join(str(number) for number in row) + "]" for row in rows)
    about = f'"dtype": "{code}", "shape": {json.dumps(list(numbers.shape))}'
    return f'  "{entry.name}": {{{about}, "rows": [\n{lines}\n  ]}}'


def _part(name: str, value: dict[str, Any]) -> Part:
    """Inverse of `_tensor`. Raises ConceptError or whatever a wrong form of `value` leads to."""
    code, shape, rows = value["dtype"], tuple(value["shape"]), value["rows"]
    flat = list(chain.from_iterable(rows))
    kinds = {int} if code.startswith("I") else {int, float}
    sound = (
        len(value) == 3 and all(type(side) is int and side > 0 for side in shape) and len(flat) == prod(shape)
    )
    if not sound or set(map(len, rows)) != {shape[-1]} or not kinds.issuperset(map(type, flat)):
        raise ConceptError(
            f"The numbers {name[:60]!r} do not have the shape or the type that they should have."
        )
    limit = {"I8": 127, "I4": 7}.get(code, 3.5e38)
    if max(map(abs, flat)) > limit:
        raise ConceptError(f"The numbers {name[:60]!r} hold one beyond {limit:g}, which {code} cannot hold.")
    with np.errstate(over="ignore"):
        numbers = np.array(flat, np.float64).astype(_DTYPES[code]).reshape(shape)
    if code == "I4":
        packed = quantization.pack(numbers)
        return Part(name, "U8", (len(packed),), packed, shape)
    return Part(name, code, shape, numbers.tobytes())


def _check_length(letters: int, most: int) -> None:
    if letters > most:
        raise ConceptError(
            f"The concept would be a text of {letters:,} letters or more, and at most {most:,} are read: "
            "share the file, or a card."
        )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ConceptError("The JSON names something twice: it was altered, export it again.")
    return made


def _refuse(text: str) -> NoReturn:
    raise ConceptError(f"The JSON holds {text}, which is no number of a concept.")
