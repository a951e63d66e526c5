"""A training run shown in a terminal: notices as lines, work as progress bars with the time left."""

import contextlib
import copy
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from atomdiff.training.reporting import Reporter, StepRecord

SMOOTHING = 0.95  # of the loss that is shown: a single step's says little
PLAIN_EVERY = 25  # steps between lines where the output is no terminal


class Terminal(Reporter, contextlib.AbstractContextManager):
    """Use as a context manager. Into a file or a pipe it writes a line now and then instead of bars."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[extra]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._loss: float | None = None
        self._drift = ""
        self._of = ""

    def subject(self, name: str) -> "Terminal":
        """The same terminal for one of several runs at once, whose lines and bars say which one it is."""
        own = copy.copy(self)
        own._of, own._tasks = f"{name}: ", {}
        return own

    def __enter__(self) -> "Terminal":
        self._progress.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._progress.stop()

    def notice(self, text: str) -> None:
        self.console.print(f"{self._of}{text}", markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self.console.print(f"Warning: {self._of}{text}", markup=False, style="yellow", soft_wrap=True)

    def stage(self, what: str, done: int, total: int) -> None:
        self._show(what, done, total, "")
        if not self.console.is_terminal and done in (0, total):
            self.notice(f"{what}: {done} of {total}")

    def step(self, record: StepRecord) -> None:
        before = record.loss if self._loss is None else self._loss
        self._loss = SMOOTHING * before + (1 - SMOOTHING) * record.loss
        self._drift = self._drift if record.drift is None else f", drift {record.drift:.2f}"
        shown = f"loss {self._loss:.4f}{self._drift}"
        self._show("Training", record.step, record.steps, shown)
        due = record.step % PLAIN_EVERY == 0 or record.step in (1, record.steps)
        if due and not self.console.is_terminal:
            self.notice(f"Step {record.step} of {record.steps}: {shown}, {record.seconds:.2f} s")

    def _show(self, what: str, done: int, total: int, extra: str) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(f"{self._of}{what}", total=total, extra=extra)
        self._progress.update(self._tasks[what], completed=done, extra=extra)
