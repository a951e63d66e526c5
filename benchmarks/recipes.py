"""Recipes of the tool's own training, each judged on subjects of the pocket's world from its file.

What is finished is kept in OUT/results.jsonl, so that a run goes on where it was ended, and runs on other
subjects may go on beside it; what the docs say is published in benchmarks/results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from math import nan, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

import atomdiff
from atomdiff import pocket
from atomdiff.base.stable_diffusion import Base, load_base
from atomdiff.concept.concept import Concept
from atomdiff.files import safetensors_file
from atomdiff.pocket.judge import Judge
from atomdiff.sampling.sheets import save_picture
from atomdiff.training.defaults import suit_base
from atomdiff.training.settings import TrainingSettings

from .court import Drawing, Figures
from .method.ledger import PUBLISHED, Case, Ledger, Outcome
from .method.tasks import Task

VERSION = 5  # to be raised when the training or the figures change what a result means
BASE = "base"


@dataclass(frozen=True)
class Recipe:
    """Training settings, the precision of the file, and what of the drawing is unlike the others'."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    precision: str = TrainingSettings.precision
    drawing: Mapping[str, Any] = field(default_factory=dict)

    def case(self, task: Task, seed: int = 0) -> Case:
        """Where the result is kept: told apart by every setting, those left to the tool's defaults too."""
        settings = suit_base(replace(TrainingSettings(), **self.settings), "pocket", 64, 1)
        said = repr((sorted(asdict(settings).items()), sorted(self.drawing.items())))
        digest = sha256(said.encode()).hexdigest()[:12]
        return Case(self.name, digest, self.precision, task.name, seed, 0.0)


PLAIN = Recipe(BASE, precision="")


class Bench:
    """The pocket, its judge, and the results of one setup. `options` are training settings for every recipe
    that does not set them itself; `name` is that of the published results; each recipe is trained with so
    many `seeds`."""

    def __init__(
        self, name: str, out: Path, drawing: Drawing, options: Mapping[str, Any], seeds: int = 1
    ) -> None:
        seat = pocket.path() / "judge.safetensors"
        self.base, self.judge = load_base("pocket"), Judge.load(seat)
        self.out, self.drawing, self.options, self.seeds = out, drawing, dict(options), range(seeds)
        setup = {"version": VERSION, "drawing": repr(replace(drawing, batch=1)), "options": self.options}
        setup |= {"base": self.base.passport.sketch_text(), "judge": sha256(seat.read_bytes()).hexdigest()}
        self.ledger = Ledger(out / "results.jsonl", setup, PUBLISHED / f"{name}.jsonl")

    def judge_all(self, recipes: Sequence[Recipe], tasks: Sequence[Task]) -> None:
        """Fills the ledger with the base and the recipes on every task with every seed."""
        for task in tasks:
            self._judge(task, [case for case in self._cases(task, recipes) if not self._known(task, *case)])

    def mean(self, recipe: Recipe, tasks: Sequence[Task]) -> tuple[float, Figures]:
        """Bytes and figures, with the likeness among them, as means over tasks and seeds."""
        found = self._outcomes(recipe, tasks)
        keys = {key: None for outcome in found for key in outcome.figures}
        figures = {key: fmean(o.figures[key] for o in found if key in o.figures) for key in keys}
        return fmean(o.bytes for o in found), {"likeness": fmean(o.likeness for o in found)} | figures

    def lead(self, recipe: Recipe, other: Recipe, tasks: Sequence[Task]) -> tuple[float, float]:
        """By how much the likeness of `recipe` is above that of `other`, case by case: the mean and its
        standard error, which is not a number for a single case."""
        pairs = zip(self._outcomes(recipe, tasks), self._outcomes(other, tasks), strict=True)
        apart = [mine.likeness - others.likeness for mine, others in pairs]
        return fmean(apart), stdev(apart) / sqrt(len(apart)) if len(apart) > 1 else nan

    def _outcomes(self, recipe: Recipe, tasks: Sequence[Task]) -> list[Outcome]:
        seeds = [0] if recipe is PLAIN else self.seeds
        return [self.ledger.outcomes[recipe.case(task, seed)] for task in tasks for seed in seeds]

    def _cases(self, task: Task, recipes: Sequence[Recipe]) -> list[tuple[Recipe, int]]:
        return [(PLAIN, 0), *((recipe, seed) for seed in self.seeds for recipe in recipes)]

    def _known(self, task: Task, recipe: Recipe, seed: int) -> bool:
        return recipe.case(task, seed) in self.ledger.outcomes

    def _judge(self, task: Task, cases: Sequence[tuple[Recipe, int]]) -> None:
        """Recipes that differ in their file or in drawing alone share a training."""
        if not cases:
            return
        court = task.court(self.base, self.judge, self.drawing)
        trained: dict[str, Concept] = {}
        for recipe, seed in cases:
            concepts: list[Concept] = []
            size = 0
            if recipe is not PLAIN:
                settings = {**self.options, **recipe.settings, "seed": seed}
                said = repr(sorted(settings.items()))
                if said not in trained:
                    trained[said] = train(self.base, task, self.out, settings)
                data = safetensors_file.to_bytes(trained[said], recipe.precision)
                concepts, size = [safetensors_file.from_bytes(data)], len(data)
            court.drawing = replace(self.drawing, **recipe.drawing)
            figures, _ = court.try_case(self.base, concepts, task.asked)
            numbers = sum(concept.num_parameters() for concept in concepts)
            self.ledger.add(recipe.case(task, seed), Outcome(figures, size, 0, numbers, 0.0))


def train(base: Base, task: Task, out: Path, settings: Mapping[str, Any]) -> Concept:
    """A concept of the task's pictures with its numbers as they were trained, in full precision."""
    kind = task.asked.split()[-1]
    folder = out / "pictures" / task.name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(task.pictures):
        save_picture(picture, folder / f"{number}.png")
    said: dict[str, Any] = {
        "checkpointing_steps": 0,
        "timeline_steps": 0,
        "precision": "fp32",
        "class_word": kind,
        "name": kind,
    }
    with torch.random.fork_rng():
        return atomdiff.train(folder, out / "concepts" / folder.name, base, **(said | dict(settings)))
