"""Running cases: attach, train, and for each precision file, draw and judge."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from atomdiff.base.stable_diffusion import Base
from atomdiff.errors import ConceptError, SettingsError, TrainingError
from atomdiff.pocket.judge import Judge
from atomdiff.sampling.sheets import save_picture
from atomdiff.training.loop import TrainingData

from ..court import CONTEXTS, Court, Drawing, StyleCourt
from .fitting import floor_seconds, train
from .handmade import BASE
from .ledger import Case, Ledger, Outcome
from .protocol import Called, Handle, Method, fingerprint
from .tasks import Task, prepare


@dataclass
class Bench:
    """Everything that cases share. `out` is where pictures go."""

    base: Base
    judge: Judge
    ledger: Ledger
    drawing: Drawing
    steps: int
    batch: int
    class_count: int
    out: Path
    _weights: str = ""
    _floor: float = 0.0
    _trained: dict[tuple[str, str, int, float], tuple[dict[str, Tensor], float]] = field(default_factory=dict)
    _known: dict[str, tuple[TrainingData, Court | StyleCourt]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._weights = fingerprint(self.base.unet)

    def run(self, method: Method, task: Task, seed: int, rate: float) -> dict[str, Outcome]:
        """Precision -> outcome; what the ledger has is not done again."""
        cases = {p: case_of(method, p, task, seed, rate) for p in method.precisions}
        missing = {p: case for p, case in cases.items() if case not in self.ledger.outcomes}
        if missing:
            self._run(method, task, missing)
        return {p: self.ledger.outcomes[case] for p, case in cases.items()}

    def _run(self, method: Method, task: Task, cases: dict[str, Case]) -> None:
        data, court = self._prepared(task)
        case = next(iter(cases.values()))
        handle = method.attach(self.base)
        try:
            step = self._train(method, case, handle, data)
            own = replace(self.drawing, **method.drawn)
            court.drawing = Called(**vars(own), handle=handle) if method.called else own
            files = {}  # all, before one is drawn from in place of what was trained
            for precision, this in cases.items():
                try:
                    files[precision] = handle.to_bytes(precision)
                except ConceptError:  # too large for it
                    self.ledger.add(this, ruined(handle, task, step))
            for precision, file in files.items():
                this = cases[precision]
                try:
                    with handle.filed(file) as concepts:
                        figures, pictures = court.try_case(self.base, concepts, handle.asked(task.asked))
                except (ConceptError, SettingsError):  # pictures of NaN
                    self.ledger.add(this, ruined(handle, task, step))
                    continue
                self._keep_strip(method.label(precision), this, pictures)
                self.ledger.add(this, Outcome(figures, len(file), payload(file), handle.numbers(), step))
        finally:
            handle.detach()
            gc.collect()  # adapters hold their layers and these the adapters
        if fingerprint(self.base.unet) != self._weights:
            raise TrainingError(f"{method.name} did not give the base back as it was; its result is void.")

    def _train(self, method: Method, case: Case, handle: Handle, data: TrainingData) -> float:
        """Trains, or takes up what a method of the same training came to; a step's cost, as a multiple."""
        key = method.training, case.task, case.seed, case.rate
        if method.training and key in self._trained:
            numbers, step = self._trained[key]
            with torch.no_grad():
                for name, values in numbers.items():
                    handle.trained[name].copy_(values)
            return step
        trained = train(handle, data, self.steps, self.batch, case.seed, case.rate, method.course)
        step = trained.step_seconds / self._floor
        if method.training:
            self._trained[key] = {name: p.detach().clone() for name, p in handle.trained.items()}, step
        return step

    def _prepared(self, task: Task) -> tuple[TrainingData, Court | StyleCourt]:
        if task.name not in self._known:
            data = prepare(self.base, task, self.class_count)
            self._known[task.name] = data, task.court(self.base, self.judge, self.drawing)
            self._floor = self._floor or floor_seconds(self.base, data, self.batch)
        return self._known[task.name]

    def _keep_strip(self, label: str, case: Case, pictures: Sequence[Image.Image]) -> None:
        """The first picture of every context, of the first seed, for the sheets."""
        if case.seed or case.task.startswith("tuning"):
            return
        chosen = [pictures[i * self.drawing.each] for i in range(len(CONTEXTS))]
        strip = Image.new("RGB", (sum(p.width for p in chosen), chosen[0].height))
        for i, picture in enumerate(chosen):
            strip.paste(picture, (i * picture.width, 0))
        path = strip_path(self.out, label, case.task)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_picture(strip, path)


def case_of(method: Method, precision: str, task: Task, seed: int, rate: float) -> Case:
    """The key of a result. No seed changes the base."""
    return Case(method.name, method.recipe, precision, task.name, 0 if method is BASE else seed, rate)


def strip_path(out: Path, label: str, task: str) -> Path:
    """Where the pictures of a method on a task are kept."""
    return out / "strips" / slug(label) / f"{slug(task)}.png"


def ruined(handle: Handle, task: Task, step: float) -> Outcome:
    """What a training comes to that ended in numbers which cannot be written or drawn with."""
    nothing = ("style",) if task.is_style else ("colour", "second", "pattern", "identity", "five")
    figures = dict.fromkeys((*nothing, "class", "context", "leak"), 0.0)
    lost = dict.fromkeys(("drift",) if task.is_style else ("drift", "drift others"), 1.0)
    size = 2 * handle.numbers()
    return Outcome(figures | lost, size, size, handle.numbers(), step)


def slug(label: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in label.lower())


def payload(file: bytes) -> int:
    """Bytes of a safetensors file that are numbers."""
    return len(file) - 8 - int.from_bytes(file[:8], "little")
