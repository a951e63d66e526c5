"""Results as lines of JSON, one a finished case, that survive a kill at any moment.

Every line says the setup it was made with; lines of another setup (base, judge, steps, pictures, ...) stay in
the file but are not seen. What the docs say is published beside the benchmarks, so that a long campaign goes
on in any clone.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from atomdiff.evaluation.pocket_figures import Figures, overall
from atomdiff.files.atomic import write_atomically

PUBLISHED = Path(__file__).parent / "results"
DIGITS = 5  # of the figures that are published


@dataclass(frozen=True)
class Case:
    """One method on one task, with one seed; `recipe` is a digest of all its settings."""

    method: str
    recipe: str
    task: str
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What came of a case: the figures of pictures drawn plainly, and gated where that was drawn; the bytes
    of the file, the numbers in it, ‖ΔW‖/‖W‖ of the layer that moved most, seconds of the training."""

    figures: Figures
    gated: Figures = field(default_factory=dict)
    bytes: int = 0
    numbers: int = 0
    moved: float = 0.0
    seconds: float = 0.0

    @property
    def likeness(self) -> float:
        return overall(self.figures)

    @property
    def likeness_gated(self) -> float | None:
        """None where none was drawn."""
        return overall(self.gated) if self.gated else None

    @property
    def drift(self) -> float:
        """Mean over the bare class and other classes."""
        known = [self.figures[key] for key in ("drift", "drift others") if key in self.figures]
        return sum(known) / len(known)


class Ledger:
    """The outcomes of one setup: those that were published, and those in the file `path`.

    Whatever was cut off in mid-line is dropped from the file when it is opened.
    """

    def __init__(self, path: Path, setup: dict[str, object], published: Path | None = None) -> None:
        self.path, self.published = path, published
        self.setup = hashlib.blake2b(json.dumps(setup, sort_keys=True).encode(), digest_size=4).hexdigest()
        self.outcomes: dict[Case, Outcome] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes() if path.exists() else b""
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
        if published and published.exists():
            self._read(published.read_bytes())
        self._known = 0  # bytes of the file that were read
        self.refresh()

    def refresh(self) -> None:
        """Reads what other runs have added to the file since."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._known)
                data = file.read()
            whole = data.rfind(b"\n") + 1
            self._read(data[:whole])
            self._known += whole

    def _read(self, lines: bytes) -> None:
        for line in lines.splitlines():
            entry = json.loads(line)
            if entry["setup"] == self.setup:
                self.outcomes[Case(**entry["case"])] = Outcome(**entry["outcome"])

    def add(self, case: Case, outcome: Outcome) -> None:
        """Keeps an outcome, on the disk before this returns."""
        with self.path.open("a") as file:
            file.write(self._line(case, outcome))
            file.flush()
            os.fsync(file.fileno())
        self.outcomes[case] = outcome

    def publish(self) -> None:
        """Writes the outcomes of this setup, in order, where they are published; those of others stay."""
        assert self.published
        lines = [self._line(case, rounded(outcome)) for case, outcome in self.outcomes.items()]
        if self.published.exists():
            before = self.published.read_text().splitlines(keepends=True)
            lines += [line for line in before if json.loads(line)["setup"] != self.setup]
        write_atomically(self.published, "".join(sorted(lines)).encode())

    def _line(self, case: Case, outcome: Outcome) -> str:
        entry = {"setup": self.setup, "case": asdict(case), "outcome": asdict(outcome)}
        return json.dumps(entry, ensure_ascii=False) + "\n"


def rounded(outcome: Outcome) -> Outcome:
    def short(figures: Figures) -> Figures:
        return {name: round(value, DIGITS) for name, value in figures.items()}

    moved, seconds = round(outcome.moved, DIGITS), round(outcome.seconds, 1)
    figures, gated = short(outcome.figures), short(outcome.gated)
    return replace(outcome, figures=figures, gated=gated, moved=moved, seconds=seconds)
