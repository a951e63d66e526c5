"""One queue on the device: jobs of many people, done one after another, each seen and stopped by its owner.

A job is a function that is handed its `Job` and tells it of every step. That is also where it is stopped: the
next `progress` or `show` after a cancel raises `Interrupted`, so that a cancel takes effect within one step.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from atomdiff.errors import AtomdiffError, Interrupted, SettingsError

MAX_WAITING = 8  # jobs of one owner that wait at a time: one person cannot fill the queue
MAX_KEPT = 200  # jobs that are over and still remembered
OVER = ("done", "cancelled", "failed")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Look:
    """A job as it is at one moment. `ahead` jobs go first while it is `waiting`."""

    state: str
    """waiting, running, done, cancelled or failed."""
    ahead: int = 0
    stage: str = ""
    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    previews: tuple[bytes, ...] = ()
    """PNG files."""
    results: tuple[Any, ...] = ()
    """What is finished so far."""
    notes: tuple[str, ...] = ()
    error: str = ""
    """What went wrong, in a sentence."""

    @property
    def over(self) -> bool:
        return self.state in OVER


class Job:
    """Something that the device does for an owner; made by `Desk.submit`."""

    def __init__(self, number: int, owner: str, work: Callable[[Job], None], patient: bool = False) -> None:
        self.number, self.owner, self.patient = number, owner, patient
        self._work = work
        self._lock = threading.Lock()
        self._state, self._stage, self._error = "waiting", "", ""
        self._done = self._total = 0
        self._pace: tuple[float, int] | None = None  # when the first step ended, and which it was
        self._left: float | None = None
        self._previews: tuple[bytes, ...] = ()
        self._results: list[Any] = []
        self._notes: list[str] = []
        self._stop = threading.Event()
        self._over = threading.Event()

    def progress(self, done: int, total: int, stage: str = "") -> None:
        """Says how far the work is. Raises Interrupted if the owner stopped it."""
        self._check()
        now = time.monotonic()
        with self._lock:
            if self._pace is None or stage != self._stage:
                self._pace = (now, done)
            self._done, self._total, self._stage = done, total, stage
            started, first = self._pace
            self._left = (now - started) / (done - first) * (total - done) if done > first else None

    def show(self, previews: list[bytes]) -> None:
        """Shows what is being made (PNG files). Raises Interrupted if the owner stopped it."""
        self._check()
        with self._lock:
            self._previews = tuple(previews)

    def add(self, *results: Any) -> None:
        """Hands over finished results, which stay whatever happens afterwards."""
        with self._lock:
            self._results += results
            self._previews = ()

    def note(self, sentence: str) -> None:
        """Something the owner should know; told once."""
        with self._lock:
            if sentence not in self._notes:
                self._notes.append(sentence)

    def cancel(self) -> None:
        """Stops the job: at once if it waits, else at its next step."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether the owner stopped it, for work that ends in its own way."""
        return self._stop.is_set()

    def wait(self, seconds: float | None = None) -> Look:
        """Blocks until the job is over, at most so long."""
        self._over.wait(seconds)
        return self.look()

    def look(self, ahead: int = 0) -> Look:
        """The job now."""
        with self._lock:
            return Look(
                self._state,
                ahead if self._state == "waiting" else 0,
                self._stage,
                self._done,
                self._total,
                self._left,
                self._previews,
                tuple(self._results),
                tuple(self._notes),
                self._error,
            )

    def _check(self) -> None:
        if self._stop.is_set():
            raise Interrupted("Stopped, as asked.")

    def _set(self, state: str, error: str = "") -> None:
        with self._lock:
            self._state, self._error = state, error
            if state in OVER:
                self._previews = ()
        if state in OVER:
            self._work = _nothing  # what the work held on to is let go
            self._over.set()

    def run(self) -> None:
        """Does the work; the desk calls it. Nothing is raised: `look` tells what went wrong."""
        try:
            self._check()
            self._set("running")
            self._work(self)
            self._set("done")
        except Interrupted:
            self._set("cancelled")
        except AtomdiffError as error:
            self._set("failed", str(error))
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError) or re.search("out of memory|allocate memory", str(error)):
                self._set("failed", "There is not enough memory: draw smaller pictures, or fewer at a time.")
            else:
                self._defect()
        except Exception:
            self._defect()

    def _defect(self) -> None:
        log.exception("a job of the studio failed")
        self._set(
            "failed", "Something went wrong inside the studio; the terminal that it runs in shows what."
        )


class Desk:
    """The queue: jobs in the order in which they came, one at a time on one thread.

    A `patient` job, which may take hours, goes after all others, and lets those that come meanwhile go first
    wherever it calls `give_way`.
    """

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count(1)
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, owner: str, work: Callable[[Job], None], patient: bool = False) -> Job:
        """Puts a job at the end of the queue. Raises SettingsError if the owner has too many there."""
        with self._change:
            if self._closed:
                raise SettingsError("The studio is closing: start it again.")
            waiting = [job for job in self._unfinished() if job.owner == owner]
            if len(waiting) >= MAX_WAITING:
                raise SettingsError(
                    f"{len(waiting)} of your jobs wait already: let one finish, or cancel one."
                )
            job = Job(next(self._numbers), owner, work, patient)
            self._jobs[job.number] = job
            self._forget()
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="atomdiff-desk", daemon=True)
                self._thread.start()
            self._change.notify_all()
        return job

    def others_wait(self) -> bool:
        """Whether a job that is not patient waits."""
        with self._change:
            return any(not job.patient for job in self._unfinished())

    def give_way(self) -> None:
        """Does now what waits and is not patient. For a patient job, on the desk's thread, at a moment when
        the device is as it found it."""
        while True:
            with self._change:
                job = next((job for job in self._unfinished() if not job.patient), None)
            if job is None:
                return
            job.run()

    def current(self, owner: str) -> Job | None:
        """The owner's job that runs, or waits next."""
        with self._change:
            return next((job for job in self._unfinished() if job.owner == owner), None)

    def cancel(self, owner: str) -> int:
        """Stops every job of the owner; returns how many there were."""
        with self._change:
            mine = [job for job in self._unfinished() if job.owner == owner]
        for job in mine:
            job.cancel()
        return len(mine)

    def look(self, job: Job) -> Look:
        """The job now, with its place in the queue."""
        with self._change:
            before = self._unfinished()
            ahead = before.index(job) if job in before else 0
        return job.look(ahead)

    async def watch(self, job: Job, every: float = 0.1) -> AsyncIterator[Look]:
        """The job whenever something about it changed, until it is over. No thread waits meanwhile."""
        last = None
        while True:
            look = self.look(job)
            if look != last:
                yield look
            if look.over:
                return
            last = look
            await asyncio.sleep(every)

    def close(self, seconds: float = 30) -> None:
        """Stops every job and the thread, and waits for it at most so long."""
        with self._change:
            self._closed = True
            for job in self._unfinished():
                job.cancel()
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)

    def _serve(self) -> None:
        while True:
            with self._change:
                while not (self._closed or self._unfinished()):
                    self._change.wait()
                job = next(iter(self._unfinished()), None)
            if job is None:
                return
            job.run()

    def _unfinished(self) -> list[Job]:
        """In the order in which they are done."""
        waiting = [job for job in self._jobs.values() if not job._over.is_set()]
        return sorted(waiting, key=lambda job: job.patient)

    def _forget(self) -> None:
        """Lets go of the oldest jobs that are over."""
        over = [number for number, job in self._jobs.items() if job._over.is_set()]
        for number in over[: max(0, len(over) - MAX_KEPT)]:
            del self._jobs[number]


def _nothing(job: Job) -> None:
    """What is left of the work of a job that is over."""
