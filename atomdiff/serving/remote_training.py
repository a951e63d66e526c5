"""A training on a machine of a Ray cluster: what it needs comes with it (settings and pictures), and what it
leaves goes back (a concept of a few KB, its likeness), so that machines share no disk."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomdiff.errors import Interrupted, TrainingError, reason_of, sentence_of
from atomdiff.files.atomic import write_atomically
from atomdiff.training.reporting import Reporter, StepRecord
from atomdiff.training.settings import TrainingSettings

if TYPE_CHECKING:
    from atomdiff.base.stable_diffusion import Base
    from atomdiff.evaluation.best_step import Eyes

RETRIES = 5  # of a training whose process or machine was lost
EACH = 2  # pictures of each context that the likeness is judged on
EVERY = 0.5  # seconds between two reports of a training


@dataclass(frozen=True)
class Outcome:
    """What came of a training: the bytes of a concept and of a picture, or a sentence."""

    data: bytes = b""
    likeness: float | None = None
    picture: bytes = b""
    seconds: float = 0
    node: str = ""
    notes: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Report:
    """How far a training is."""

    stage: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    seconds_left: float | None = None


class Board:
    """Where trainings say how far they are: an actor, see `make_board`. What is lost with it is said anew."""

    def __init__(self) -> None:
        self._said: dict[str, Report] = {}

    def tell(self, key: str, report: Report) -> None:
        self._said[key] = report

    def read(self, keys: Sequence[str]) -> dict[str, Report]:
        """Of those that are under way; the others are forgotten."""
        self._said = {key: self._said[key] for key in keys if key in self._said}
        return self._said


def make_board() -> Any:
    """The actor, on this machine if it can be."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(Board).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()


def said(board: Any, keys: Sequence[str]) -> dict[str, Report]:
    """What the trainings said last; nothing while the board is lost."""
    import ray
    from ray.exceptions import RayError

    try:
        told: dict[str, Report] = ray.get(board.read.remote(list(keys)), timeout=5)
    except RayError:
        return {}
    return told


def task(cpus: float, gpus: float) -> Any:
    """`train_one` as a task of Ray's, which does it again where it was lost."""
    import ray

    return ray.remote(train_one).options(
        num_cpus=cpus,
        num_gpus=gpus,
        max_retries=RETRIES,
        retry_exceptions=[Interrupted, OSError, MemoryError],
    )


def outcome_of(ref: Any) -> Outcome:
    """What came of a task that is over, whatever Ray says of it."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        made: Outcome = ray.get(ref)
    except RayTaskError as error:
        cause = error.cause if isinstance(error.cause, BaseException) else error
        made = Outcome(error=f"It broke off: {sentence_of(cause) or reason_of(cause)}")
    except RayError as error:
        made = Outcome(error=f"Its process or machine was lost, {RETRIES + 1} times: {reason_of(error)}")
    return made


def told(settings: TrainingSettings) -> dict[str, Any]:
    """What decides a training, wherever it runs."""
    here = ("instance_data_dir", "output_dir")
    return {name: value for name, value in dataclasses.asdict(settings).items() if name not in here}


def pictures_of(settings: TrainingSettings) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file directly in a subject's folder, in order."""
    for path in sorted(Path(settings.instance_data_dir).expanduser().iterdir()):
        if path.is_file() and not path.name.startswith("."):
            yield path.name, path.read_bytes()


# ------------------------------------------------------------------------------- on the machine that trains


def train_one(
    told: dict[str, Any], pictures: dict[str, bytes], key: str, board: Any, judge: bool, tower: str = ""
) -> Outcome:
    """One training. What was lost here before goes on from its saved state.

    Raises Interrupted, OSError or MemoryError for what another machine may have better luck with."""
    from atomdiff.training.run import concept_path, fit

    began, folder, reporter = time.monotonic(), folder_of(key), _Telling(key, board)
    reporter.say(Report("Loading the base"))
    own = {"instance_data_dir": str(folder / "pictures"), "output_dir": str(folder), "base": told["base"]}
    likeness, picture = None, b""
    try:
        _make(folder.parent)
        for name, data in pictures.items():
            write_atomically(folder / "pictures" / Path(name).name, data)
        settings = TrainingSettings(**(told | own | {"resume_from_checkpoint": "latest"}))
        base = _base(settings.base, settings.mixed_precision)
        fit(settings, base=base, reporter=reporter)
        data = concept_path(settings).read_bytes()
        if judge:
            reporter.say(Report("Judging"))
            likeness, picture = judged(base, data, folder / "pictures", tower)
    except (Interrupted, OSError, MemoryError):
        raise
    except Exception as error:
        if (sentence := sentence_of(error)) is None:
            raise
        return Outcome(error=sentence.replace(f"'{folder / 'pictures'}'", "its folder"))
    forget(key)
    return Outcome(data, likeness, picture, time.monotonic() - began, _node(), tuple(reporter.notes))


def folder_of(key: str) -> Path:
    """Where a training has its files on the machine that trains."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"atomdiff-farm-{user}" / key


def _make(folder: Path) -> None:
    """A folder for our user alone. Raises TrainingError where another user has made it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise TrainingError(f"'{folder}' is another user's on the machine that trains: have it removed.")


def forget(key: str) -> None:
    """Removes what a training has left on this machine."""
    shutil.rmtree(folder_of(key), ignore_errors=True)


def forget_everywhere(key: str) -> None:
    """Has what a training has left removed on every machine of the cluster."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ray.remote(forget).options(num_cpus=0, scheduling_strategy=there).remote(key)


class _Telling(Reporter):
    """Tells the board, not too often."""

    def __init__(self, key: str, board: Any) -> None:
        self._key, self._board, self._last = key, board, 0.0
        self._first: tuple[float, int] | None = None  # when the first step was done, and which
        self.notes: list[str] = []

    def say(self, report: Report, at_once: bool = True) -> None:
        if at_once or time.monotonic() - self._last > EVERY:
            self._last = time.monotonic()
            self._board.tell.remote(self._key, report)

    def notice(self, text: str) -> None:
        if text.startswith("Skipped"):
            self.notes.append(f"{text}.")

    def warn(self, text: str) -> None:
        self.notes.append(text)

    def stage(self, what: str, done: int, total: int) -> None:
        self.say(Report(f"{what}: {done} of {total}"), at_once=done in (0, total))

    def step(self, record: StepRecord) -> None:
        now, left = time.monotonic(), None
        if self._first is None:
            self._first = now, record.step
        elif record.step > self._first[1]:
            left = (now - self._first[0]) / (record.step - self._first[1]) * (record.steps - record.step)
        report = Report("Training", record.step, record.steps, record.loss, left)
        self.say(report, at_once=record.last)


def judged(base: Base, data: bytes, photographs: Path, tower: str = "") -> tuple[float | None, bytes]:
    """The likeness of what a concept draws to the photographs, None where nothing can judge it; and one of
    the pictures."""
    from atomdiff.evaluation.best_step import CONTEXTS
    from atomdiff.evaluation.dreambench_run import photographs as read
    from atomdiff.evaluation.likeness import likeness
    from atomdiff.files.safetensors_file import from_bytes
    from atomdiff.sampling.draw import draw
    from atomdiff.sampling.sheets import picture_bytes

    concept = from_bytes(data)
    called = f"a {concept.trigger} {concept.class_word}".strip()
    drawn = draw(base, [f"{called} {where}" for where in CONTEXTS], concepts=[concept], count=EACH)
    eyes = _eyes(base.family, tower, str(base.device))
    score = None if eyes is None else likeness(eyes.images(drawn), eyes.images(read(photographs)))
    return score, picture_bytes(drawn[0])


@functools.lru_cache(maxsize=1)
def _eyes(family: str, tower: str, device: str) -> Eyes | None:
    from atomdiff.evaluation.best_step import eyes_for

    return eyes_for(family, tower, device)


@functools.lru_cache(maxsize=1)
def _base(name: str, precision: str | None) -> Base:
    """Loaded once in a process, which Ray keeps for the next task."""
    from atomdiff.training.run import shared_base

    return shared_base(TrainingSettings(base=name, mixed_precision=precision))


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""
