"""The states that a training keeps on its way, in a timeline file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from atomdiff.concept.concept import Concept
from atomdiff.concept.timeline import Timeline
from atomdiff.errors import ConceptError, SettingsError
from atomdiff.files.header import MAX_DATA
from atomdiff.files.timeline_file import load_timeline, save_timeline


class Recorder:
    """Keeps every `every`-th state of a run, and its last, in a file that is whole at any time.

    A run that goes on after `done` steps goes on with its own timeline, without what came later; any other
    begins a new one. What cannot be kept is told to `warn`, once, and is no reason to lose the run.
    """

    def __init__(self, path: Path, every: int, done: int, run: str, warn: Callable[[str], None]) -> None:
        self.path, self.every, self._run, self._warn = path, every, run, warn
        self._warned = False
        self.timeline: Timeline | None = None
        if done and path.exists():
            try:
                before = load_timeline(path)
                self.timeline = before.until(done) if before.run == run else None
            except ConceptError as error:
                self._tell(error)

    def require_room(self, total: int, numbers: int) -> None:
        """Refuses, before a run of `total` steps, what no file could hold. Raises SettingsError."""
        room = MAX_DATA // (2 * numbers + 4) - 2  # the last state, and one of a stop
        if total // self.every > room:
            raise SettingsError(
                f"--timeline_steps {self.every} would keep {total // self.every:,} states of "
                f"{2 * numbers:,} bytes, and a timeline holds {max(0, room):,}; "
                + (f"give {-(-total // room)} or more, or 0 for none." if room > 0 else "give 0 for none.")
            )

    def due(self, step: int, last: bool) -> bool:
        """Whether the state after this step is one to keep."""
        return last or step % self.every == 0

    def keep(self, step: int, loss: float, concept: Concept) -> None:
        """Adds a state and writes the file."""
        try:
            if self.timeline is None:
                grown = Timeline.begin(step, loss, concept, self._run)
            else:
                grown = self.timeline.then(step, loss, concept)
            save_timeline(grown, self.path)
            self.timeline = grown
        except ConceptError as error:
            self._tell(error)

    def _tell(self, error: ConceptError) -> None:
        if not self._warned:
            self._warn(f"States are missing from the timeline: {error}")
        self._warned = True
