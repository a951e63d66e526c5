"""The studio behind the page: the base on the device, the library, the history and the desk.

Every method may be called from any thread, but `base`, which belongs to the desk's: a model is loaded and
used there only.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from atomdiff.errors import AtomdiffError, SettingsError
from atomdiff.studio.desk import Desk
from atomdiff.studio.history import History
from atomdiff.studio.pace import Paces
from atomdiff.studio.training import Trainings

if TYPE_CHECKING:
    from atomdiff.base.stable_diffusion import Base
    from atomdiff.concept.concept import Concept
    from atomdiff.core.blocks import Strength
    from atomdiff.library import Entry
    from atomdiff.sampling.previews import Previewer

RATIOS = ((1, 1), (3, 4), (4, 3), (2, 3), (3, 2), (9, 16), (16, 9))

NAMED = {"pocket": ("pocket", 64), "sd15": ("sd1", 512), "sd21": ("sd2", 768), "sdxl": ("sdxl", 1024)}


@dataclass(frozen=True)
class Options:
    """How the studio is started. Raises SettingsError for what cannot work.

    `load` makes a base of its name; `concepts` is the library's folder (the user's own if None), `out` where
    pictures and history are kept.
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

    def __post_init__(self) -> None:
        if self.port is not None and not 1 <= self.port <= 65535:
            raise SettingsError(f"A port is a number from 1 to 65535, not {self.port}.")
        if not all(user and password for user, password in self.auth):
            raise SettingsError("--auth is USER:PASSWORD; neither part may be empty.")
        if len({user for user, _ in self.auth}) < len(self.auth):
            raise SettingsError("--auth has a user twice: give each a name of their own.")


@dataclass(frozen=True)
class Facts:
    """What the page needs to know of a base: its native side, usual guidance and pictures at a time."""

    name: str
    family: str
    resolution: int
    guidance: float
    batch: int

    def sizes(self) -> dict[tuple[int, int], tuple[int, int]]:
        """(width, height) of about the native area, multiples of 8, and of which of RATIOS each is."""
        made: dict[tuple[int, int], tuple[int, int]] = {}
        for across, up in RATIOS:
            width = math.sqrt(self.resolution**2 * across / up)
            made.setdefault((8 * round(width / 8), 8 * round(width * up / across / 8)), (across, up))
        return made


class Studio:
    """Everything that the page talks to. Raises AtomdiffError if the base, the library or the history
    cannot be used."""

    def __init__(self, options: Options) -> None:
        from atomdiff.library import Library

        self.options = options
        self.history = History(options.out)
        self.library = Library(options.concepts)
        self.library.scan()
        self.desk = Desk()
        self.bases = {options.base: options.base}  # name -> how to ask for it
        self._facts: dict[str, Facts] = {}
        self._base: Base | None = None
        self._held = ""
        self._previewer: Previewer | None = None
        self.default = self._load(options.base).name
        self.bases |= {name: name for name in ("pocket", "sd15", "sd21", "sdxl")}
        self.trainings = Trainings(self)
        self.paces = Paces(self.history.folder / "paces.json")

    def facts(self, name: str) -> Facts:
        """What is known of a base that was loaded once or is in NAMED; of the default base else."""
        if name not in self._facts and name in NAMED:
            return _facts(name, *NAMED[name])
        return self._facts.get(name) or self._facts[self.default]

    def base(self, name: str) -> Base:
        """The base with this name, loaded in the place of the one before. For the desk's thread only.

        Raises BaseError if it cannot be loaded and SettingsError if the studio was not started with it.
        """
        if self._base is None or self._base.name != name:
            self.check_base(name)
            if self._held:
                raise SettingsError(
                    f"A training on {self._held} is under way: until it is over, only this base can draw."
                )
            self._base = self._previewer = None  # two do not fit on every device
            self._load(self.bases[name])
        assert self._base is not None
        return self._base

    @contextlib.contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Within: no other base takes the place of this one, which is being trained on."""
        self._held = name
        try:
            yield
        finally:
            self._held = ""

    def previewer(self) -> Previewer:
        """What makes previews for the loaded base."""
        from atomdiff.sampling.previews import Previewer

        assert self._base is not None
        if self._previewer is None:
            self._previewer = Previewer(self._base)
        return self._previewer

    def concepts(self, scan: bool = False) -> list[Entry]:
        """The library, the latest first; empty if it cannot be read at the moment. `scan` looks for files
        that were put into its folder by other hands."""
        try:
            if scan:
                self.library.scan()
            return self.library.find()
        except AtomdiffError:
            return []

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
        """Stops what is being drawn."""
        self.desk.close()

    def check_base(self, name: str) -> None:
        """Raises SettingsError if the studio was not started with this base."""
        if name not in self.bases:
            raise SettingsError(
                f"The studio was not started with the base {name!r}; it has {', '.join(self.bases)}."
            )

    def _load(self, ref: str) -> Base:
        base = self._base = self.options.load(ref)
        self.bases.pop(ref, None)
        self.bases = {base.name: ref, **self.bases}
        self._facts[base.name] = _facts(base.name, base.family, base.resolution)
        return base


def _facts(name: str, family: str, resolution: int) -> Facts:
    from atomdiff.sampling.draw import BATCH, GUIDANCE

    return Facts(name, family, resolution, GUIDANCE[family], BATCH[family])
