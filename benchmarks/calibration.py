"""`python -m benchmarks.calibration`: does a base behave as Stable Diffusion is known to when it is tuned?

What is known: of textual inversion, LoRA and DreamBooth each draws the subject better than the one before it
(DreamBench: DINO 0.57, -, 0.67); DreamBooth without prior preservation gives its subject to the whole class,
and with it much less; more steps keep the subject and lose what the prompt says (arXiv 2208.12242, sections
4.3 and 4.4). A base in which this does not hold chooses wrong defaults.

Three held-out subjects. Each method is tried at four rates on another subject, and the best is taken. What is
finished is kept in OUT/results.jsonl, so that a run goes on where it was ended.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.progress import track

from atomdiff import pocket
from atomdiff.base.stable_diffusion import Base, load_base
from atomdiff.pocket.judge import Judge

from .court import Drawing
from .method.catalogue import chosen
from .method.handmade import BASE, FULL
from .method.ledger import PUBLISHED, Ledger, Outcome
from .method.protocol import CLASSIC, Method
from .method.rates import score
from .method.running import Bench
from .method.tasks import Task, subjects, tuning_subjects
from .report import Target, machine, markdown, one_sentence, show, verdict, write_section

RECIPE = 1  # to be raised when the loop or the figures change what a result means
LONGER = 3  # times the steps, to see it overfit
FIGURES = ("identity", "colour", "pattern", "second", "class", "context", "accessory", "leak", "drift")


@dataclass(frozen=True)
class Rung:
    """A method with the rates it is tried at."""

    method: Method
    rates: tuple[float, ...]


WITHOUT = replace(
    FULL,
    name="DreamBooth, no prior",
    recipe="no prior",
    course=replace(CLASSIC, with_prior_preservation=False),
)
LADDER = (
    Rung(chosen(["textual inversion"])[0], (2e-3, 5e-3, 1e-2, 2e-2)),
    Rung(chosen(["LoRA r=4, attention"])[0], (5e-4, 1e-3, 2e-3, 4e-3)),
    Rung(replace(FULL, name="DreamBooth"), (1e-5, 3e-5, 1e-4, 3e-4)),
    Rung(WITHOUT, (1e-5, 3e-5, 1e-4, 3e-4)),
)


@dataclass(frozen=True)
class Row:
    """What a method came to on all subjects."""

    name: str
    rate: float
    outcomes: tuple[Outcome, ...]

    @property
    def likeness(self) -> float:
        return statistics.fmean(outcome.likeness for outcome in self.outcomes)

    def mean(self, figure: str) -> float:
        """Over the subjects of which it is known."""
        known = [o.figures[figure] for o in self.outcomes if figure in o.figures]
        return statistics.fmean(known) if known else float("nan")


def best_rate(bench: Bench, rung: Rung, others: Sequence[Task]) -> float:
    """The rate of the best likeness, less what it loses of context and leaks beyond a little."""
    return max(rung.rates, key=lambda rate: score(bench, rung.method, others, rate))


def climb(bench: Bench, longer: Bench, tasks: Sequence[Task], others: Sequence[Task]) -> list[Row]:
    """The base, every method at its best rate, and DreamBooth once more with more steps."""

    def row(at: Bench, method: Method, rate: float, name: str) -> Row:
        return Row(name, rate, tuple(at.run(method, task, 0, rate)["fp16"] for task in tasks))

    rows = [row(bench, BASE, 0.0, BASE.name)]
    for rung in track(LADDER, "methods"):
        rate = best_rate(bench, rung, others)
        rows.append(row(bench, rung.method, rate, rung.method.name))
        if rung.method.name == "DreamBooth":
            rows.append(row(longer, rung.method, rate, f"DreamBooth, {LONGER} times the steps"))
    return rows


def targets(rows: Sequence[Row]) -> list[Target]:
    """The order that is known of Stable Diffusion, as differences."""
    base, words, lora, dreambooth, longer, without = rows
    leak, leaked = dreambooth.mean("leak"), without.mean("leak")
    faithful = statistics.fmean(dreambooth.mean(f) - longer.mean(f) for f in ("context", "accessory"))
    return [
        Target("likeness: textual inversion above the base", words.likeness - base.likeness, low=0.01),
        Target("likeness: LoRA above textual inversion", lora.likeness - words.likeness, low=0.01),
        Target("likeness: DreamBooth above LoRA", dreambooth.likeness - lora.likeness, low=0.0),
        Target("leak: DreamBooth without prior above the base", leaked - base.mean("leak"), low=0.2),
        Target(
            "leak: of that, with prior",
            _share(leak - base.mean("leak"), leaked - base.mean("leak")),
            high=0.5,
        ),
        Target(f"context and worn lost by {LONGER} times the steps", faithful, low=0.01),
    ]


def _share(part: float, whole: float) -> float:
    return max(part, 0.0) / whole if whole > 0 else 1.0


def table(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(headers, cells)."""
    cells = [
        (row.name, f"{row.rate:g}", f"{row.likeness:.2f}", *(f"{row.mean(f):.2f}" for f in FIGURES))
        for row in rows
    ]
    return ("", "rate", "likeness", *FIGURES), cells


def open_bench(base: Base, judge: Path, steps: int, a: argparse.Namespace) -> Bench:
    """With the ledger of just this base, judge and length."""
    setup = {
        "recipe": RECIPE,
        "base": [base.passport.architecture, base.passport.sketch_text()],
        "judge": hashlib.sha256(judge.read_bytes()).hexdigest(),
        "steps": [steps, a.batch, a.class_pictures],
        "drawn": [a.each, a.draw_steps],
    }
    ledger = Ledger(a.out / "results.jsonl", setup, PUBLISHED / "calibration.jsonl")
    drawing = Drawing(a.each, a.draw_steps, a.draw_batch)
    return Bench(
        base, Judge.load(judge), ledger, drawing, steps, a.batch, a.class_pictures, a.out / ledger.setup
    )


def main(arguments: Sequence[str] | None = None) -> None:
    a = parse(arguments)
    base, judge = load_base(str(a.base), device=a.device), a.judge or a.base / "judge.safetensors"
    bench, longer = (open_bench(base, judge, steps, a) for steps in (a.steps, LONGER * a.steps))
    size = base.resolution
    rows = climb(bench, longer, subjects(a.subjects, size), tuning_subjects(a.search_on, size))
    headers, cells = table(rows)
    setup = f"{a.subjects} subjects, {a.steps} steps of {a.batch} pictures, {a.each} pictures a prompt"
    show(setup, headers, cells)
    print(f"{machine()}; pictures in {bench.out} and {longer.out}")
    if a.docs:
        bench.ledger.publish()
        longer.ledger.publish()
        write_section(
            Path("docs/pocket.md"), "calibration", markdown(headers, cells) + f"\n{setup}; {machine()}."
        )
    verdict(targets(rows), a.check)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--base", type=Path, default=pocket.path(), help="a folder in the pocket's layout, its judge within")
    add("--judge", type=Path, help="another judge's weights")
    add("--subjects", type=int, default=3)
    add("--search-on", type=int, default=1, help="other subjects to find the rates on, 1 to 4 (default 1)")
    add("--steps", type=int, default=300)
    add("--batch", type=int, default=4, help="pictures a step, and as many of the class (default 4)")
    add("--class-pictures", type=int, default=48)
    add("--each", type=int, default=4, help="pictures of each prompt (default 4)")
    add("--draw-steps", type=int, default=25)
    add("--draw-batch", type=int, default=16, help="pictures drawn at once; raise it on a GPU")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--out", type=Path, default=Path("outputs/calibration"))
    add("--docs", action="store_true", help="publish the results and a section of docs/pocket.md")
    add("--check", action="store_true", help="exit 1 if the order does not hold")
    a = parser.parse_args(arguments)
    if min(a.subjects, a.search_on, a.steps, a.batch, a.each, a.draw_steps) < 1:
        parser.error("subjects, search-on, steps, batch, each and draw-steps are at least 1")
    return a


if __name__ == "__main__":
    with one_sentence():
        main()
