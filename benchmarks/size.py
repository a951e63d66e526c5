"""`python -m benchmarks.size`: what each rung of the capacity dial buys, and whether they are in order.

Every rung is trained on the pocket, on three held-out subjects, and judged from the bytes of its file; rungs
that differ in precision alone share a training. What is finished is kept in OUT/results.jsonl, so that a run
goes on where it was ended.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from statistics import fmean

import torch

from atomdiff import pocket
from atomdiff.concepts.concept import Concept
from atomdiff.concepts.passport import BasePassport
from atomdiff.core.spec import AtomSpec
from atomdiff.formats import safetensors_file
from atomdiff.models.base import load_base
from atomdiff.pocket import world
from atomdiff.pocket.judge import Judge
from atomdiff.training.ladder import LADDER, Rung, parse_size
from atomdiff.training.settings import TrainingSettings, name_everything
from atomdiff.training.sizing import MANY, file_size, texts_of

from .court import CONTEXTS, Court, Drawing, Figures
from .likeness import _option, with_concept
from .method.ledger import Case, Ledger, Outcome
from .report import Target, machine, markdown, one_sentence, show, verdict

RECIPE = 1  # to be raised when the training or the figures change what a result means
BASE = "base"
COLUMNS = ("context", "leak", "drift")
HEADERS = ("recipe, best first", "bytes", "on SD 1.5", "likeness", *COLUMNS)
LEGEND = """Means over the subjects. Bytes: the whole file, on the pocket and for a UNet of Stable Diffusion
1.5's shape. Likeness: mean of first colour, second colour and pattern (shares judged right) and of identity.
Leak: share of pictures of the bare class that have the subject's colour or pattern. Drift: 1 - cosine between
pictures of the bare class before and after, same seeds. `--size` takes the first recipe that fits."""


class Bench:
    """The pocket, its judge, and the results of one setup."""

    def __init__(self, a: argparse.Namespace) -> None:
        seat = pocket.path() / "judge.safetensors"
        self.base, self.judge = load_base("pocket"), Judge.load(seat)
        self.out, self.options = a.out, dict(map(_option, a.set))
        self.drawing = Drawing(a.each, a.draw_steps)
        setup = {"recipe": RECIPE, "each": a.each, "draw_steps": a.draw_steps, "options": self.options}
        setup |= {"base": self.base.passport.sketch_text(), "judge": sha256(seat.read_bytes()).hexdigest()}
        self.ledger = Ledger(a.out / "results.jsonl", setup)

    def judge_subject(self, kind: str, rungs: Sequence[Rung]) -> None:
        """Fills the ledger with the base and the rungs on one subject."""
        left = [rung for rung in (None, *rungs) if _case(rung, kind) not in self.ledger.outcomes]
        if not left:
            return
        subject = next(s for s in world.benchmark_subjects(3) if s.kind == kind)
        court = Court(self.base, self.judge, subject, self.drawing)
        trained: dict[tuple[AtomSpec, bool], Concept] = {}
        for rung in left:
            concepts: list[Concept] = []
            size = 0
            if rung is not None:
                recipe = rung.spec, rung.token
                if recipe not in trained:
                    trained[recipe] = self._train(rung, kind)
                data = safetensors_file.to_bytes(trained[recipe], rung.precision)
                concepts, size = [safetensors_file.from_bytes(data)], len(data)
            figures, _ = court.try_case(self.base, concepts, f"a sks {kind}")
            numbers = sum(concept.num_parameters() for concept in concepts)
            self.ledger.add(_case(rung, kind), Outcome(figures, size, 0, numbers, 0.0))

    def _train(self, rung: Rung, kind: str) -> Concept:
        settings = rung.settings() | {"checkpointing_steps": 0, "timeline_steps": 0} | self.options
        return with_concept(self.base, kind, self.out / f"rung-{LADDER.index(rung)}", settings)

    def mean(self, rung: Rung | None, kinds: Sequence[str]) -> tuple[float, Figures]:
        """Bytes and figures, with the likeness among them, as means over subjects."""
        found = [self.ledger.outcomes[_case(rung, kind)] for kind in kinds]
        figures = {key: fmean(o.figures[key] for o in found) for key in COLUMNS}
        return fmean(o.bytes for o in found), {"likeness": fmean(o.likeness for o in found)} | figures


def _case(rung: Rung | None, kind: str) -> Case:
    if rung is None:
        return Case(BASE, "", "", kind, 0, 0.0)
    return Case(str(rung), repr(rung.spec), rung.precision, kind, 0, 0.0)


def bytes_on_sd15(rungs: Sequence[Rung]) -> list[int]:
    """What the files of the rungs take for a UNet of Stable Diffusion 1.5's shape."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    settings = name_everything(TrainingSettings(instance_data_dir="dog"))
    passport, texts = BasePassport("sd1-00000000", (0.5,) * 16, "sd15"), texts_of(settings, MANY, MANY, MANY)
    token = {"token": torch.zeros(1, 1, 768)}
    return [file_size(unet, passport, rung, token, texts) for rung in rungs]


def rows_of(bench: Bench, rungs: Sequence[Rung], kinds: Sequence[str]) -> list[tuple[str, ...]]:
    rows = []
    for rung, elsewhere in zip((None, *rungs), (0, *bytes_on_sd15(rungs)), strict=True):
        size, figures = bench.mean(rung, kinds)
        shown = [f"{value:.2f}" for value in figures.values()]
        rows.append((str(rung or BASE), f"{size:,.0f}", f"{elsewhere:,}", *shown))
    return rows


def out_of_order(likeness: Sequence[float]) -> float:
    """By how much a rung falls behind the best of those that come after it, at most; 0 if none does."""
    behind = [max(likeness[i:]) - own for i, own in enumerate(likeness)]
    return max(behind, default=0.0)


def targets(bench: Bench, rungs: Sequence[Rung], kinds: Sequence[str]) -> list[Target]:
    """The order of the ladder, and what its best rung of at most 10 KB on this base costs the base."""
    means = [bench.mean(rung, kinds) for rung in rungs]
    found = [
        Target("likeness behind a later rung", out_of_order([f["likeness"] for _, f in means]), high=0.02)
    ]
    base = bench.mean(None, kinds)[1]
    small = next((figures for size, figures in means if size <= parse_size("10KB")), None)
    if small:
        found.append(Target("context lost at 10 KB", base["context"] - small["context"], high=0.03))
        found.append(Target("leak gained at 10 KB", small["leak"] - base["leak"], high=0.10))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.size", description=__doc__)
    parser.add_argument(
        "--subjects", nargs="+", default=["dog", "cat", "robot"], choices=("dog", "cat", "robot")
    )
    parser.add_argument(
        "--rungs", nargs="+", type=int, default=range(len(LADDER)), choices=range(len(LADDER))
    )
    parser.add_argument("--each", type=int, default=8, help="pictures in each of the 8 contexts")
    parser.add_argument("--draw-steps", type=int, default=25)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="training settings to try")
    parser.add_argument("--out", type=Path, default=Path("outputs/size"))
    parser.add_argument("--docs", action="store_true", help="write docs/size.md")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    a = parser.parse_args(arguments)
    bench, rungs = Bench(a), [LADDER[i] for i in sorted(set(a.rungs))]
    for kind in a.subjects:
        bench.judge_subject(kind, rungs)
    rows = rows_of(bench, rungs, a.subjects)
    show(f"{len(a.subjects)} subjects x {len(CONTEXTS)} contexts x {a.each} pictures", HEADERS, rows)
    if a.docs:
        Path("docs/size.md").write_text(
            "# What bytes buy\n\n`python -m benchmarks.size --docs` wrote this page on "
            f"{machine()}.\n\n{markdown(HEADERS, rows)}\n{LEGEND}\n"
        )
    print(machine())
    verdict(targets(bench, rungs, a.subjects), a.check)


if __name__ == "__main__":
    with one_sentence():
        main()
