"""The base models of a server: one on the device at a time, and what is known of the others."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atomdiff.base.architectures import ALIASES, ARCHITECTURES
from atomdiff.base.threads import ThreadCount
from atomdiff.errors import SettingsError

if TYPE_CHECKING:
    from atomdiff.base.stable_diffusion import Base
    from atomdiff.sampling.previews import Previewer

RATIOS = ((1, 1), (3, 4), (4, 3), (2, 3), (3, 2), (9, 16), (16, 9))


@dataclass(frozen=True)
class BaseInfo:
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


class Bases:
    """Loads `first` at once, the others when they are asked for; `load` makes a base of its reference.

    Raises BaseError if a base cannot be loaded. A model is loaded and used on the queue's thread only.
    """

    def __init__(self, load: Callable[[str], Base], first: str) -> None:
        self._load = load
        self._info: dict[str, BaseInfo] = {}
        self._loaded: Base | None = None
        self._previewer: Previewer | None = None
        self._reserved = ""
        self._threads = ThreadCount()
        self.names = {first: first}  # name -> how to ask for it
        self.default = self._take(first)
        self.names |= {name: name for name in ALIASES}

    def info(self, name: str) -> BaseInfo:
        """What is known of a base that was loaded once or is in ALIASES; of the default base else."""
        if name not in self._info and name in ALIASES:
            return _info(name, ALIASES[name].family, ALIASES[name].resolution)
        return self._info.get(name) or self._info[self.default]

    def check(self, name: str) -> None:
        """Raises SettingsError if the server was not started with this base."""
        if name not in self.names:
            raise SettingsError(
                f"The server was not started with the base {name!r}; it has {', '.join(self.names)}."
            )

    def get(self, name: str) -> Base:
        """The base with this name, loaded in the place of the one before. Raises BaseError or
        SettingsError."""
        self._threads.fit()
        if self._loaded is None or self._loaded.name != name:
            self.check(name)
            if self._reserved:
                raise SettingsError(
                    f"A training on {self._reserved} is under way: until it is over, only this base can draw."
                )
            self._loaded = self._previewer = None  # two do not fit on every device
            self._take(self.names[name])
        assert self._loaded is not None
        return self._loaded

    @contextlib.contextmanager
    def reserved(self, name: str) -> Iterator[None]:
        """Within: no other base takes the place of this one, which is being trained."""
        self._reserved = name
        try:
            yield
        finally:
            self._reserved = ""

    def previewer(self) -> Previewer:
        """What makes previews for the loaded base."""
        from atomdiff.sampling.previews import Previewer

        assert self._loaded is not None
        if self._previewer is None:
            self._previewer = Previewer(self._loaded)
        return self._previewer

    def _take(self, reference: str) -> str:
        base = self._loaded = self._load(reference)
        self.names.pop(reference, None)
        self.names = {base.name: reference, **self.names}
        self._info[base.name] = info_of(base)
        return base.name


def info_of(base: Base) -> BaseInfo:
    """What is known of a loaded base."""
    return _info(base.name, base.family, base.resolution)


def _info(name: str, family: str, resolution: int) -> BaseInfo:
    known = ARCHITECTURES[family]
    return BaseInfo(name, family, resolution, known.guidance, known.batch)
