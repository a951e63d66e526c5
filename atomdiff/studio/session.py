"""A running studio: its base models, library, history, others' files, job queue and trainings.

Every method may be called from any thread, but what loads a model belongs to the queue's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from atomdiff.errors import AtomdiffError, SettingsError
from atomdiff.sampling.prompts import Style, load_styles
from atomdiff.serving.bases import Bases
from atomdiff.serving.job_queue import JobQueue
from atomdiff.serving.trainings import Trainings
from atomdiff.studio.history import History
from atomdiff.studio.other_files import OtherFiles

if TYPE_CHECKING:
    from atomdiff.base.stable_diffusion import Base
    from atomdiff.concept.concept import Concept
    from atomdiff.core.blocks import Strength
    from atomdiff.library import Entry


@dataclass(frozen=True)
class Options:
    """How the studio is started. Raises SettingsError for what cannot work.

    `load` makes a base of its name; `concepts` is the library's folder (the user's own if None), `out` where
    pictures and history are kept; `allowed_hosts` are names by which others reach it, through a proxy say.
    """

    load: Callable[[str], Base]
    base: str = "pocket"
    concepts: Path | None = None
    out: Path = Path("outputs/studio")
    host: str = "127.0.0.1"
    port: int | None = None
    share: bool = False
    auth: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """(user, password) of everyone who is let in; all are if it is empty."""
    allowed_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.port is not None and not 1 <= self.port <= 65535:
            raise SettingsError(f"A port is a number from 1 to 65535, not {self.port}.")
        if not all(user and password for user, password in self.auth):
            raise SettingsError("--auth is USER:PASSWORD; neither part may be empty.")
        if len({user for user, _ in self.auth}) < len(self.auth):
            raise SettingsError("--auth has a user twice: give each a name of their own.")


class Studio:
    """Everything that the page talks to. Raises AtomdiffError if the base, the library or the history
    cannot be used."""

    def __init__(self, options: Options) -> None:
        from atomdiff.library import Library

        self.options = options
        self.history = History(options.out)
        self.library = Library(options.concepts)
        self.library.scan()
        self.others = OtherFiles(self.history.folder)
        self.queue = JobQueue()
        self.bases = Bases(options.load, options.base)
        self.trainings = Trainings(self.history.folder, self.queue, self.bases, self.history.mark)

    def concepts(self, scan: bool = False) -> list[Entry]:
        """The library, the latest first; empty if it cannot be read at the moment. `scan` looks for files
        that were put into its folder by other hands."""
        try:
            if scan:
                self.library.scan()
            return self.library.find()
        except AtomdiffError:
            return []

    @property
    def words(self) -> Path:
        """The folder of files of words, of which prompts take one: `__animal__` a line of animal.txt."""
        return self.history.folder / "words"

    def styles(self) -> dict[str, Style]:
        """Styles of prompts by name; own ones stand in styles.csv, beside the history. Raises
        SettingsError."""
        return load_styles(self.history.folder / "styles.csv")

    def load_concepts(self, chosen: Sequence[tuple[str, Strength]]) -> tuple[tuple[Concept, Strength], ...]:
        """Concepts by their ids, with their strengths. Raises ConceptError."""
        from atomdiff.files import card

        loaded = tuple((card.load(self.library.get(ident).path), strength) for ident, strength in chosen)
        for ident, _ in chosen:
            self.library.used(ident)
        return loaded

    def concept_named(self, name: str) -> Concept:
        """A concept by its name. Raises ConceptError if the library has none or several of it."""
        from atomdiff.files import card

        return card.load(self.library.named(name).path)

    def close(self) -> None:
        """Stops what is being drawn or trained."""
        self.queue.close()
