"""Results as lines of JSON, one a finished case, that survive a kill at any moment.

Every line says the setup it was made with; lines of another setup (base, judge, steps, pictures, ...) stay in
the file but are not seen.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from ..court import Figures, likeness


@dataclass(frozen=True)
class Case:
    """One method in one precision on one task, with one seed and learning rate."""

    method: str
    recipe: str
    precision: str
    task: str
    seed: int
    rate: float


@dataclass(frozen=True)
class Outcome:
    """What came of a case. `step`: one training step, as a multiple of the frozen floor; `payload`: bytes of
    the file without names and other headers."""

    figures: Figures
    bytes: int
    payload: int
    numbers: int
    step: float

    @property
    def likeness(self) -> float:
        return likeness(self.figures)

    @property
    def drift(self) -> float:
        """Mean over the bare class and other classes."""
        known = [self.figures[key] for key in ("drift", "drift others") if key in self.figures]
        return sum(known) / len(known)


class Ledger:
    """The file of outcomes of one setup; whatever was cut off in mid-line is dropped when it is opened."""

    def __init__(self, path: Path, setup: dict[str, object]) -> None:
        self.path = path
        self.setup = hashlib.blake2b(json.dumps(setup, sort_keys=True).encode(), digest_size=4).hexdigest()
        self.outcomes: dict[Case, Outcome] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes() if path.exists() else b""
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
        for line in data[:whole].splitlines():
            entry = json.loads(line)
            if entry["setup"] == self.setup:
                self.outcomes[Case(**entry["case"])] = Outcome(**entry["outcome"])

    def add(self, case: Case, outcome: Outcome) -> None:
        """Keeps an outcome, on the disk before this returns."""
        line = json.dumps({"setup": self.setup, "case": asdict(case), "outcome": asdict(outcome)})
        with self.path.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.outcomes[case] = outcome
