"""What the queue runs for a training: the training itself, which lets drawings go first between two of its
steps, pictures of a kept state, and the timing of a few steps beforehand."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomdiff.errors import Interrupted, SettingsError, sentence_of
from atomdiff.files.atomic import write_atomically
from atomdiff.serving.bases import Bases
from atomdiff.serving.job_queue import Job, JobQueue
from atomdiff.serving.training_session import TrainingSession
from atomdiff.training.reporting import Reporter, StepRecord

if TYPE_CHECKING:
    from atomdiff.base.stable_diffusion import Base
    from atomdiff.training.loop import Run
    from atomdiff.training.settings import TrainingSettings

TIMED = 3  # steps; the first of them, which warms up, does not count
TIMING = "Timing a step on this machine"
NOT_TIMED = ("instance_data_dir", "output_dir", "name", "class_word", "trigger", "instance_prompt",
             "class_prompt", "validation_prompt", "max_train_steps", "timeline_steps", "checkpointing_steps",
             "validation_steps", "seed", "learning_rate", "linear_learning_rate")  # fmt: skip
"""Settings that change neither the time of a step nor the size of the concept."""

log = logging.getLogger(__name__)


def train(
    session: TrainingSession,
    bases: Bases,
    queue: JobQueue,
    kept: Callable[[TrainingSession], str] = lambda session: "",
) -> Callable[[Job], None]:
    """The work of a training; `kept` is told of a finished one, and gives the id under which it is kept."""

    def work(job: Job) -> None:
        from atomdiff.training import run as training

        session.change(state="running", stage="Loading the base")
        reporter = _Reporter(session, job, queue)
        with settling(session):
            base = bases.get(session.settings.base)
            with bases.reserved(base.name):
                settings = replace(session.settings, mixed_precision=precision_of(base.dtype))
                training.fit(
                    settings,
                    reporter=reporter,
                    base=base,
                    stop=lambda: job.cancelled,
                    between=reporter.between_steps,
                )
            session.change(state="done", seconds_left=None, concept=kept(session))

    return work


@contextlib.contextmanager
def settling(session: TrainingSession) -> Iterator[None]:
    """Within: the work of a training; how it ends is said in its status, and kept."""
    try:
        yield
    except Interrupted:
        session.change(state="stopped", seconds_left=None)
        raise
    except BaseException as error:
        broke = "The training broke off; the terminal that the server runs in shows why."
        session.change(state="failed", error=sentence_of(error) or broke)
        raise
    finally:
        with contextlib.suppress(OSError):  # a full disk is no reason to lose what is there
            session.save()


def draw_state(session: TrainingSession, bases: Bases, step: int) -> Callable[[Job], None]:
    """The work of drawing a kept state that has no pictures yet: the one at which it was stopped, say."""

    def work(job: Job) -> None:
        from atomdiff.sampling.draw import draw
        from atomdiff.sampling.sheets import save_picture

        timeline, settings = session.timeline(), session.settings
        if timeline is None:
            raise SettingsError("This training has kept no state.")
        job.progress(0, 1, "Drawing")
        drawn = draw(
            bases.get(settings.base),
            settings.validation_prompt,
            concepts=[timeline.at(step)],
            count=settings.num_validation_images,
            seed=settings.seed,
            batch_size=settings.sample_batch_size,
            callback=lambda done, total: job.progress(done, total, "Drawing"),
        )
        for i, picture in enumerate(drawn):
            save_picture(picture, session.folder / "validation" / f"step-{step:06d}-{i}.png")

    return work


class _Reporter(Reporter):
    """Hears of a run: keeps the session's status up to date, and lets drawings go first."""

    def __init__(self, session: TrainingSession, job: Job, queue: JobQueue) -> None:
        self._session, self._job, self._queue = session, job, queue
        self._seconds, self._count = 0.0, 0
        self._since = 0.0

    def notice(self, text: str) -> None:
        log.info(text)
        if text.startswith("Skipped"):
            self._session.note(f"{text}.")

    def warn(self, text: str) -> None:
        self._session.note(text)

    def stage(self, what: str, done: int, total: int) -> None:
        self._session.change(stage=f"{what}: {done} of {total}")
        self._job.progress(done, total, what)
        self._queue.run_foreground()
        self._since = time.monotonic()

    def step(self, record: StepRecord) -> None:
        now = time.monotonic()
        self._seconds += now - self._since if self._since else record.seconds
        self._count += 1
        status = self._session.status()
        before = tuple(pair for pair in status.losses if pair[0] < record.step)
        drifts = tuple(pair for pair in status.drifts if pair[0] < record.step)
        self._session.change(
            stage="Training",
            step=record.step,
            steps=record.steps,
            losses=(*before, (record.step, record.loss)),
            drifts=drifts if record.drift is None else (*drifts, (record.step, record.drift)),
            seconds_left=self._seconds / self._count * (record.steps - record.step),
        )
        if record.saved:
            self._session.save()
        self._since = now

    def between_steps(self, run: Run) -> None:
        """What others want drawn goes first."""
        if self._queue.foreground_waits():
            with run.aside():
                self._queue.run_foreground()
            self._since = time.monotonic()  # the time of others is not the training's


# ---------------------------------------------------------------------------------------------- timing


@dataclass(frozen=True)
class Timing:
    """Seconds a step and a drawn picture, bytes of the concept."""

    step: float
    picture: float
    size: int

    def seconds(self, settings: TrainingSettings, class_pictures: int) -> float:
        """Of a whole training, with the pictures along it; `class_pictures` are to be drawn first."""
        steps = int(settings.max_train_steps or 0)
        drawn = -(-steps // settings.validation_steps) * settings.num_validation_images + class_pictures
        return steps * self.step + drawn * self.picture


class Timings:
    """What was measured on this machine, in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def get(self, settings: TrainingSettings) -> Timing | None:
        """None if it was not measured yet."""
        try:
            return Timing(**self._read()[_key(settings)])
        except (KeyError, TypeError):
            return None

    def put(self, settings: TrainingSettings, timing: Timing) -> None:
        """Remembers a timing. Raises OSError."""
        known = self._read() | {_key(settings): asdict(timing)}
        write_atomically(self._file, json.dumps(known, indent=1).encode())

    def _read(self) -> dict[str, dict]:
        try:
            known = json.loads(self._file.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def measure(settings: TrainingSettings, bases: Bases, timings: Timings) -> Callable[[Job], None]:
    """The work of timing TIMED steps and a drawing, with the pictures of `settings`; its result is the
    Timing."""

    def work(job: Job) -> None:
        from atomdiff.concept.timeline import shared
        from atomdiff.files.safetensors_file import to_bytes
        from atomdiff.training import run as training

        base = bases.get(settings.base)
        job.progress(0, 1, TIMING)
        with tempfile.TemporaryDirectory(prefix="atomdiff-") as name:
            folder = Path(name) / "class"  # the pictures stand in for class pictures
            shutil.copytree(settings.instance_data_dir, folder)
            short = replace(
                settings, output_dir=name, class_data_dir=str(folder), max_train_steps=TIMED,
                timeline_steps=0, num_class_images=len(list(folder.iterdir())),
                checkpointing_steps=0, validation_prompt="",
            )  # fmt: skip
            clock = _Clock(job)
            concept = training.fit(short, base=base, reporter=clock, stop=lambda: job.cancelled)
        size = len(to_bytes(shared(concept), settings.precision))
        timing = Timing(min(clock.seconds[1:]), _drawing_seconds(base, settings), size)
        timings.put(settings, timing)
        job.add(timing)

    return work


def _drawing_seconds(base: Base, settings: TrainingSettings) -> float:
    """Of one picture of 25 steps among those drawn at once: what a step takes, and what comes on top."""
    from atomdiff.sampling.draw import draw

    taken, count = [], settings.num_validation_images
    for steps in (1, 3):
        start = time.perf_counter()
        draw(base, settings.instance_prompt, count=count, batch_size=count, steps=steps)
        taken.append(time.perf_counter() - start)
    step = max(0.0, (taken[1] - taken[0]) / 2)
    return (taken[0] + 24 * step) / count


class _Clock(Reporter):
    def __init__(self, job: Job) -> None:
        self._job = job
        self.seconds: list[float] = []

    def stage(self, what: str, done: int, total: int) -> None:
        self._job.progress(0, 1, TIMING)

    def step(self, record: StepRecord) -> None:
        self.seconds.append(record.seconds)


def _key(settings: TrainingSettings) -> str:
    decisive = {name: value for name, value in asdict(settings).items() if name not in NOT_TIMED}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def precision_of(dtype: Any) -> str:
    """The training's number format, that of the base."""
    return {"torch.float16": "fp16", "torch.bfloat16": "bf16"}.get(str(dtype), "no")
