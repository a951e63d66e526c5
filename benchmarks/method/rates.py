"""The learning rate of each method: its first, or the one that a search on other subjects found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from atomdiff.files.atomic import write_atomically

from .handmade import BASE
from .ledger import DIGITS
from .protocol import Method
from .running import Bench
from .tasks import Task

GRID = (0.25, 1.0, 4.0)  # of a method's first rate; the better edge is followed for EDGES steps more
EDGES = 2
CONTEXT_LOSS, LEAK_GAIN = 0.03, 0.10  # what a rate may cost at most before it counts against it


class Rates:
    """The rates that were found, those published and those in the JSON file `path`, with all their scores.

    One that was found for another recipe of the method is not seen, and with `aside` none.
    """

    def __init__(self, path: Path, published: Path | None = None, aside: bool = False) -> None:
        self.path, self.published, self._aside = path, published, aside
        self._found: dict[str, dict[str, Any]] = {}
        for file in (published, path):
            if file and file.exists():
                self._found |= json.loads(file.read_text())

    def searched(self, method: Method) -> bool:
        """Whether the method's rate was found by a search."""
        found = self._found.get(method.name)
        return found is not None and found["recipe"] == method.recipe and not self._aside

    def of(self, method: Method) -> float:
        """The rate found, else the method's first."""
        return float(self._found[method.name]["rate"]) if self.searched(method) else method.rate

    def search(self, bench: Bench, method: Method, tasks: Sequence[Task]) -> None:
        """Finds the rate of the grid with the best score on `tasks`, and keeps it."""
        if not method.rate:
            return
        scores = {factor * method.rate: score(bench, method, tasks, factor * method.rate) for factor in GRID}
        for _ in range(EDGES):
            best = max(scores, key=lambda rate: scores[rate])
            if min(scores) < best < max(scores):
                break
            ratio = GRID[1] / GRID[0]
            further = best / ratio if best == min(scores) else best * ratio
            scores[further] = score(bench, method, tasks, further)
        best = max(scores, key=lambda rate: scores[rate])
        shown = {f"{rate:g}": round(scores[rate], DIGITS) for rate in sorted(scores)}
        on = [task.name for task in tasks]
        self._found[method.name] = {"recipe": method.recipe, "rate": best, "scores": shown, "on": on}
        self._write(self.path)

    def publish(self) -> None:
        """Writes all that is known where it is published."""
        assert self.published
        self._write(self.published)

    def _write(self, path: Path) -> None:
        text = json.dumps(self._found, indent=1, ensure_ascii=False, sort_keys=True)
        write_atomically(path, f"{text}\n".encode())


def score(bench: Bench, method: Method, tasks: Sequence[Task], rate: float) -> float:
    """Mean likeness, less what context is lost and leak gained beyond what is allowed, in the first
    precision."""
    first = replace(method, precisions=method.precisions[:1])
    scores = []
    for task in tasks:
        (plain,) = bench.run(BASE, task, 0, 0.0).values()
        (made,) = bench.run(first, task, 0, rate).values()
        lost = plain.figures["context"] - made.figures["context"] - CONTEXT_LOSS
        leaked = made.figures["leak"] - plain.figures["leak"] - LEAK_GAIN
        scores.append(made.likeness - max(0.0, lost) - max(0.0, leaked))
    return sum(scores) / len(scores)
