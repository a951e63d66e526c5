"""A running server: its base, library, queue, batches and trainings; it knows no HTTP."""

from __future__ import annotations

import hashlib
import random
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomdiff.core.blocks import Strength, parse_strength
from atomdiff.errors import AtomdiffError, SettingsError
from atomdiff.sampling.region import Region
from atomdiff.sampling.settings import MAX_SEED, DrawingSettings
from atomdiff.serving.bases import BaseInfo, Bases
from atomdiff.serving.batcher import Batcher, Ticket
from atomdiff.serving.drawing import Drawer, Step, Stored, Wanted
from atomdiff.serving.job_queue import JobQueue
from atomdiff.serving.limits import Limits
from atomdiff.serving.metrics import Metrics
from atomdiff.serving.trainings import Trainings

if TYPE_CHECKING:
    from PIL.Image import Image

    from atomdiff.base.stable_diffusion import Base
    from atomdiff.library import Entry
    from atomdiff.serving.training_session import TrainingSession

IN_PROMPT = re.compile(r"<(?:atom|lora):([^:<>]{1,200})(?::([^<>]{1,80}))?>")
"""`<atom:dog:0.8>`; clients of A1111 that know LoRAs alone write `<lora:dog:0.8>`."""
MAX_KNOWN = 1024  # files of concepts that are kept in memory
CLOSING = 600.0  # seconds that a training has for the step at hand


@dataclass(frozen=True)
class Options:
    """How a server is started; see `atomdiff serve --help`. Raises SettingsError for what cannot work."""

    load: Callable[[str], Base]
    base: str = "pocket"
    concepts: Path | None = None
    out: Path = Path("outputs/serve")
    host: str = "127.0.0.1"
    tokens: tuple[str, ...] = field(default=(), repr=False)
    allowed_hosts: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        from atomdiff.serving.security import LOOPBACK

        if not all(re.fullmatch(r"[!-~]{8,}", token) for token in self.tokens):
            raise SettingsError(
                "A token has at least 8 letters of ASCII and no spaces: `openssl rand -hex 16` makes one."
            )
        if self.host not in LOOPBACK and not self.tokens:
            raise SettingsError(
                f"With --host {self.host} others on the network could draw and train: give a --token too."
            )


@dataclass(frozen=True)
class AskedRegion:
    """Where, a box in shares of the picture or a mask, which concepts act: (name or id, strength)."""

    where: tuple[float, ...] | Image
    concepts: tuple[tuple[str, Strength], ...] = ()
    prompt: str = ""


@dataclass(frozen=True)
class Asked:
    """A drawing as a client asks for it: what is None follows from the base, a seed below 0 is random.
    `concepts` in the prompt come to those here, which are (name or id, strength); they act everywhere, those
    of `regions` there."""

    prompt: str
    negative: str = ""
    concepts: tuple[tuple[str, Strength], ...] = ()
    count: int = 1
    seed: int = -1
    steps: int = 25
    guidance: float | None = None
    size: tuple[int, int] | None = None
    sampler: str = "dpm++"
    base: str = ""
    image: Image | None = None
    mask: Image | None = None
    strength: float = 0.75
    regions: tuple[AskedRegion, ...] = ()


class Service:
    """Everything that the endpoints talk to. Raises AtomdiffError if base, library or folder cannot be
    used."""

    def __init__(self, options: Options) -> None:
        self._open(options)
        self.queue = JobQueue()
        self.bases = Bases(options.load, options.base)
        self._drawer: Drawer | None = None
        limits, batch = self.limits, self.limits.batch or self.info().batch
        self.batcher = Batcher(self.queue, self._draw, batch, limits.window, limits.waiting, self.metrics)
        self.trainings = Trainings(options.out, self.queue, self.bases, str, limits.trainings, self._keep)
        self.trainings.take_up_all()

    def _open(self, options: Options) -> None:
        from atomdiff.library import Library

        self.options, self.limits, self.metrics = options, options.limits, Metrics()
        options.out.mkdir(parents=True, exist_ok=True)
        self.library = Library(options.concepts)
        self.library.scan()
        self._known: OrderedDict[str, Stored] = OrderedDict()

    def info(self, base: str = "") -> BaseInfo:
        """What is known of a base, by its name. Raises SettingsError for one that is not served."""
        if base and base != self.bases.default:
            raise SettingsError(f"There is no model {base[:80]!r} here: it is {self.bases.default!r}.")
        return self.bases.info(self.bases.default)

    def models(self) -> list[str]:
        """The names of the bases that can be asked for."""
        return [self.bases.default]

    def submit(self, owner: str, asked: Asked) -> Ticket:
        """Takes a request. Raises AtomdiffError: SettingsError or ConceptError for what cannot be drawn, Busy
        if there is no room."""
        return self.batcher.submit(owner, self.wanted(asked))

    def cancel(self, ticket: Ticket) -> None:
        """Nobody wants these pictures any more."""
        self.batcher.cancel(ticket)

    def of(self, owner: str) -> list[Ticket]:
        """The owner's requests that are not finished."""
        return self.batcher.of(owner)

    def wanted(self, asked: Asked) -> list[Wanted]:
        """A picture for each of the count. Raises SettingsError or ConceptError."""
        info = self.info(asked.base)
        prompt, named = in_prompt(asked.prompt)
        seed = random.randrange(2**32) if asked.seed < 0 else asked.seed
        if seed + asked.count - 1 > MAX_SEED:
            raise SettingsError(f"The seed {seed} is too large: take one below 2^63.")
        if asked.regions and asked.mask is not None:
            raise SettingsError("Regions are parts of a whole picture: leave out the mask, or the regions.")
        start = self._start(asked, info)
        concepts, regions = [*asked.concepts, *named], []
        for part in asked.regions:
            places = range(len(concepts), len(concepts) + len(part.concepts))
            concepts += part.concepts
            regions.append(Region(part.where, tuple(places), part.prompt))  # type: ignore[arg-type]
        settings = DrawingSettings(
            prompt,
            tuple(concepts),
            asked.negative,
            seed,
            asked.steps,
            asked.guidance,
            start.size if start else asked.size,
            asked.sampler.lower(),
            "plain",
            asked.strength if start else None,
            regions=tuple(regions),
        ).filled(info)  # type: ignore[arg-type]  # which has what is asked of a base
        self.limits.check(settings, asked.count, info)
        settings = settings.known_as(self.stored)
        return [
            Wanted(info.name, replace(settings, seed=seed + i), start) for i in range(asked.count)
        ]  # fmt: skip

    def entry(self, name: str) -> Entry:
        """A concept by its id, name, trigger or the first digits of its id. Raises ConceptError."""
        return self.library.get(name) if re.fullmatch("[0-9a-f]{64}", name) else self.library.named(name)

    def stored(self, name: str) -> Stored:
        """A concept's file by the same. Raises ConceptError."""
        from atomdiff.files.card import concept_bytes

        entry = self.entry(name)
        if entry.id not in self._known:
            data = concept_bytes(entry.path)
            self._known[entry.id] = Stored(hashlib.sha256(data).hexdigest(), data)
            while len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        return self._known[entry.id]

    def measure(self) -> bytes:
        """The metrics, with those that are looked up when they are asked for."""
        if self._drawer is not None:
            self.metrics.held.set(len(self._drawer.residents.held))
            self.metrics.held_bytes.set(self._drawer.residents.nbytes)
        return self._text()

    def _text(self) -> bytes:
        states = [self.trainings.status(session).state for session in self.trainings.all()]
        for state in ("waiting", "running", "stopped", "done", "failed"):
            self.metrics.trainings.labels(state).set(states.count(state))
        return self.metrics.text()

    def close(self) -> None:
        """Stops what is drawn, and trainings after the step at hand; these go on at the next start."""
        self.queue.close(CLOSING)

    def _draw(self, wanted: Sequence[Wanted], step: Step) -> list[Image | AtomdiffError]:
        base = self.bases.get(self.bases.default)
        if self._drawer is None or self._drawer.base is not base:
            self._drawer = Drawer(base)
        return self._drawer.draw(wanted, step)

    def _start(self, asked: Asked, info: BaseInfo) -> Any:
        """The picture to start from, as the pipeline takes it; None without one."""
        from atomdiff.sampling.img2img import fitting, start_from

        if asked.image is None:
            return None
        size = asked.size or (fitting(asked.image.size, info.resolution) if asked.mask is None else None)
        if size is not None:  # refused before anything of this size is made
            self.limits.check(DrawingSettings("", size=size), 1, info)
        return start_from(info, asked.image, asked.mask, asked.strength, size)  # type: ignore[arg-type]

    def _keep(self, session: TrainingSession) -> str:
        """Puts a finished training's concept into the library."""
        from atomdiff.training.run import concept_path

        return self.library.add(concept_path(session.settings)).id


def in_prompt(prompt: str) -> tuple[str, tuple[tuple[str, Strength], ...]]:
    """A prompt without its `<atom:NAME:STRENGTH>`, and these. Raises SettingsError for a strength that is
    none."""
    named = tuple((name.strip(), parse_strength(text or "1")) for name, text in IN_PROMPT.findall(prompt))
    return (" ".join(IN_PROMPT.sub(" ", prompt).split()) if named else prompt), named
