"""A concept from whatever it came in: its file, a card, pictures of its QR codes, a line of chat.

What it is follows from the bytes, never from the name they come under.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from atomdiff.errors import ConceptError
from atomdiff.files import card
from atomdiff.files.header import read_header
from atomdiff.files.qr_image import open_picture, read
from atomdiff.files.safetensors_file import from_bytes
from atomdiff.files.text import from_text

if TYPE_CHECKING:
    from PIL.Image import Image

    from atomdiff.concept.concept import Concept

Source: TypeAlias = Path | str | bytes
"""A file, the text of a concept (never a path: a page may hand on what a visitor typed), or contents."""


@dataclass(frozen=True)
class FoundConcept:
    """A sound concept: what it is, the bytes of its file, and the picture that carried them, if one did."""

    concept: Concept
    data: bytes
    picture: bytes | None = None


def read_any(*sources: Source) -> FoundConcept:
    """The concept in the first source that holds one whole, else the one whose QR codes they show together.

    Raises ConceptError if there is none or it is damaged, ImageError if a picture cannot be read.
    """
    pictures: list[Image] = []
    for source in sources:
        name, raw = _contents(source)
        try:
            data = from_text(source) if isinstance(source, str) else _carried(raw, name)
            if data is not None:
                return FoundConcept(from_bytes(data), data, raw if card.is_png(raw) else None)
        except ConceptError as error:
            raise ConceptError(f"{name!r}: {error}" if name else str(error)) from None
        pictures.append(open_picture(raw, Path(name).name or "what was given"))
    data = read(pictures)
    return FoundConcept(from_bytes(data), data)


def is_text_form(start: str) -> bool:
    """Whether something starts like the text of a concept, perhaps quoted by a chat program."""
    return start.lstrip("\ufeff \t\r\n>`\"'*").lower().startswith("atomdiff:")


def _contents(source: Source) -> tuple[str, bytes]:
    """What to call the source in an error, and its bytes; of a huge file that is no concept, none is read."""
    if isinstance(source, str):
        return "", b""
    if isinstance(source, bytes):
        return "", source
    try:
        with source.open("rb") as file:
            if _is_file(file.read(9)):
                file.seek(0)
                read_header(file, source.stat().st_size)
    except ConceptError as error:
        raise ConceptError(f"{str(source)!r}: {error}") from None
    except OSError:
        pass  # told by the reading below
    return str(source), card.read_file(source)


def _carried(raw: bytes, name: str) -> bytes | None:
    """The concept file in some bytes; None if they may be a picture that shows codes."""
    if card.is_png(raw):
        return card.extract(raw)
    if _is_file(raw) or name.lower().endswith(".safetensors"):
        return raw
    if is_text_form(raw[:100].decode("utf-8-sig", "replace")):
        return from_text(raw)
    return None


def _is_file(start: bytes) -> bool:
    """Whether bytes start like safetensors: a length below 4 GiB, then JSON; text has no zero bytes."""
    return start[4:9] == b"\0\0\0\0{"
