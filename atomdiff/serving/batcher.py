"""Requests of many clients, drawn together: whatever waits and fits (one size, sampler, guidance and number
of steps) shares a batch, in the order in which it came.

The batches are jobs of the queue that trainings run in too, which let them go first between two steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from atomdiff.errors import AtomdiffError, Interrupted
from atomdiff.serving.drawing import Step, Wanted
from atomdiff.serving.job_queue import Job, JobQueue
from atomdiff.serving.metrics import Metrics

if TYPE_CHECKING:
    from PIL.Image import Image

Draw = Callable[[Sequence[Wanted], Step], "list[Image | AtomdiffError]"]
STOPPED = "Stopped, as asked."


class Busy(AtomdiffError):
    """There is no room for more at the moment."""


@dataclass(eq=False)
class Ticket:
    """A request that was taken: its pictures, and what is known of them. `future` gives them, or the first
    error; `steps` are (done, of how many) of each."""

    owner: str
    wanted: Sequence[Wanted]
    future: Future[list[Image]] = field(default_factory=Future)
    made: dict[int, Image] = field(default_factory=dict)
    steps: dict[int, tuple[int, int]] = field(default_factory=dict)
    cancelled: bool = False
    began: float = field(default_factory=time.monotonic)

    def finish(self, error: BaseException | None = None) -> None:
        """Hands over the pictures, or the error. Only the first call counts."""
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result([self.made[i] for i in sorted(self.made)])

    @property
    def progress(self) -> float:
        """0 to 1."""
        return sum(done / total for done, total in self.steps.values()) / len(self.wanted)


class Batcher:
    """Draws by `draw`, at most `batch` pictures together and after at most `window` seconds; at most
    `waiting` may wait. Safe to call from any thread."""

    def __init__(
        self, queue: JobQueue, draw: Draw, batch: int, window: float, waiting: int, metrics: Metrics
    ) -> None:
        self._queue, self._draw, self._metrics = queue, draw, metrics
        self._batch, self._window, self._room = batch, window, waiting
        self._waiting: list[tuple[Ticket, int]] = []  # a picture each, in the order in which they came
        self._tickets: list[Ticket] = []
        self._asked = False  # whether a job of the queue will look at what waits
        self._change = threading.Condition()

    def submit(self, owner: str, wanted: Sequence[Wanted]) -> Ticket:
        """Takes a request. Raises Busy if too much waits, SettingsError if the server is closing."""
        ticket = Ticket(owner, wanted)
        with self._change:
            if len(self._waiting) + len(wanted) > self._room:
                raise Busy(f"{len(self._waiting)} pictures wait already: ask again in a few seconds.")
            self._ask()
            self._waiting += [(ticket, i) for i in range(len(wanted))]
            self._tickets.append(ticket)
            self._metrics.waiting.set(len(self._waiting))
            self._change.notify_all()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Nobody wants these pictures any more: what waits is dropped, and a batch that is drawn for such
        only stops at its next step."""
        with self._change:
            ticket.cancelled = True
            self._waiting = [one for one in self._waiting if one[0] is not ticket]
            self._metrics.waiting.set(len(self._waiting))
            self._end(ticket, None if ticket.made else Interrupted(STOPPED))

    def of(self, owner: str) -> list[Ticket]:
        """The owner's requests that are not finished."""
        with self._change:
            return [ticket for ticket in self._tickets if ticket.owner == owner]

    def _ask(self) -> None:
        if not self._asked:
            self._queue.submit("drawing", self._work)
            self._asked = True

    def _work(self, job: Job) -> None:
        """One batch; and what waits then is asked for again."""
        taken = self._take()
        try:
            if taken:
                self._drawn(taken)
        except Interrupted:
            self._settle(taken, {})
        except BaseException as error:  # of no picture in particular
            self._settle(taken, dict.fromkeys(range(len(taken)), error))
            raise
        finally:
            with self._change:
                self._asked = False
                if self._waiting:
                    self._ask()

    def _take(self) -> list[tuple[Ticket, int]]:
        """The oldest that waits and those that fit it, once there are enough or the window is over."""
        end = time.monotonic() + self._window
        with self._change:
            while True:
                fits = self._fitting()
                left = end - time.monotonic()
                if len(fits) >= self._batch or left <= 0 or not fits:
                    break
                self._change.wait(left)
            taken = set(map(id, fits))
            self._waiting = [one for one in self._waiting if id(one) not in taken]
            self._metrics.waiting.set(len(self._waiting))
        return fits

    def _fitting(self) -> list[tuple[Ticket, int]]:
        if not self._waiting:
            return []
        first, number = self._waiting[0]
        key = first.wanted[number].key
        return [one for one in self._waiting if one[0].wanted[one[1]].key == key][: self._batch]

    def _drawn(self, taken: list[tuple[Ticket, int]]) -> None:
        def step(done: int, total: int) -> None:
            for ticket, number in taken:
                ticket.steps[number] = done, total
            if all(ticket.cancelled for ticket, _ in taken):
                raise Interrupted(STOPPED)

        self._metrics.batches.observe(len(taken))
        with self._metrics.drawing.time():
            made = self._draw([ticket.wanted[number] for ticket, number in taken], step)
        self._settle(taken, dict(enumerate(made)))
        self._metrics.pictures.inc(sum(not isinstance(one, BaseException) for one in made))

    def _settle(self, taken: list[tuple[Ticket, int]], made: dict[int, Image | BaseException]) -> None:
        """Hands what came of a batch to those who asked."""
        with self._change:
            for place, (ticket, number) in enumerate(taken):
                came = made.get(place, Interrupted(STOPPED))
                if isinstance(came, BaseException):
                    self._waiting = [one for one in self._waiting if one[0] is not ticket]
                    self._end(ticket, came)
                    continue
                ticket.made[number] = came
                if len(ticket.made) == len(ticket.wanted):
                    self._end(ticket, None)

    def _end(self, ticket: Ticket, error: BaseException | None) -> None:
        ticket.finish(error)
        if ticket in self._tickets:
            self._tickets.remove(ticket)
