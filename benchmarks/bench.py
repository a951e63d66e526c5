"""The one runner of every benchmark that trains: methods on tasks, judged from their files, kept in a ledger.

Recipes of the tool are trained by the tool, peers by `peers.fit`. What is finished is in OUT/results.jsonl,
so that a run goes on where it was ended and others may go on beside it; trained numbers are in OUT/concepts,
so that a change of the judging costs no training. `publish` puts the outcomes into benchmarks/results, from
where a run goes on in any clone.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from hashlib import sha256
from math import nan, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from PIL import Image
from rich.progress import track

import atomdiff
from atomdiff import pocket
from atomdiff.base.stable_diffusion import Base, load_base
from atomdiff.concept.concept import Concept
from atomdiff.errors import ConceptError, SettingsError
from atomdiff.evaluation.drift import drift
from atomdiff.evaluation.pocket_figures import CONTEXTS, Drawing, Figures, StyleJudge, SubjectJudge
from atomdiff.files import safetensors_file
from atomdiff.pocket.judge import Judge
from atomdiff.pocket.world import SIDE
from atomdiff.sampling.sheets import save_picture
from atomdiff.training.defaults import POCKET, suit_base, suit_recipe
from atomdiff.training.settings import TrainingSettings

from .ledger import PUBLISHED, Case, Ledger, Outcome
from .peers import Handle, fit
from .report import command
from .tasks import Task, prepare

VERSION = 6  # to be raised when the training or the figures change what a result means


@dataclass(frozen=True)
class Method:
    """A recipe of the tool with its `settings`, or a peer: what `attach` puts into a base, trained at `rate`
    for so many `steps`, with class pictures or without. Neither: the base."""

    name: str
    settings: Mapping[str, Any] | None = None
    attach: Callable[[Base], Handle] | None = None
    rate: float = 0.0
    steps: int = POCKET.max_train_steps
    prior: bool = True

    @property
    def is_ours(self) -> bool:
        return self.settings is not None

    def full_settings(self) -> TrainingSettings:
        """Those left to the tool's defaults too."""
        settings = suit_recipe(TrainingSettings(**(self.settings or {})))
        return suit_base(settings, "pocket", SIDE, 1)

    @cached_property
    def digest(self) -> str:
        """8 hex digits over all settings."""
        said: object = (self.rate, self.steps, self.prior)
        if self.is_ours:  # without what is off: a setting that comes new and off makes no other training
            chosen = asdict(self.full_settings())
            told = {item.name for item in fields(TrainingSettings) if not item.metadata["inert"]}
            told = told - {"recipe", "base"} | {"precision"}  # a recipe is known by what it chose
            said = sorted((name, value) for name, value in chosen.items() if name in told and value)
        return sha256(repr(said).encode()).hexdigest()[:8]

    def case(self, task: Task, seed: int = 0) -> Case:
        """Where the result is kept. No seed changes the base."""
        return Case(self.name, self.digest, task.name, 0 if self == BASE else seed)


BASE = Method("base")


def parser(name: str, about: str | None, seeds: int = 1, docs: str = "docs/results.md") -> ArgumentParser:
    """The command line of a benchmark that trains, with the options that all of them have; with `seeds` 0,
    which is one seed, all that it trains is needed for its tables."""
    made = command(name, about, docs)
    add = made.add_argument
    add("--each", type=int, default=4, help="pictures of each prompt, in each of the 8 contexts")
    add("--draw-steps", type=int, default=12)
    made.set_defaults(seeds=1, report=False)
    if seeds:
        add("--seeds", type=int, default=seeds)
        add("--report", action="store_true", help="train nothing: the tables of what is known")
    add("--out", type=Path, default=Path("outputs") / name)
    return made


@dataclass
class Bench:
    """The pocket, its judge, and the outcomes of one setup; `name` is that of the published ones."""

    name: str
    out: Path
    drawing: Drawing = field(default_factory=Drawing)
    seeds: int = 1
    pocket: Path = field(default_factory=pocket.path)
    given: Base | None = None
    """A base made of the pocket, which its judge then judges."""
    trains: bool = True

    def __post_init__(self) -> None:
        weights = self.pocket / "judge.safetensors"
        bundled = self.pocket == pocket.path()
        self.base = self.given or load_base("pocket" if bundled else str(self.pocket))
        self.judge = Judge.load(weights)
        setup = {"version": VERSION, "drawing": [self.drawing.each, self.drawing.steps]}
        setup |= {"base": self.base.passport.sketch_text(), "judge": sha256(weights.read_bytes()).hexdigest()}
        self.ledger = Ledger(self.out / "results.jsonl", setup, PUBLISHED / f"{self.name}.jsonl")
        self._judges: dict[str, SubjectJudge | StyleJudge] = {}

    @classmethod
    def of(cls, a: Namespace, name: str, folder: Path | None = None) -> Bench:
        """As the command line says, on another pocket where its folder is given."""
        made = cls(name, a.out, Drawing(a.each, a.draw_steps), a.seeds, folder or pocket.path())
        made.trains = not a.report
        return made

    # ----------------------------------------------------------------------------------------- running

    def run(self, methods: Sequence[Method], tasks: Sequence[Task]) -> None:
        """Everything that is missing, unless nothing is to be trained: seed by seed all tasks with the base
        and all methods."""
        work = [
            (method, task, seed)
            for seed in range(self.seeds if self.trains else 0)
            for task in tasks
            for method in (BASE, *methods)
            if method.case(task, seed) not in self.ledger.outcomes
        ]
        for method, task, seed in track(work, "cases"):
            self.ledger.refresh()
            if method.case(task, seed) not in self.ledger.outcomes:
                self.ledger.add(method.case(task, seed), self._outcome(method, task, seed))

    def _outcome(self, method: Method, task: Task, seed: int) -> Outcome:
        judge = self._judge(task)
        if method.is_ours:
            return self._ours(method, task, seed, judge)
        if method.attach:
            return self._peer(method, task, seed, judge)
        return Outcome(judge.judge_all(self.base, [], task.asked)[0])

    def _ours(self, method: Method, task: Task, seed: int, judge: SubjectJudge | StyleJudge) -> Outcome:
        """Trained by the tool, written as the tool writes it, read again and drawn both ways."""
        start = time.process_time()
        trained = self._trained(method, task, seed)
        seconds = time.process_time() - start
        data = safetensors_file.to_bytes(trained, method.full_settings().precision)
        concept = safetensors_file.from_bytes(data)
        figures, pictures = judge.judge_all(self.base, [concept], task.asked)
        judge.drawing = replace(self.drawing, acting="gated")
        gated, others = judge.called(self.base, [concept], task.asked)
        judge.drawing = self.drawing
        self._keep(method, task, seed, pictures + others)
        moved = max((item.ratio for item in drift(concept, self.base.unet)), default=0.0)
        return Outcome(figures, gated, len(data), concept.num_parameters(), moved, seconds)

    def _trained(self, method: Method, task: Task, seed: int) -> Concept:
        """In full precision; kept, so that it is trained once."""
        path = self.out / "concepts" / f"{method.digest}-{slug(task.name)}-{seed}.safetensors"
        if not path.exists():
            trained = train(self.base, task, self.out, {**(method.settings or {}), "seed": seed})
            safetensors_file.save_concept(trained, path, "fp32")
        return safetensors_file.load_concept(path)

    def _peer(self, method: Method, task: Task, seed: int, judge: SubjectJudge | StyleJudge) -> Outcome:
        assert method.attach
        data = prepare(self.base, task, POCKET.num_class_images)
        start, handle = time.process_time(), method.attach(self.base)
        try:
            data = data if method.prior else replace(data, prior=None)
            fit(handle, data, method.steps, POCKET.train_batch_size, seed, method.rate)
            seconds, file = time.process_time() - start, handle.to_bytes()
            with handle.filed(file):
                figures, pictures = judge.judge_all(handle.base, [], handle.asked(task.asked))
            self._keep(method, task, seed, pictures)
        except (ConceptError, SettingsError):  # numbers that cannot be written, pictures of NaN
            return Outcome(dict.fromkeys(("colour", "second", "pattern", "identity", "context", "leak"), 0.0))
        return Outcome(figures, {}, len(file), handle.numbers(), 0.0, seconds)

    def _judge(self, task: Task) -> SubjectJudge | StyleJudge:
        if task.name not in self._judges:
            self._judges[task.name] = task.judge(self.base, self.judge, self.drawing)
        return self._judges[task.name]

    def _keep(self, method: Method, task: Task, seed: int, pictures: Sequence[Image.Image]) -> None:
        """The first picture of every context in a row, and what was drawn gated in a second one."""
        chosen, columns = pictures[:: self.drawing.each], len(CONTEXTS)
        width, height = chosen[0].size
        sheet = Image.new("RGB", (width * columns, height * -(-len(chosen) // columns)))
        for i, picture in enumerate(chosen):
            sheet.paste(picture, (i % columns * width, i // columns * height))
        save_picture(sheet, self.out / "pictures" / f"{slug(method.name)}-{slug(task.name)}-{seed}.png")

    # --------------------------------------------------------------------------------------- reporting

    def outcomes(self, method: Method, tasks: Sequence[Task]) -> list[Outcome]:
        """Of the seeds of which all tasks are done, task by task; the base has one."""
        seeds = self._seeds_done([method], tasks)
        return self._of_seeds(method, tasks, seeds[:1] if method == BASE else seeds)

    def lead(self, one: Method, other: Method, tasks: Sequence[Task]) -> tuple[float, float]:
        """By how much the plain likeness of `one` is above that of `other`, case by case of the seeds that
        both have done: the mean and its standard error, which is not a number for a single case."""
        seeds = self._seeds_done([one, other], tasks)
        pairs = zip(*(self._of_seeds(method, tasks, seeds) for method in (one, other)), strict=True)
        apart = [mine.likeness - others.likeness for mine, others in pairs]
        if not apart:
            return nan, nan
        return fmean(apart), stdev(apart) / sqrt(len(apart)) if len(apart) > 1 else nan

    def _of_seeds(self, method: Method, tasks: Sequence[Task], seeds: Sequence[int]) -> list[Outcome]:
        return [self.ledger.outcomes[method.case(task, seed)] for task in tasks for seed in seeds]

    def _seeds_done(self, methods: Sequence[Method], tasks: Sequence[Task]) -> list[int]:
        known, cases = self.ledger.outcomes, [(method, task) for method in methods for task in tasks]
        return [s for s in range(self.seeds) if all(method.case(task, s) in known for method, task in cases)]


def mean(outcomes: Sequence[Outcome], figure: str, gated: bool = False) -> float:
    """Of a figure over the outcomes that have it; "likeness" is one too. NaN where none has."""
    if figure == "likeness":
        known = [o.likeness_gated if gated else o.likeness for o in outcomes if o.gated or not gated]
        return fmean(value for value in known if value is not None) if known else nan
    rows: list[Figures] = [o.gated if gated else o.figures for o in outcomes]
    return fmean(values) if (values := [row[figure] for row in rows if figure in row]) else nan


def train(base: Base, task: Task, out: Path, settings: Mapping[str, Any]) -> Concept:
    """A concept of the task's pictures with its numbers as they were trained, in full precision."""
    kind = task.asked.split()[-1]
    folder = out / "given" / slug(task.name)
    for number, (picture, prompt) in enumerate(zip(task.pictures, task.prompts, strict=True)):
        save_picture(picture, folder / f"{number}.png")
        if task.is_style:
            (folder / f"{number}.txt").write_text(prompt)
    said: dict[str, Any] = {"checkpointing_steps": 0, "timeline_steps": 0, "precision": "fp32", "name": kind}
    said |= {"class_word": "drawing", "caption_extension": "txt"} if task.is_style else {"class_word": kind}
    with torch.random.fork_rng():
        return atomdiff.train(folder, out / "training", base, **(dict(settings) | said))


def slug(label: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in label.lower())
