"""A concept inside a PNG: the exact bytes of its file, in one chunk of the picture.

The chunk is named `atOm`. The case of each letter is the PNG standard's: ancillary (a viewer that does not
know it shows the picture all the same), private, reserved bit zero, safe to copy (the concept does not depend
on the pixels, so an editor may keep it). A writer MUST put it before the first IDAT and MUST NOT put a
second; its data are the bytes of a concept file and nothing else, so that their SHA-256 is the file's. Beside
it a text chunk `parameters` tells A1111 and its kin, and people, what the picture is.

A card comes from strangers. So the chunks are walked as bytes, before and without decoding any pixel, and a
reader MUST refuse a file with a wrong CRC, an unknown critical chunk, pixels in several runs, two `atOm`
chunks or one after the pixels, anything after IEND, or more than the sizes below. Text chunks are never
unpacked.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atomdiff.concept.contents import Contents
from atomdiff.errors import ConceptError
from atomdiff.files.header import parse_header
from atomdiff.files.safetensors_file import concept_of, contents

if TYPE_CHECKING:
    from atomdiff.concept.concept import Concept

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KIND = b"atOm"
MAX_FILE = 32 * 2**20  # bytes of a picture
MAX_CONCEPT = 8 * 2**20  # bytes of a concept that travels in one
MAX_CHUNKS = 5000
MAX_SIDE = 2**31 - 1  # what PNG allows; how much is *decoded* is limited where pixels are
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")


@dataclass(frozen=True)
class Chunk:
    """One chunk of a PNG: its type and where its data lie; the whole chunk spans `start - 8` to `end + 4`."""

    kind: bytes
    start: int
    end: int


def is_png(data: bytes) -> bool:
    """Whether the bytes start like a PNG."""
    return data.startswith(SIGNATURE)


def walk(data: bytes) -> list[Chunk]:
    """All chunks of a PNG, each checked; no pixel is decoded. Raises ConceptError (see the module's text)."""
    if not is_png(data):
        raise ConceptError(
            "This is no PNG picture, so it can carry no concept: give the card as it was made."
        )
    if len(data) > MAX_FILE:
        raise ConceptError(
            f"The picture has {len(data) / 2**20:.0f} MiB; a card has at most {MAX_FILE >> 20} MiB."
        )
    chunks = list(_chunks(data))
    kinds = [chunk.kind for chunk in chunks]
    if kinds[0] != b"IHDR" or kinds.count(b"IHDR") != 1 or chunks[0].end - chunks[0].start != 13:
        raise ConceptError("The PNG does not start with one IHDR chunk: it is damaged, get it again.")
    if kinds[-1] != b"IEND" or chunks[-1].start != chunks[-1].end:
        raise ConceptError("The PNG has no sound end (IEND): it is cut off, get it again.")
    if chunks[-1].end + 4 != len(data):
        raise ConceptError(
            f"{len(data) - chunks[-1].end - 4} bytes follow the end of the PNG: something was hidden behind "
            "the picture, get it from whoever made it."
        )
    pixels = [i for i, kind in enumerate(kinds) if kind == b"IDAT"]
    if not pixels or pixels[-1] - pixels[0] + 1 != len(pixels):
        raise ConceptError(
            "The PNG's pixels do not lie in one run of IDAT chunks: it is damaged or was altered."
        )
    if kinds.count(KIND) > 1:
        raise ConceptError(
            f"The picture carries {kinds.count(KIND)} concepts where one may be: it was altered, get "
            "it again."
        )
    if KIND in kinds and kinds.index(KIND) > pixels[0]:
        raise ConceptError(
            "The picture's concept comes after the pixels, where no writer puts it: it was altered, get it "
            "again."
        )
    return chunks


def extract(data: bytes) -> bytes | None:
    """The concept file inside a PNG, byte for byte; None if the picture carries none.

    Raises ConceptError if the PNG is unsound or what it carries is no concept.
    """
    chunk = next((chunk for chunk in walk(data) if chunk.kind == KIND), None)
    if chunk is None:
        return None
    concept = data[chunk.start : chunk.end]
    _check(concept)
    return concept


def embed(png: bytes, concept: bytes) -> bytes:
    """The same picture, carrying the bytes of a concept file; one that it carried before is replaced.

    Raises ConceptError if the PNG is unsound or the bytes are no concept.
    """
    _check(concept)
    kept = [chunk for chunk in walk(png) if chunk.kind != KIND]
    parts = [SIGNATURE]
    for i, chunk in enumerate(kept):
        if chunk.kind == b"IDAT" and kept[i - 1].kind != b"IDAT":
            parts.append(_packed(KIND, concept))
        parts.append(png[chunk.start - 8 : chunk.end + 4])
    return b"".join(parts)


def concept_bytes(path: str | Path) -> bytes:
    """The bytes of a concept file, whether it lies there as such or inside a PNG. Raises ConceptError."""
    data = read_file(path)
    try:
        found = extract(data) if is_png(data) else data
    except ConceptError as error:
        raise ConceptError(f"{str(path)!r}: {error}") from None
    if found is None:
        raise ConceptError(
            f"The picture {str(path)!r} carries no concept; if it did once, a site saved it anew on the way: "
            "get the original file."
        )
    return found


def read_file(path: str | Path) -> bytes:
    """A file that may hold a concept or a picture, of at most 40 MiB. Raises ConceptError."""
    limit = MAX_FILE + MAX_CONCEPT
    try:
        with Path(path).open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConceptError(
            f"The file {str(path)!r} cannot be read ({error.strerror or error}): check the path."
        ) from error
    if len(data) > limit:
        raise ConceptError(
            f"{str(path)!r} has over {limit >> 20} MiB, too much for a picture with a concept."
        )
    return data


def load(path: str | Path) -> Concept:
    """A concept from its file or from a picture that carries it. Raises ConceptError."""
    return concept_of(look(path)[0])


def look(path: str | Path) -> tuple[Contents, bytes]:
    """What a concept file or picture says, and the file's bytes; needs no torch. Raises ConceptError."""
    data = concept_bytes(path)
    try:
        return contents(data), data
    except ConceptError as error:
        raise ConceptError(f"{str(path)!r}: {error}") from None


def _chunks(data: bytes) -> Iterator[Chunk]:
    """Every chunk up to IEND, its name, length and CRC checked."""
    position = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if position + 12 > len(data):
            raise ConceptError("The PNG ends before its IEND chunk: it is cut off, get it again.")
        size, kind = struct.unpack_from(">I4s", data, position)
        start, end = position + 8, position + 8 + size
        name = kind.decode("latin-1")
        if not re.fullmatch(r"[A-Za-z]{2}[A-Z][A-Za-z]", name):
            raise ConceptError(f"The PNG has a chunk with the impossible name {name!r}: it is damaged.")
        if kind[:1].isupper() and kind not in _CRITICAL:
            raise ConceptError(f"The PNG has a critical chunk {name!r} that no reader knows: it was altered.")
        if kind == KIND and size > MAX_CONCEPT:
            raise ConceptError(
                f"The picture says to carry {size} bytes of concept; at most {MAX_CONCEPT} fit in one."
            )
        if end + 4 > len(data):
            raise ConceptError(f"The PNG ends within its chunk {name!r}: it is cut off, get it again.")
        (crc,) = struct.unpack_from(">I", data, end)
        if crc != zlib.crc32(memoryview(data)[position + 4 : end]):
            raise ConceptError(
                f"The checksum of the PNG's chunk {name!r} is wrong: it is damaged, get it again."
            )
        yield Chunk(kind, start, end)
        if kind == b"IEND":
            return
        position = end + 4
    raise ConceptError(f"The PNG has over {MAX_CHUNKS} chunks, too many for a picture.")


def _packed(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _check(concept: bytes) -> None:
    """Raises ConceptError unless the bytes have the sound header of a concept file of a size that travels."""
    if len(concept) > MAX_CONCEPT:
        raise ConceptError(
            f"The concept has {len(concept)} bytes; a picture carries at most {MAX_CONCEPT}: share the file."
        )
    parse_header(concept)
