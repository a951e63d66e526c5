"""The library on disk: where things lie, what files are called, and what is kept beside the concepts.

    FOLDER/…/*.safetensors, *.png     concepts and cards, wherever the user puts them
    FOLDER/.library/index.sqlite      made from the rest, except for how often a concept was used
                   /notes/ID.json     the user's tags and name for a concept
                   /thumbnails/ID.jpg
                   /trash/ID/         removed files under their own names

ID is the SHA-256 of a concept's file, so that notes and thumbnails still belong to it when it was moved,
renamed, removed and put back.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atomdiff.errors import ConceptError, refused_by_system
from atomdiff.files.atomic import write_atomically

HIDDEN = ".library"
SUFFIXES = (".safetensors", ".png")
MAX_TITLE = 40  # letters of a title in a file's name, at most 160 bytes: every file system takes 255


def default_folder() -> Path:
    """`ATOMDIFF_LIBRARY`, else the place where this system keeps a user's data."""
    given = os.environ.get("ATOMDIFF_LIBRARY")
    if given:
        return Path(given).expanduser()
    home = Path.home()
    if sys.platform == "win32":
        data = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        data = home / "Library" / "Application Support"
    else:
        xdg = Path(os.environ.get("XDG_DATA_HOME", ""))
        data = xdg if xdg.is_absolute() else home / ".local" / "share"  # the XDG rule: a relative one is void
    return data / "atomdiff" / "library"


def slug(title: str) -> str:
    """A title as a part of a file's name on any system: letters and digits of any script, joined by `-`."""
    letters = unicodedata.normalize("NFKC", title).casefold()
    words = "".join(letter if letter.isalnum() else " " for letter in letters).split()
    return unicodedata.normalize("NFC", "-".join(words)[:MAX_TITLE].strip("-")) or "concept"


def file_name(title: str, ident: str) -> str:
    """What a concept's file is called. The hash keeps two of one title apart, and `con` or `nul` from being
    devices."""
    return f"{slug(title)}-{ident[:8]}.safetensors"


@dataclass(frozen=True)
class Folder:
    """Paths and files of one library. Whatever writes raises OSError."""

    root: Path

    @property
    def index(self) -> Path:
        """The SQLite file."""
        return self.root / HIDDEN / "index.sqlite"

    def make(self) -> None:
        """Raises ConceptError if the folder cannot be made or written to."""
        try:
            for name in ("notes", "thumbnails", "trash"):
                (self.root / HIDDEN / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConceptError(f"The library cannot be kept: {refused_by_system(error)}") from error

    def walk(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Every file that may be a concept, in order; nothing hidden, no links."""
        for folder, folders, names in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                path = Path(folder, name)
                if name.startswith(".") or path.suffix.lower() not in SUFFIXES or path.is_symlink():
                    continue
                try:
                    about = path.stat()
                except OSError:  # deleted this moment
                    continue
                if path.is_file():
                    yield path, about

    def free(self, name: str) -> Path:
        """A path at the top of the library under which nothing lies yet."""
        path = self.root / name
        count = 2
        while path.exists() or path.is_symlink():
            path = self.root / f"{Path(name).stem[:100]}-{count}{Path(name).suffix}"
            count += 1
        return path

    # ------------------------------------------------------------------------------------------ notes

    def notes(self, ident: str) -> dict[str, Any]:
        """What the user noted: {"tags": [...], "name": ...}; damaged notes are no notes."""
        try:
            found = json.loads((self.root / HIDDEN / "notes" / f"{ident}.json").read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        tags = found.get("tags", []) if isinstance(found, dict) else []
        sound = isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)
        sound = sound and isinstance(found, dict) and isinstance(found.get("name", ""), str)
        return found if sound else {}

    def note(self, ident: str, **changes: Any) -> None:
        """Changes notes; empty ones are forgotten."""
        notes = {key: value for key, value in (self.notes(ident) | changes).items() if value}
        text = json.dumps(notes, ensure_ascii=False, indent=1)
        write_atomically(self.root / HIDDEN / "notes" / f"{ident}.json", text.encode())

    # ------------------------------------------------------------------------------------- thumbnails

    def thumbnail(self, ident: str) -> Path:
        """Where the thumbnail of a concept lies, if it has one."""
        return self.root / HIDDEN / "thumbnails" / f"{ident}.jpg"

    # ------------------------------------------------------------------------------------------ trash

    def to_trash(self, ident: str, files: list[Path]) -> None:
        """Moves the files of a concept to the trash, each under its own name."""
        bin_ = self.root / HIDDEN / "trash" / ident
        bin_.mkdir(parents=True, exist_ok=True)
        for file in files:
            target, count = bin_ / file.name, 2
            while target.exists():
                target, count = bin_ / f"{file.stem[:100]}-{count}{file.suffix}", count + 1
            shutil.move(file, target)

    def from_trash(self, ident: str) -> list[Path]:
        """Moves what the trash holds of a concept back to the top of the library."""
        bin_ = self.root / HIDDEN / "trash" / ident
        moved = []
        for file in sorted(bin_.iterdir()) if bin_.is_dir() else []:
            moved.append(self.free(file.name))
            shutil.move(file, moved[-1])
        if bin_.is_dir():
            bin_.rmdir()
        return moved

    def trash(self) -> dict[str, list[str]]:
        """ID -> names of its files, of what was removed."""
        bins = sorted((self.root / HIDDEN / "trash").iterdir())
        return {bin_.name: sorted(file.name for file in bin_.iterdir()) for bin_ in bins if bin_.is_dir()}
