"""The library: a folder of concepts that can be searched, tagged and used by name.

The files are the truth. The index beside them is made again from the folder when it is missing, and only how
often and when concepts were used is lost with it; tags, names and thumbnails are files of their own (see
`folder`). Files may be added, moved, renamed or deleted behind the library's back: `scan` finds out. Several
processes and threads may use one library at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomdiff.errors import AtomdiffError, ConceptError, SettingsError, refused_by_system
from atomdiff.library.folder import Folder, default_folder, file_name
from atomdiff.library.index import Entry, Index, transaction

if TYPE_CHECKING:
    from PIL.Image import Image

    from atomdiff.files.read_any import FoundConcept, Source

__all__ = ["Entry", "Library", "Report", "default_folder"]

MAX_TAG = 100  # letters


@dataclass(frozen=True)
class Report:
    """What `scan` found: concepts that are new, whose files lie elsewhere now, whose files are gone (their
    ids); and every file that looks like a concept but is none, with the reason."""

    new: tuple[Entry, ...] = ()
    moved: tuple[Entry, ...] = ()
    gone: tuple[str, ...] = ()
    foreign: tuple[tuple[Path, str], ...] = ()


class Library:
    """The library in `folder`, which is made if missing. Raises ConceptError if it cannot be.

    Every method may raise ConceptError with a sentence for the user; a concept is named by `Entry.id`.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder).expanduser().absolute() if folder is not None else default_folder()
        self._files = Folder(self.folder)
        self._files.make()

    # ---------------------------------------------------------------------------------------- looking

    def find(self, query: str = "", tag: str | None = None, base: str | None = None) -> list[Entry]:
        """The concepts that have every word of `query` in name, trigger, class, base or tags, and exactly
        this tag and this base (its name or architecture); the latest used or added first."""
        with self._index() as index:
            self._check(index)
            return index.find(query.split(), tag, base)

    def get(self, ident: str) -> Entry:
        """The concept with this id. Raises ConceptError if the library has no file of it any more."""
        with self._index() as index:
            return self._get(index, ident)

    def named(self, name: str) -> Entry:
        """The only concept with this name (or file name), else trigger, else first six digits or more of its
        id.

        Raises ConceptError if there is none, or several, which it lists.
        """
        asked, entries = name.casefold(), self.find()
        by_name = [entry for entry in entries if asked in _names(entry)]
        by_trigger = [entry for entry in entries if asked == entry.trigger.casefold()]
        by_id = [entry for entry in entries if len(asked) > 5 and entry.id.startswith(asked)]
        for found in (by_name, by_trigger, by_id):
            if len(found) == 1:
                return found[0]
            if found:
                which = ", ".join(f"{entry.id[:8]} ({entry.title})" for entry in found[:8])
                raise ConceptError(
                    f"The library has {len(found)} concepts called {name!r}: say which by the first digits "
                    f"of its id, {which}."
                )
        raise ConceptError(
            f"The library in '{self.folder}' has no concept called {name!r}: `atomdiff library list` shows "
            "all."
        )

    # --------------------------------------------------------------------------------------- changing

    def add(self, *sources: Source) -> Entry:
        """Takes a concept in: the `Path` of a file, card or picture of QR codes, its text as `str`, or bytes.

        Several sources are pictures that show its codes together. The library keeps a copy; one that it has
        already stays as it is. Raises ConceptError or ImageError if there is no sound concept.
        """
        from atomdiff.files.read_any import read_any
        from atomdiff.files.safetensors_file import write_data

        received = read_any(*sources)
        ident = hashlib.sha256(received.data).hexdigest()
        with self._index() as index:
            self._check(index, ident)
            if index.get(ident) is None:
                name = file_name(received.concept.title, ident)
                path = write_data(received.data, self._files.free(name))
                index.put_file(path, ident, path.stat())
            self._take_in(index, ident, received, time.time())
            return self._get(index, ident)

    def remove(self, ident: str) -> None:
        """Moves the files of a concept to the library's trash, from which `restore` brings them back."""
        with self._index() as index:
            self._get(index, ident)
            files = list(index.files(ident))
            self._files.to_trash(ident, files)
            for file in files:
                index.drop_file(file)

    def removed(self) -> dict[str, list[str]]:
        """ID -> file names, of what is in the trash."""
        return self._files.trash()

    def restore(self, ident: str) -> Entry:
        """Brings a removed concept back, tags and all."""
        with self._index() as index:
            if ident not in self._files.trash():
                raise ConceptError(f"The library's trash holds no concept {ident[:12]!r}.")
            self._files.from_trash(ident)
            self._scan(index)
            return self._get(index, ident)

    def tag(self, ident: str, *tags: str) -> Entry:
        """Adds tags."""
        added = {_checked(tag) for tag in tags}
        return self._noted(ident, lambda entry: {"tags": sorted({*entry.tags, *added})})

    def untag(self, ident: str, *tags: str) -> Entry:
        """Takes tags away."""
        return self._noted(ident, lambda entry: {"tags": sorted({*entry.tags} - {*map(_checked, tags)})})

    def rename(self, ident: str, name: str) -> Entry:
        """What this library calls the concept, whose file is not touched; "" for its own name again."""
        return self._noted(ident, lambda _: {"name": _checked(name) if name.strip() else ""})

    def used(self, ident: str) -> None:
        """Counts that a concept was drawn with."""
        with self._index() as index:
            self._get(index, ident)
            index.used(ident, time.time())

    def set_thumbnail(self, ident: str, picture: Image | Path | bytes) -> Entry:
        """Shows the concept by this picture from now on. Raises ImageError if it is none."""
        from atomdiff.library import thumbnails

        small = thumbnails.made_from(picture)
        with self._index() as index:
            self._get(index, ident)
            self._write_thumbnail(ident, small)
            return self._get(index, ident)

    def scan(self) -> Report:
        """Brings the index up to date with the folder; unchanged files are not read again."""
        with transaction(self._files) as (index, _):
            return self._scan(index)

    # --------------------------------------------------------------------------------------- the inside

    @contextlib.contextmanager
    def _index(self) -> Iterator[Index]:
        with transaction(self._files) as (index, made):
            try:
                if made:
                    self._scan(index)
                yield index
            except OSError as error:
                raise ConceptError(f"The library cannot be changed: {refused_by_system(error)}") from error

    def _check(self, index: Index, ident: str | None = None) -> None:
        """Scans if a file (of this concept) is not as the index has it."""
        if not all(_as_known(path, *known) for path, (_, *known) in index.files(ident).items()):
            self._scan(index)

    def _get(self, index: Index, ident: str) -> Entry:
        self._check(index, ident)
        entry = index.get(ident)
        if entry is None:
            raise ConceptError(
                f"The library in '{self.folder}' has no file of the concept {ident[:12]!r} (any more): look "
                "into its trash with `atomdiff library restore`, or add the concept again."
            )
        return entry

    def _scan(self, index: Index) -> Report:
        known, there = index.files(), dict(self._files.walk())
        lost = {ident for path, (ident, *_) in known.items() if path not in there}
        for path in known.keys() - there.keys():
            index.drop_file(path)
        met = set()
        for path, about in there.items():
            if path in known and known[path][1:] == (about.st_size, about.st_mtime_ns):
                continue
            ident, problem = self._look(index, path, about.st_mtime)
            index.put_file(path, ident, about, problem)
            met.add(ident)
        before = {ident for ident, *_ in known.values() if ident}
        entries = index.find([], None, None)
        return Report(
            tuple(entry for entry in entries if entry.id not in before),
            tuple(entry for entry in entries if entry.id in lost & met),
            tuple(sorted(before - {entry.id for entry in entries})),
            tuple(index.problems()),
        )

    def _look(self, index: Index, path: Path, changed: float) -> tuple[str | None, str]:
        """Takes in the concept of a file: its id, or why it is none ("" for a picture that carries none)."""
        from atomdiff.files import card
        from atomdiff.files.read_any import read_any

        try:
            if path.suffix.lower() == ".png":
                raw = card.read_file(path)
                if not card.is_png(raw) or card.extract(raw) is None:  # photos of codes are for `add`
                    return None, ""
            received = read_any(path)
        except AtomdiffError as error:
            return None, str(error)
        ident = hashlib.sha256(received.data).hexdigest()
        self._take_in(index, ident, received, changed)
        return ident, ""

    def _take_in(self, index: Index, ident: str, received: FoundConcept, added: float) -> None:
        """Writes a concept's row, and its thumbnail if it has none yet."""
        from atomdiff.library import thumbnails

        concept = received.concept
        row: dict[str, Any] = {
            "own_name": concept.name,
            "trigger": concept.trigger,
            "class_word": concept.class_word,
            "base": concept.base.name,
            "architecture": concept.base.architecture,
            "size": len(received.data),
        }
        index.put(ident, row, added)
        if not self._files.thumbnail(ident).exists():
            small = thumbnails.of(received)
            if small is not None:
                self._write_thumbnail(ident, small)

    def _write_thumbnail(self, ident: str, small: bytes) -> None:
        from atomdiff.files.atomic import write_atomically

        write_atomically(self._files.thumbnail(ident), small)

    def _noted(self, ident: str, changes: Callable[[Entry], dict[str, Any]]) -> Entry:
        with self._index() as index:
            self._files.note(ident, **changes(self._get(index, ident)))
            index.refresh(ident)
            return self._get(index, ident)


def _names(entry: Entry) -> set[str]:
    return {name.casefold() for name in (entry.name, entry.path.stem, entry.path.name) if name}


def _as_known(path: Path, size: int, changed: int) -> bool:
    try:
        about = path.stat()
    except OSError:
        return False
    return (about.st_size, about.st_mtime_ns) == (size, changed)


def _checked(text: str) -> str:
    """A tag or name as it is kept. Raises SettingsError."""
    text = " ".join(text.split())
    if not text or len(text) > MAX_TAG or not text.isprintable():
        raise SettingsError(f"A tag or name is 1 to {MAX_TAG} printable letters, not {text[:60]!r}.")
    return text
