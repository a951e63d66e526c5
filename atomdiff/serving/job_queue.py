"""One queue on the device: jobs of many people, run one after another, each watched and stopped by its owner.

A job is a function that is handed its `Job` and reports every step. That is also where it is stopped: the
next `progress` or `show` after a cancel raises `Interrupted`, so a cancel takes effect within one step."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

from atomdiff.errors import Interrupted, SettingsError, sentence_of

MAX_WAITING = 8  # jobs of one owner that wait at a time: one person cannot fill the queue
OVER = ("done", "cancelled", "failed")
DEFECT = "Something went wrong inside the server; the terminal that it runs in shows what."

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobStatus:
    """A job at one moment. `ahead` jobs go first while it is `waiting`."""

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


def duration(seconds: float) -> str:
    """About how long, in words."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


class Job:
    """Something that the device does for an owner; made by `JobQueue.submit`."""

    def __init__(self, owner: str, work: Callable[[Job], None], background: bool = False) -> None:
        self.owner, self.background = owner, background
        self._work: Callable[[Job], None] | None = work
        self._lock = threading.Lock()
        self._status = JobStatus("waiting")
        self._stage_began: tuple[float, int] | None = None  # when, and with how many steps done
        self._cancelled, self._over = threading.Event(), threading.Event()

    def progress(self, done: int, total: int, stage: str = "") -> None:
        """Reports progress. Raises Interrupted if the owner cancelled the job."""
        self._check()
        now = time.monotonic()
        with self._lock:
            if self._stage_began is None or stage != self._status.stage:
                self._stage_began = (now, done)
            began, first = self._stage_began
            left = (now - began) / (done - first) * (total - done) if done > first else None
            self._status = replace(self._status, done=done, total=total, stage=stage, seconds_left=left)

    def show(self, previews: list[bytes]) -> None:
        """Shows what is being made (PNG files). Raises Interrupted if the owner cancelled the job."""
        self._check()
        self._change(previews=tuple(previews))

    def add(self, *results: Any) -> None:
        """Hands over finished results, which stay whatever happens afterwards."""
        with self._lock:
            self._status = replace(self._status, results=self._status.results + results, previews=())

    def note(self, sentence: str) -> None:
        """Something the owner should know; told once."""
        with self._lock:
            if sentence not in self._status.notes:
                self._status = replace(self._status, notes=(*self._status.notes, sentence))

    def cancel(self) -> None:
        """Stops the job: at once if it waits, else at its next step."""
        self._cancelled.set()
        with self._lock:
            waits = self._status.state == "waiting"
            if waits:
                self._status = replace(self._status, state="cancelled")
        if waits:
            self._end("cancelled")

    @property
    def cancelled(self) -> bool:
        """Whether the owner cancelled it, for work that ends in its own way."""
        return self._cancelled.is_set()

    @property
    def over(self) -> bool:
        return self._over.is_set()

    def wait(self, seconds: float | None = None) -> JobStatus:
        """Blocks until the job is over, at most so long."""
        self._over.wait(seconds)
        return self.status()

    def status(self) -> JobStatus:
        """The job now."""
        with self._lock:
            return self._status

    def run(self) -> None:
        """Does the work; the queue calls it. Nothing is raised: `status` tells what went wrong."""
        with self._lock:
            if self._status.state != "waiting":
                return
            self._status = replace(self._status, state="running")
        try:
            assert self._work is not None
            self._work(self)
            self._end("done")
        except Interrupted:
            self._end("cancelled")
        except Exception as error:
            sentence = sentence_of(error)
            if sentence is None:
                log.exception("a job failed")
            self._end("failed", sentence or DEFECT)

    def _check(self) -> None:
        if self.cancelled:
            raise Interrupted("Stopped, as asked.")

    def _change(self, **values: Any) -> None:
        with self._lock:
            self._status = replace(self._status, **values)

    def _end(self, state: str, error: str = "") -> None:
        self._change(state=state, error=error, previews=())
        self._work = None  # what the work held on to is let go
        self._over.set()


class JobQueue:
    """Jobs in the order in which they came, one at a time on one thread.

    A `background` job, which may take hours, goes after all others, and lets those that come meanwhile go
    first wherever it calls `run_foreground`."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, owner: str, work: Callable[[Job], None], background: bool = False) -> Job:
        """Puts a job at the end of the queue. Raises SettingsError if the owner has too many there."""
        with self._change:
            if self._closed:
                raise SettingsError("The server is closing: ask again once it is back.")
            waiting = sum(job.owner == owner for job in self._unfinished())
            if waiting >= MAX_WAITING:
                raise SettingsError(f"{waiting} of your jobs wait already: let one finish, or cancel one.")
            job = Job(owner, work, background)
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="atomdiff-queue", daemon=True)
                self._thread.start()
            self._change.notify_all()
        return job

    def foreground_waits(self) -> bool:
        """Whether a job that is not in the background waits."""
        with self._change:
            return any(not job.background for job in self._unfinished())

    def run_foreground(self) -> None:
        """Runs what waits now and is not in the background; what comes meanwhile waits for the next call, so
        that both go on. For a background job, on the queue's thread, at a moment when the device is as it
        found it."""
        with self._change:
            waiting = [job for job in self._unfinished() if not job.background]
        for job in waiting:
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

    def status(self, job: Job) -> JobStatus:
        """The job now, with its place in the queue."""
        with self._change:
            before = self._unfinished()
            ahead = before.index(job) if job in before else 0
        now = job.status()
        return replace(now, ahead=ahead) if now.state == "waiting" else now

    async def watch(self, job: Job, every: float = 0.1) -> AsyncIterator[JobStatus]:
        """The job whenever something about it changed, until it is over. No thread waits meanwhile."""
        last = None
        while True:
            now = self.status(job)
            if now != last:
                yield now
            if now.over:
                return
            last = now
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
        """In the order in which they run."""
        self._jobs = [job for job in self._jobs if not job.over]
        return sorted(self._jobs, key=lambda job: job.background)
