"""What the desk does for a training: the training itself, which lets drawings go first between two of its
steps, and the pictures of a kept state."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from atomdiff.errors import AtomdiffError, Interrupted, SettingsError
from atomdiff.studio.course import Course
from atomdiff.studio.desk import Job
from atomdiff.training.reporting import Reporter, StepRecord

if TYPE_CHECKING:
    from atomdiff.studio.house import Studio
    from atomdiff.training.loop import Run

log = logging.getLogger(__name__)


def trained(studio: Studio, course: Course) -> Callable[[Job], None]:
    """The work of a training."""

    def work(job: Job) -> None:
        from atomdiff.training import run as training

        course.change(state="running", stage="Loading the base")
        told = _Told(studio, course, job)
        try:
            base = studio.base(course.settings.base)
            with studio.holding(base.name):
                settings = replace(course.settings, mixed_precision=_precision(base.dtype))
                training.fit(
                    settings, reporter=told, base=base, stop=lambda: job.stopping, between=told.give_way
                )
            course.change(state="done", seconds_left=None)
        except Interrupted:
            course.change(state="stopped", seconds_left=None)
            raise
        except AtomdiffError as error:
            course.change(state="failed", error=str(error))
            raise
        except BaseException:
            course.change(
                state="failed",
                error="The training broke off; the terminal that the studio runs in shows why.",
            )
            raise
        finally:
            with contextlib.suppress(OSError):  # a full disk is no reason to lose what is there
                course.save()

    return work


def frame(studio: Studio, course: Course, step: int) -> Callable[[Job], None]:
    """The work of drawing a kept state that has no pictures yet: the one at which it was stopped, say."""

    def work(job: Job) -> None:
        from atomdiff.sampling.draw import draw
        from atomdiff.sampling.sheets import save_picture

        timeline, settings = course.timeline(), course.settings
        if timeline is None:
            raise SettingsError("This training has kept no state.")
        job.progress(0, 1, "Drawing")
        drawn = draw(
            studio.base(settings.base),
            settings.validation_prompt,
            concepts=[timeline.at(step)],
            count=settings.num_validation_images,
            seed=settings.seed,
            batch_size=settings.sample_batch_size,
            callback=lambda done, total: job.progress(done, total, "Drawing"),
        )
        for i, picture in enumerate(drawn):
            save_picture(picture, course.folder / "validation" / f"step-{step:06d}-{i}.png")

    return work


class _Told(Reporter):
    """Hears of a run: keeps the course up to date, and lets drawings go first."""

    def __init__(self, studio: Studio, course: Course, job: Job) -> None:
        self._studio, self._course, self._job = studio, course, job
        self._seconds, self._count = 0.0, 0
        self._since = 0.0

    def notice(self, text: str) -> None:
        log.info(text)
        if text.startswith("Skipped"):
            self._course.note(f"{text}.")

    def warn(self, text: str) -> None:
        self._course.note(text)

    def stage(self, what: str, done: int, total: int) -> None:
        self._course.change(stage=f"{what}: {done} of {total}")
        self._job.progress(done, total, what)
        self._studio.desk.give_way()
        self._since = time.monotonic()

    def step(self, record: StepRecord) -> None:
        now = time.monotonic()
        self._seconds += now - self._since if self._since else record.seconds
        self._count += 1
        before = tuple(pair for pair in self._course.look().losses if pair[0] < record.step)
        self._course.change(
            stage="Training",
            step=record.step,
            steps=record.steps,
            losses=(*before, (record.step, record.loss)),
            seconds_left=self._seconds / self._count * (record.steps - record.step),
        )
        if record.saved:
            self._course.save()
        self._since = now

    def give_way(self, run: Run) -> None:
        """Between two steps: what others want drawn goes first."""
        if self._studio.desk.others_wait():
            with run.aside():
                self._studio.desk.give_way()
            self._since = time.monotonic()  # the time of others is not the training's


def _precision(dtype: Any) -> str:
    """The training's number format, that of the base."""
    return {"torch.float16": "fp16", "torch.bfloat16": "bf16"}.get(str(dtype), "no")
