"""Trainings of one subject on a base at several rates, judged from their files as any tool draws them.

What is finished is kept in benchmarks/results, a line each, so that a run goes on where it was ended.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

import atomdiff
from atomdiff import pocket
from atomdiff.base.stable_diffusion import Base
from atomdiff.core.spec import AtomSpec
from atomdiff.files import safetensors_file
from atomdiff.pocket.judge import Judge
from atomdiff.sampling.sheets import save_picture
from atomdiff.training.reporting import Reporter, StepRecord

from ..judging import Drawing, SubjectJudge, likeness
from ..ledger import PUBLISHED
from ..tasks import Task, tuning_subjects

LEDGER = PUBLISHED / "function_speed.jsonl"
SPEC = AtomSpec(num_atoms=9, linear_atoms="attn2", linear_block=4)
HAND = (6.25e-4, 1.25e-3, 2.5e-3, 5e-3, 1e-2)  # of conv atoms; linear ones learn LINEAR times as fast
LINEAR = 2.0
WORD_RATE = 1e-2
COURSE: dict[str, Any] = {
    "recipe": "atoms+dc", "num_class_images": 16,
    "max_train_steps": 100, "train_batch_size": 2, "token_learning_rate": WORD_RATE, "max_drift": 0.0,
    "precision": "fp32", "checkpointing_steps": 0, "timeline_steps": 0,
}  # fmt: skip
PLAIN = Drawing(each=6, steps=10)
DIGITS = 4


@dataclass(frozen=True)
class Trial:
    """One training: the base's name, the subject, and the rates of conv and linear atoms."""

    base: str
    subject: str
    rate: float
    linear_rate: float


class Heard(Reporter):
    """Remembers how far the class had moved when a run ended."""

    drift = 0.0

    def step(self, record: StepRecord) -> None:
        self.drift = self.drift if record.drift is None else record.drift


class Trials:
    """Trials that are done, with their figures, and those to come. `base_of` loads a base by its name."""

    def __init__(self, out: Path, base_of: Callable[[str], Base], ledger: Path = LEDGER) -> None:
        self.out, self._base_of, self.ledger = out, base_of, ledger
        self._setup = sha256(repr((sorted(COURSE.items()), PLAIN, _pocket())).encode()).hexdigest()[:8]
        self._bases: dict[str, Base] = {}
        self._judges: dict[str, SubjectJudge] = {}
        self.known: dict[Trial, dict[str, float]] = {}
        for line in ledger.read_text().splitlines() if ledger.exists() else ():
            entry = json.loads(line)
            if entry["setup"] == self._setup:
                self.known[Trial(**entry["trial"])] = entry["figures"]

    def base(self, name: str) -> Base:
        if name not in self._bases:
            self._bases[name] = self._base_of(name)
        return self._bases[name]

    def run(self, trial: Trial) -> dict[str, float]:
        """Its figures, from the ledger or after training."""
        if trial not in self.known:
            base = self.base(trial.base)
            (task,) = [task for task in tuning_subjects(2) if task.name == trial.subject]
            if trial.base not in self._judges:
                judge = Judge.load(pocket.path() / "judge.safetensors")
                made = task.judge(base, judge, PLAIN)
                assert isinstance(made, SubjectJudge)
                self._judges[trial.base] = made
            rates = {"learning_rate": trial.rate, "linear_learning_rate": trial.linear_rate}
            heard = Heard()
            with torch.random.fork_rng():
                concept = atomdiff.train(
                    _folder(self.out, task),
                    self.out / trial.base.replace(" ", "-"),
                    base,
                    reporter=heard,
                    **(COURSE | rates | {"class_word": task.asked.split()[-1]}),
                )
            filed = safetensors_file.from_bytes(safetensors_file.to_bytes(concept, "int4"))
            figures = self._judges[trial.base].likeness(base, [filed], task.asked)
            self._keep(trial, {"likeness": likeness(figures), **figures, "class drift": heard.drift})
        return self.known[trial]

    def _keep(self, trial: Trial, figures: dict[str, float]) -> None:
        self.known[trial] = {name: round(value, DIGITS) for name, value in figures.items()}
        entry = {"setup": self._setup, "trial": asdict(trial), "figures": self.known[trial]}
        with self.ledger.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def by_hand(base: str, subject: str) -> list[Trial]:
    """The five rates that a person would try."""
    return [Trial(base, subject, rate, LINEAR * rate) for rate in HAND]


def _folder(out: Path, task: Task) -> Path:
    """The subject's pictures as files."""
    folder = out / "pictures" / task.name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(task.pictures):
        save_picture(picture, folder / f"{number}.png")
    return folder


def _pocket() -> str:
    return sha256((pocket.path() / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()[
        :8
    ]


@contextmanager
def alone(path: Path | None) -> Iterator[None]:
    """Within: no other process holds the lock at `path`, where one is given."""
    if path is None:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
