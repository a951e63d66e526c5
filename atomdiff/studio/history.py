"""Everything that was drawn, in one SQLite file: it survives restarts, is searched by words, forgets on
demand.

Pictures lie beside it as files, named by what they show. Everyone has a folder whose name follows from a
secret of this studio, and each file has random letters, so that no one finds another's pictures by
guessing.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atomdiff.errors import SettingsError
from atomdiff.files.atomic import write_atomically
from atomdiff.sampling.sheets import save_picture

if TYPE_CHECKING:
    from PIL.Image import Image

_TABLE = """
create table if not exists pictures (
    id integer primary key, owner text not null, made real not null, kind text not null,
    file text not null, text text not null
);
create index if not exists pictures_by_owner on pictures (owner, id);
"""


@dataclass(frozen=True)
class Entry:
    """One picture. `text` is its generation text; `kind` is picture, without (its concept) or grid."""

    id: int
    made: float
    """Seconds since 1970."""
    kind: str
    file: Path
    text: str


class History:
    """The pictures in a folder. Safe to use from several threads: each call opens the database for itself.

    Raises SettingsError where the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._database = self.folder / "history.sqlite"
        try:
            (self.folder / "pictures").mkdir(parents=True, exist_ok=True)
            self._secret = _secret(self.folder / "secret")
            with self._open() as database:
                database.executescript(_TABLE)
        except (OSError, sqlite3.Error) as error:
            raise SettingsError(
                f"The folder {str(folder)!r} cannot hold the studio's pictures ({error}): give another."
            ) from error

    @property
    def pictures(self) -> Path:
        """The folder of all pictures, and of nothing else."""
        return self.folder / "pictures"

    def keep(self, owner: str, image: Image, kind: str = "picture", concept: bytes | None = None) -> Entry:
        """Saves a picture with its settings inside (and a concept, if given). Raises ImageError."""
        text = str(image.info.get("parameters", ""))
        words = re.sub(r"[^a-z0-9]+", "-", text.split("\n", 1)[0].lower()).strip("-")[:60].strip("-")
        seed = re.search(r"\bSeed: (\d+)", text)
        name = "-".join(filter(None, (words or kind, seed[1] if seed else "", secrets.token_hex(4))))
        file = save_picture(image, self._own(owner) / f"{name}.png", text, concept)
        made = time.time()
        with self._open() as database:
            row = database.execute(
                "insert into pictures (owner, made, kind, file, text) values (?, ?, ?, ?, ?)",
                (owner, made, kind, str(file.relative_to(self.folder)), text),
            )
            return Entry(int(row.lastrowid or 0), made, kind, file, text)

    def find(self, owner: str, words: str = "", limit: int = 24, start: int = 0) -> list[Entry]:
        """The owner's pictures, newest first, whose text has every one of the words."""
        where, values = _condition(owner, words)
        return self._entries(f"{where} order by id desc limit ? offset ?", (*values, limit, start))

    def count(self, owner: str, words: str = "") -> int:
        """How many pictures `find` would give without a limit."""
        where, values = _condition(owner, words)
        with self._open() as database:
            return int(database.execute(f"select count(*) from pictures where {where}", values).fetchone()[0])

    def get(self, owner: str, entry: int) -> Entry:
        """One picture of the owner. Raises SettingsError if there is none of this number."""
        found = self._entries("owner = ? and id = ?", (owner, entry))
        if not found:
            raise SettingsError(f"There is no picture {entry} in your history: it may have been deleted.")
        return found[0]

    def delete(self, owner: str, entries: Sequence[int]) -> int:
        """Forgets pictures of the owner and removes their files; returns how many there were."""
        gone = 0
        for number in entries:
            with contextlib.suppress(SettingsError):
                entry = self.get(owner, number)
                with self._open() as database:
                    database.execute("delete from pictures where id = ?", (entry.id,))
                entry.file.unlink(missing_ok=True)
                entry.file.with_suffix(".zip").unlink(missing_ok=True)  # what a grid has beside it
                gone += 1
        return gone

    def _entries(self, where: str, values: Sequence[object]) -> list[Entry]:
        select = f"select id, made, kind, file, text from pictures where {where}"
        with self._open() as database:
            rows = database.execute(select, values).fetchall()
        return [Entry(row[0], row[1], row[2], self.folder / row[3], row[4]) for row in rows]

    def _own(self, owner: str) -> Path:
        """The owner's folder."""
        return self.pictures / self.mark(owner)

    def mark(self, owner: str) -> str:
        """What stands for an owner in files that others may come to see; it tells nothing of the name."""
        return hmac.new(self._secret, owner.encode(), hashlib.sha256).hexdigest()[:32]

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A transaction: kept if the block ends well."""
        database = sqlite3.connect(self._database, timeout=30)
        try:
            with database:
                yield database
        finally:
            database.close()


def _condition(owner: str, words: str) -> tuple[str, list[str]]:
    """The `where` of a search, and its values."""
    parts = words.split()[:20]
    escaped = [re.sub(r"([\\%_])", r"\\\1", part) for part in parts]
    where = " and ".join(["owner = ?", *[r"text like ? escape '\'"] * len(parts)])
    return where, [owner, *(f"%{part}%" for part in escaped)]


def _secret(file: Path) -> bytes:
    """The studio's own secret, made at its first start; only its user may read it."""
    if not file.exists():
        write_atomically(file, secrets.token_bytes(32))
        file.chmod(0o600)
    return file.read_bytes()
