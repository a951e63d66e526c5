"""All trainings of a server: begun, queued, stopped, taken up again and kept.

A training goes on whether anyone looks or not; a page only asks how far it is. What a stopped one, or one
whose server was stopped, has reached is kept, and it can go on from there."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from atomdiff.errors import SettingsError
from atomdiff.serving import training_jobs
from atomdiff.serving.bases import Bases
from atomdiff.serving.job_queue import Job, JobQueue
from atomdiff.serving.training_jobs import Timings
from atomdiff.serving.training_session import TrainingRequest, TrainingSession, TrainingStatus, defaults_of

if TYPE_CHECKING:
    from atomdiff.library import Entry, Library


class Trainings:
    """The trainings in `folder`/trainings; `mark` makes of an owner what stands for them in files.

    An owner may have `each` under way. `kept` is told of every finished one, see `training_jobs.train`."""

    def __init__(
        self,
        folder: Path,
        queue: JobQueue,
        bases: Bases,
        mark: Callable[[str], str],
        each: int = 1,
        kept: Callable[[TrainingSession], str] = lambda session: "",
    ) -> None:
        self._queue, self._bases, self._mark = queue, bases, mark
        self._each, self._kept = each, kept
        self._timings = Timings(folder / "timings.json")
        self.folder = folder / "trainings"
        self.folder.mkdir(exist_ok=True)
        self._sessions: dict[str, TrainingSession] = {}
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        for found in self.folder.iterdir():
            with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
                self._sessions[found.name] = TrainingSession.read(found)

    def of(self, owner: str) -> list[TrainingSession]:
        """The owner's, the latest first."""
        with self._lock:
            own = [session for session in self._sessions.values() if session.owner == self._mark(owner)]
        return sorted(own, key=lambda session: -session.made)

    def all(self) -> list[TrainingSession]:
        """Everybody's."""
        with self._lock:
            return list(self._sessions.values())

    def get(self, owner: str, ident: str) -> TrainingSession:
        """One of the owner's. Raises SettingsError if there is none."""
        session = self._sessions.get(ident)
        if session is None or session.owner != self._mark(owner):
            raise SettingsError("There is no such training (any more).")
        return session

    def start(self, owner: str, request: TrainingRequest) -> TrainingSession:
        """Begins a training, or queues it. Raises SettingsError or ImageError for what cannot work."""
        self._refuse_more(owner)
        self._bases.check(request.base)
        folder = self.folder / secrets.token_hex(16)
        settings = request.settings(self._bases.info(request.base), folder)
        try:
            request.copy_files(folder / "pictures")
            session = TrainingSession(folder, self._mark(owner), settings, time.time())
            session.save()
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise SettingsError(
                f"The training cannot be kept in '{self.folder}': {error.strerror}."
            ) from None
        with self._lock:
            self._sessions[session.ident] = session
        self._submit(session)
        return session

    def resume(self, owner: str, ident: str) -> TrainingSession:
        """Takes a stopped training up again. Raises SettingsError if it is none, or another is under way."""
        session = self.get(owner, ident)
        if session.status().state not in ("stopped", "failed"):
            raise SettingsError("Only a training that was stopped can go on.")
        self._refuse_more(owner)
        self._submit(session, again=True)
        return session

    def take_up_all(self) -> int:
        """Takes up every training that was stopped with its server; returns how many there are."""
        stopped = [session for session in self._sessions.values() if session.status().state == "stopped"]
        for session in sorted(stopped, key=lambda session: session.made):
            self._submit(session, again=True)
        return len(stopped)

    def drop(self, owner: str, ident: str, patience: float = 60) -> None:
        """Stops a training, if it is under way, and forgets it. Raises SettingsError if there is none."""
        session, job = self.get(owner, ident), self._jobs.get(ident)
        if job is not None:
            job.cancel()
            job.wait(patience)
        self.delete(owner, session.ident)

    def stop(self, owner: str) -> int:
        """Stops the owner's training after the step at hand, and keeps it; returns how many there were."""
        return self._queue.cancel(_job_owner(self._mark(owner)))

    def status(self, session: TrainingSession) -> TrainingStatus:
        """The training now, with its place in the queue."""
        job, now = self._jobs.get(session.ident), session.status()
        if job is not None and now.state == "waiting":
            queued = self._queue.status(job)
            if queued.over:  # stopped while it waited: its work was never begun
                session.change(state="stopped")
                session.save()
                return session.status()
            return replace(now, ahead=queued.ahead)
        return now

    def delete(self, owner: str, ident: str) -> None:
        """Forgets a training and all its files. Raises SettingsError while it is under way."""
        session = self.get(owner, ident)
        if not self.status(session).over:
            raise SettingsError("This training is under way: stop it first.")
        with self._lock:
            self._sessions.pop(ident, None)
            self._jobs.pop(ident, None)
        shutil.rmtree(session.folder, ignore_errors=True)

    def keep(self, owner: str, ident: str, step: int, library: Library) -> Entry:
        """Puts the state after `step` into the library. Raises ConceptError or SettingsError."""
        from atomdiff.files.safetensors_file import to_bytes

        session = self.get(owner, ident)
        timeline = session.timeline()
        if timeline is None:
            raise SettingsError("This training has kept no state yet: let it run a little.")
        entry = library.add(to_bytes(timeline.at(step), session.settings.precision))
        pictures = session.samples().get(step)
        return library.set_thumbnail(entry.id, pictures[0]) if pictures else entry

    def draw_state(self, owner: str, session: TrainingSession, step: int) -> Job:
        """Draws a kept state that has no pictures yet."""
        return self._queue.submit(
            f"timeline of {owner}", training_jobs.draw_state(session, self._bases, step)
        )

    def measure(self, owner: str, request: TrainingRequest) -> Job:
        """Measures how long such a training takes here; the job's result is the Timing. Raises
        SettingsError."""
        self._bases.check(request.base)
        folder = Path(tempfile.mkdtemp(prefix="atomdiff-"))
        settings = request.settings(self._bases.info(request.base), folder)
        try:
            request.copy_files(folder / "pictures", captions=False)
        except OSError as error:
            raise SettingsError(f"The pictures cannot be read: {error.strerror}.") from None
        settings = replace(settings, caption_extension="")
        measured = training_jobs.measure(settings, self._bases, self._timings)

        def work(job: Job) -> None:
            try:
                measured(job)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

        return self._queue.submit(f"timing for {owner}", work)

    def expected(self, request: TrainingRequest) -> tuple[int, float | None, int | None]:
        """Steps, seconds and bytes of such a training; None for what was not measured yet. Raises
        SettingsError."""
        info = self._bases.info(request.base)
        settings = replace(request.settings(info, self.folder / "none"), caption_extension="")
        timing, steps = self._timings.get(settings), int(settings.max_train_steps or 0)
        if timing is None:
            return steps, None, None
        drawn = not settings.with_prior_preservation or any(
            (session.settings.base, session.settings.class_prompt) == (settings.base, settings.class_prompt)
            and session.settings.with_prior_preservation
            and session.status().step > 0
            for session in self._sessions.values()
        )
        class_pictures = 0 if drawn else defaults_of(info).num_class_images
        return steps, timing.seconds(settings, class_pictures), timing.size

    def _refuse_more(self, owner: str) -> None:
        under_way = sum(not self.status(session).over for session in self.of(owner))
        if under_way >= self._each == 1:
            raise SettingsError("One training at a time: yours is under way, wait for it or stop it.")
        if under_way >= self._each:
            raise SettingsError(f"{under_way} of your trainings are under way: let one finish, or stop one.")

    def _submit(self, session: TrainingSession, again: bool = False) -> None:
        if again:
            session.settings = replace(session.settings, resume_from_checkpoint="latest")
        session.change(state="waiting", stage="", error="", seconds_left=None)
        work = self._work(session)
        self._jobs[session.ident] = self._queue.submit(_job_owner(session.owner), work, background=True)

    def _work(self, session: TrainingSession) -> Callable[[Job], None]:
        return training_jobs.train(session, self._bases, self._queue, self._kept)


def _job_owner(mark: str) -> str:
    """The owner of a training's job: Cancel on Draw is not for trainings."""
    return f"training of {mark}"
