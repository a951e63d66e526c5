"""A concept from whatever one has of it: its file or a picture, bytes, a line of text, or a name for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from atomdiff.errors import ConceptError
from atomdiff.files.read_any import is_text_form, read_any
from atomdiff.library import hub

if TYPE_CHECKING:
    from atomdiff.concept.concept import Concept

Source: TypeAlias = "Concept | str | Path | bytes"
"""A concept; a file, card or picture of QR codes, by path or as bytes; the line for chats; the name of a
concept in the library; `user/name` on the hub."""


def read_concept(source: Source) -> Concept:
    """The concept that a source means. Raises ConceptError or ImageError, one sentence, where there is
    none."""
    from atomdiff.concept.concept import Concept

    if isinstance(source, Concept):
        return source
    if isinstance(source, bytes | Path):
        return read_any(source).concept
    if not isinstance(source, str):
        raise ConceptError(f"A concept is given as a path, bytes, text or name, not {type(source).__name__}.")
    if is_text_form(source[:100]):
        return read_any(source).concept
    path = Path(source).expanduser()
    if path.is_file() or path.suffix.lower() in (".safetensors", ".png", ".jpg", ".jpeg", ".webp"):
        return read_any(path).concept
    if path.name == source:
        return read_any(_in_library(source)).concept
    if hub.is_repo(source):
        return read_any(hub.pull(source)).concept
    raise ConceptError(
        f"There is no concept {source[:120]!r}: give a file, a card, the text of a concept, a name in the "
        "library or user/name on the hub."
    )


def _in_library(name: str) -> Path:
    from atomdiff.library import Library, default_folder

    if not default_folder().is_dir():
        raise ConceptError(f"There is no file {name!r}, and no library to look for that name in.")
    return Library().named(name).path
