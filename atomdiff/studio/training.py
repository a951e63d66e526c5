"""Trainings on the desk: begun, queued, stopped and taken up again.

A training goes on whether anyone looks or not; a page only asks how far it is. Between two of its steps
drawings go first. What a stopped one, or one whose studio was stopped, has reached is kept, and it can go on
from there.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from atomdiff.errors import SettingsError
from atomdiff.studio.course import CAPTION, Course, View, Wish, parted
from atomdiff.studio.desk import Job
from atomdiff.studio.pace import measuring
from atomdiff.studio.teaching import trained
from atomdiff.training.defaults import FULL_SIZE, POCKET

if TYPE_CHECKING:
    from atomdiff.library import Entry
    from atomdiff.studio.house import Studio

LIVE = "training of "  # before the owner of its job: Cancel on Draw is not for trainings


class Trainings:
    """All trainings of a studio."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self.folder = studio.history.folder / "trainings"
        self.folder.mkdir(exist_ok=True)
        self._courses: dict[str, Course] = {}
        self._lock = threading.Lock()
        for folder in self.folder.iterdir():
            with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
                self._courses[folder.name] = Course.read(folder)

    def of(self, owner: str) -> list[Course]:
        """The owner's, the latest first."""
        with self._lock:
            own = [course for course in self._courses.values() if course.owner == self._mark(owner)]
        return sorted(own, key=lambda course: -course.made)

    def get(self, owner: str, ident: str) -> Course:
        """One of the owner's. Raises SettingsError if there is none."""
        course = self._courses.get(ident)
        if course is None or course.owner != self._mark(owner):
            raise SettingsError("There is no such training (any more).")
        return course

    def start(self, owner: str, wish: Wish) -> Course:
        """Begins a training, or queues it. Raises SettingsError or ImageError for what cannot work."""
        self._refuse_second(owner)
        self._studio.check_base(wish.base)
        folder = self.folder / secrets.token_hex(16)
        settings = wish.settings(self._studio.facts(wish.base), folder)
        try:
            _copy(wish, folder / "pictures")
            course = Course(folder, self._mark(owner), settings, time.time())
            course.save()
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise SettingsError(
                f"The training cannot be kept in '{self.folder}': {error.strerror}."
            ) from None
        with self._lock:
            self._courses[course.ident] = course
        self._submit(course)
        return course

    def measure(self, owner: str, wish: Wish) -> Job:
        """Measures how long such a training takes here; the job's result is the Pace. Raises
        SettingsError."""
        self._studio.check_base(wish.base)
        folder = Path(tempfile.mkdtemp(prefix="atomdiff-"))
        settings = wish.settings(self._studio.facts(wish.base), folder)
        try:
            _copy(replace(wish, files=wish.pictures), folder / "pictures")
        except OSError as error:
            raise SettingsError(f"The pictures cannot be read: {error.strerror}.") from None
        measured = measuring(self._studio, settings)

        def work(job: Job) -> None:
            try:
                measured(job)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

        return self._studio.desk.submit(f"timing for {owner}", work)

    def expected(self, wish: Wish) -> tuple[int, float | None, int | None]:
        """Steps, seconds and bytes of such a training; None for what was not measured yet. Raises
        SettingsError."""
        facts = self._studio.facts(wish.base)
        settings = wish.settings(facts, self.folder / "none")
        pace, steps = self._studio.paces.get(settings), int(settings.max_train_steps or 0)
        if pace is None:
            return steps, None, None
        family = POCKET if facts.family == "pocket" else FULL_SIZE
        drawn = any(
            (course.settings.base, course.settings.class_prompt) == (settings.base, settings.class_prompt)
            and course.settings.with_prior_preservation
            and course.look().step > 0
            for course in self._courses.values()
        )
        needed = 0 if drawn or not settings.with_prior_preservation else family.num_class_images
        return steps, pace.seconds(settings, needed), pace.size

    def go_on(self, owner: str, ident: str) -> Course:
        """Takes a stopped training up again. Raises SettingsError if it is none, or another is under way."""
        course = self.get(owner, ident)
        if course.look().state not in ("stopped", "failed"):
            raise SettingsError("Only a training that was stopped can go on.")
        self._refuse_second(owner)
        course.settings = replace(course.settings, resume_from_checkpoint="latest")
        self._submit(course)
        return course

    def stop(self, owner: str) -> int:
        """Stops the owner's training after the step at hand, and keeps it; returns how many there were."""
        return self._studio.desk.cancel(LIVE + self._mark(owner))

    def look(self, course: Course) -> View:
        """The training now, with its place in the queue."""
        view = course.look()
        if course.job is not None and view.state == "waiting":
            told = self._studio.desk.look(course.job)
            if told.over:  # stopped while it waited: its work was never begun
                course.change(state="stopped")
                course.save()
                return course.look()
            return replace(view, ahead=told.ahead)
        return view

    def delete(self, owner: str, ident: str) -> None:
        """Forgets a training and all its files. Raises SettingsError while it is under way."""
        course = self.get(owner, ident)
        if not self.look(course).over:
            raise SettingsError("This training is under way: stop it first.")
        with self._lock:
            self._courses.pop(ident, None)
        shutil.rmtree(course.folder, ignore_errors=True)

    def keep(self, owner: str, ident: str, step: int) -> Entry:
        """Puts the state after `step` into the library. Raises ConceptError or SettingsError."""
        from atomdiff.files.safetensors_file import to_bytes

        course = self.get(owner, ident)
        timeline = course.timeline()
        if timeline is None:
            raise SettingsError("This training has kept no state yet: let it run a little.")
        library = self._studio.library
        entry = library.add(to_bytes(timeline.at(step), course.settings.precision))
        pictures = course.frames().get(step)
        return library.set_thumbnail(entry.id, pictures[0]) if pictures else entry

    def _mark(self, owner: str) -> str:
        return self._studio.history.mark(owner)

    def _refuse_second(self, owner: str) -> None:
        if any(not self.look(course).over for course in self.of(owner)):
            raise SettingsError("One training at a time: yours is under way, wait for it or stop it.")

    def _submit(self, course: Course) -> None:
        course.change(state="waiting", stage="", error="", seconds_left=None)
        work = trained(self._studio, course)
        course.job = self._studio.desk.submit(LIVE + course.owner, work, patient=True)


def _copy(wish: Wish, folder: Path) -> None:
    """Keeps the pictures, in order and under names of our own, with their captions. Raises OSError."""
    folder.mkdir(parents=True)
    pictures, captions = parted(wish.files)
    for i, path in enumerate(pictures):
        shutil.copyfile(path, folder / f"{i:03d}{path.suffix.lower()[:10]}")
        if path.stem in captions:
            shutil.copyfile(captions[path.stem], folder / f"{i:03d}{CAPTION}")
