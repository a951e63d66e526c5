"""`python -m benchmarks.calibration`: does a base behave as Stable Diffusion is known to when it is tuned?

What is known: of textual inversion, LoRA and DreamBooth each draws the subject better than the one before it
(DreamBench: DINO 0.57, -, 0.67); DreamBooth without prior preservation gives its subject to the whole class,
and with it much less; more steps keep the subject and lose what the prompt says (arXiv 2208.12242, sections
4.3 and 4.4). A base in which this does not hold chooses wrong defaults.

Six held-out subjects, the first of the method's. Each method is tried at four rates on two others, and
the best is taken. LoRA and DreamBooth are those of diffusers' examples with `--train_text_encoder`, as both
are usually trained. What is finished is kept in OUT/results.jsonl, so that a run goes on where it was ended.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from atomdiff import pocket

from . import peers
from .bench import BASE, Bench, Method, mean, parser
from .ledger import Outcome
from .report import Target, one_sentence, verdict
from .tables import Table, tell
from .tasks import Task, subjects, tuning_subjects

LONGER = 3  # times the steps, to see it overfit
CONTEXT_LOSS, LEAK_GAIN = 0.03, 0.10  # what a rate may cost at most before it counts against it
FIGURES = ("identity", "colour", "pattern", "second", "class", "context", "accessory", "leak", "drift")


TEXTUAL_INVERSION = Method("textual inversion", attach=peers.textual_inversion)
LORA = Method("LoRA r=4, text encoder too", attach=peers.lora(4, text_encoder=True))
DREAMBOOTH = Method("DreamBooth, text encoder too", attach=peers.full(text_encoder=True))
RATES = {
    TEXTUAL_INVERSION: (5e-3, 1e-2, 2e-2, 4e-2),
    LORA: (5e-4, 1e-3, 2e-3, 4e-3),
    DREAMBOOTH: (5e-5, 1e-4, 2e-4, 4e-4),
}


@dataclass(frozen=True)
class Row:
    """What a method came to on all subjects."""

    name: str
    rate: float
    outcomes: tuple[Outcome, ...]

    @property
    def likeness(self) -> float:
        return mean(self.outcomes, "likeness")

    def mean(self, figure: str) -> float:
        """Over the subjects of which it is known."""
        return mean(self.outcomes, figure)


def score(bench: Bench, method: Method, tasks: Sequence[Task]) -> float:
    """Mean likeness, less what context is lost and leak gained beyond what is allowed."""
    bench.run([method], tasks)
    scores = []
    for task in tasks:
        (plain,), (made,) = bench.outcomes(BASE, [task]), bench.outcomes(method, [task])
        lost = plain.figures["context"] - made.figures["context"] - CONTEXT_LOSS
        leaked = made.figures["leak"] - plain.figures["leak"] - LEAK_GAIN
        scores.append(made.likeness - max(0.0, lost) - max(0.0, leaked))
    return statistics.fmean(scores)


def measured(bench: Bench, steps: int, tasks: Sequence[Task], others: Sequence[Task]) -> list[Row]:
    """The base, every method at the best of its rates on `others`, and DreamBooth at its rate also with more
    steps and without class pictures."""
    chosen = [BASE]
    for method, rates in RATES.items():
        tried = [replace(method, rate=rate, steps=steps) for rate in rates]
        chosen.append(max(tried, key=lambda method: score(bench, method, others)))
    best = chosen[-1]
    chosen.append(replace(best, name=f"{best.name}, {LONGER} times the steps", steps=LONGER * steps))
    chosen.append(replace(best, name=f"{best.name}, no prior", prior=False))
    bench.run(chosen[1:], tasks)
    return [Row(one.name, one.rate, tuple(bench.outcomes(one, tasks))) for one in chosen]


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


def table(rows: Sequence[Row]) -> Table:
    cells = [
        (row.name, f"{row.rate:g}", f"{row.likeness:.2f}", *(f"{row.mean(f):.2f}" for f in FIGURES))
        for row in rows
    ]
    return ("", "rate", "likeness", *FIGURES), cells


def by_subject(rows: Sequence[Row], tasks: Sequence[Task]) -> Table:
    cells = [(row.name, *(f"{o.likeness:.2f}" for o in row.outcomes)) for row in rows]
    return ("", *(task.name.split()[-1] for task in tasks)), cells


def main(arguments: Sequence[str] | None = None) -> None:
    command = parser("calibration", __doc__, seeds=0, docs="docs/pocket.md")
    command.set_defaults(draw_steps=25)
    add = command.add_argument
    add("--base", type=Path, default=pocket.path(), help="a folder in the pocket's layout, its judge within")
    add("--subjects", type=int, default=6)
    add("--search-on", type=int, default=2, help="other subjects to find the rates on, 1 to 4 (default 2)")
    add("--steps", type=int, default=300)
    a = command.parse_args(arguments)
    if min(a.subjects, a.search_on, a.steps, a.each, a.draw_steps) < 1:
        command.error("subjects, search-on, steps, each and draw-steps are at least 1")
    bench = Bench.of(a, "calibration", a.base)
    tasks = subjects(a.subjects)
    rows = measured(bench, a.steps, tasks, tuning_subjects(a.search_on))
    setup = f"{a.subjects} subjects, {a.steps} steps, {a.each} pictures a prompt"
    tables = [(setup, table(rows)), ("Likeness, subject by subject", by_subject(rows, tasks))]
    tell(bench, "calibration", "Calibration", tables, a.docs, "docs/pocket.md")
    verdict(targets(rows), a.check)


if __name__ == "__main__":
    with one_sentence():
        main()
