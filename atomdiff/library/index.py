"""The index of a library: one SQLite file, made again from the folder whenever it is missing or broken.

A connection lives as long as one transaction, which takes the write lock at once and waits for it, so that
threads and processes take turns. SQLite's rollback journal is used rather than WAL: it works on network
drives, and a deleted index leaves nothing behind that could spoil the next one.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atomdiff.errors import ConceptError
from atomdiff.library.folder import Folder

VERSION = 1
PATIENCE = 60.0  # seconds to wait for another process
_TABLES = """
DROP TABLE IF EXISTS concepts;
DROP TABLE IF EXISTS files;
CREATE TABLE concepts (
    id TEXT PRIMARY KEY, own_name TEXT, name TEXT, trigger TEXT, class_word TEXT, base TEXT,
    architecture TEXT, size INTEGER, tags TEXT, added REAL, last_used REAL, times_used INTEGER DEFAULT 0,
    words TEXT);
CREATE TABLE files (path BLOB PRIMARY KEY, id TEXT, size INTEGER, changed INTEGER, problem TEXT);
CREATE INDEX by_id ON files (id);
"""


@dataclass(frozen=True)
class Entry:
    """A concept in the library. `added` and `last_used` are seconds since 1970; `size` in bytes is that of
    the concept, also where it lies inside a card."""

    id: str
    name: str
    trigger: str
    class_word: str
    base: str
    architecture: str
    size: int
    path: Path
    thumbnail: Path | None
    tags: tuple[str, ...]
    added: float
    last_used: float | None
    times_used: int

    @property
    def title(self) -> str:
        """What to call the concept: its name, else its trigger."""
        return self.name or self.trigger or "unnamed"


class Index:
    """The tables `concepts`, one row each, and `files`, where they lie; a file without id is no concept.

    A concept all of whose files are gone keeps its row, so that it is known again if they come back.
    """

    def __init__(self, db: sqlite3.Connection, folder: Folder) -> None:
        self.db, self.folder = db, folder

    # ------------------------------------------------------------------------------------------ files

    def files(self, ident: str | None = None) -> dict[Path, tuple[str | None, int, int]]:
        """Path -> id (None if it is no concept), size and time of change; all files or those of a concept."""
        rows = self.db.execute(
            "SELECT path, id, size, changed FROM files WHERE ? IS NULL OR id = ? ORDER BY path",
            (ident, ident),
        )
        return {self.folder.root / os.fsdecode(path): tuple(rest) for path, *rest in rows}

    def put_file(self, path: Path, ident: str | None, about: os.stat_result, problem: str = "") -> None:
        row = (self._key(path), ident, about.st_size, about.st_mtime_ns, problem)
        self.db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", row)

    def drop_file(self, path: Path) -> None:
        self.db.execute("DELETE FROM files WHERE path = ?", (self._key(path),))

    def problems(self) -> list[tuple[Path, str]]:
        """Files that should be concepts, and why they are none."""
        rows = self.db.execute("SELECT path, problem FROM files WHERE problem != '' ORDER BY path")
        return [(self.folder.root / os.fsdecode(path), problem) for path, problem in rows]

    def _key(self, path: Path) -> bytes:
        """Relative, so that the library can be moved, and as bytes, since a name need not be text."""
        return os.fsencode(path.relative_to(self.folder.root).as_posix())

    # --------------------------------------------------------------------------------------- concepts

    def put(self, ident: str, about: dict[str, Any], added: float) -> None:
        """Makes a row, or freshens it from the file and the notes; what was counted stays."""
        self.db.execute("INSERT OR IGNORE INTO concepts (id, added) VALUES (?, ?)", (ident, added))
        for column, value in about.items():
            self.db.execute(f"UPDATE concepts SET {column} = ? WHERE id = ?", (value, ident))
        self.refresh(ident)

    def refresh(self, ident: str) -> None:
        """Takes over the notes of a concept."""
        notes = self.folder.notes(ident)
        own, trigger, class_word, base = self.db.execute(
            "SELECT own_name, trigger, class_word, base FROM concepts WHERE id = ?", (ident,)
        ).fetchone()
        name, tags = notes.get("name") or own, sorted(set(notes.get("tags", [])))
        words = "\n".join((name, own, trigger, class_word, base, *tags)).casefold()
        self.db.execute(
            "UPDATE concepts SET name = ?, tags = ?, words = ? WHERE id = ?",
            (name, json.dumps(tags), words, ident),
        )

    def used(self, ident: str, when: float) -> None:
        self.db.execute(
            "UPDATE concepts SET times_used = times_used + 1, last_used = ? WHERE id = ?", (when, ident)
        )

    def find(self, words: list[str], tag: str | None, base: str | None) -> list[Entry]:
        """Concepts with a file that have every word somewhere in their texts, latest used or added first."""
        asked = "".join(" AND instr(words, ?) > 0" for _ in words)
        rows = self.db.execute(
            "SELECT * FROM concepts WHERE id IN (SELECT id FROM files)"
            f"{asked} ORDER BY max(added, coalesce(last_used, 0)) DESC, name, id",
            [word.casefold() for word in words],
        )
        paths = {ident: path for path, (ident, *_) in reversed(self.files().items())}
        entries = (self._entry(row, paths[row["id"]]) for row in rows)
        return [
            entry
            for entry in entries
            if (tag is None or tag in entry.tags)
            and (base is None or base in (entry.base, entry.architecture))
        ]

    def get(self, ident: str) -> Entry | None:
        """None if the library has no file of it."""
        row = self.db.execute("SELECT * FROM concepts WHERE id = ?", (ident,)).fetchone()
        paths = list(self.files(ident))
        return self._entry(row, paths[0]) if row and paths else None

    def _entry(self, row: sqlite3.Row, path: Path) -> Entry:
        same = ("id", "name", "trigger", "class_word", "base", "architecture", "size", "added")
        thumbnail = self.folder.thumbnail(row["id"])
        return Entry(
            **{column: row[column] for column in same},
            path=path,
            thumbnail=thumbnail if thumbnail.is_file() else None,
            tags=tuple(json.loads(row["tags"])),
            last_used=row["last_used"],
            times_used=row["times_used"],
        )


@contextlib.contextmanager
def transaction(folder: Folder) -> Iterator[tuple[Index, bool]]:
    """The index, all or nothing, and whether it was made anew just now. Raises ConceptError if another
    process keeps it for longer than `PATIENCE`."""
    with contextlib.closing(_connect(folder)) as db:
        made = db.execute("PRAGMA user_version").fetchone()[0] != VERSION
        if made:
            for statement in _TABLES.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {VERSION}")
        try:
            yield Index(db, folder), made
            db.execute("COMMIT")
        except sqlite3.OperationalError as error:  # a full disk
            raise _unusable(folder, error) from error
        # closing without COMMIT rolls back


def _connect(folder: Folder) -> sqlite3.Connection:
    """A connection that holds the write lock. What is no SQLite file is put aside."""
    for _ in range(3):
        folder.make()
        db = sqlite3.connect(folder.index, timeout=PATIENCE, isolation_level=None)
        db.row_factory = sqlite3.Row
        try:
            db.execute("BEGIN IMMEDIATE")
            if db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok":
                return db
        except sqlite3.OperationalError as error:
            db.close()
            raise _unusable(folder, error) from error
        except sqlite3.DatabaseError:  # what follows is for both kinds of damage
            pass
        db.close()
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            folder.index.replace(folder.index.with_suffix(".broken"))
    raise _unusable(folder, "it is damaged")


def _unusable(folder: Folder, why: object) -> ConceptError:
    return ConceptError(
        f"The library's index '{folder.index}' cannot be used ({why}): see whether another program holds it "
        "or the disk is full, or delete it; it is made again."
    )
