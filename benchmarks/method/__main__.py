"""Likeness at equal bytes: every way of tuning, one loop, the same batches, and the judge.

    python -m benchmarks.method [--quick] [--methods NAME ...] [--subjects N] [--seeds N] [--steps N] [--tune]

What is finished is kept in OUT/results.jsonl, so that a run goes on where it was ended; pictures are in a
folder of their setup's name. `--tune` first finds each method's learning rate on other subjects
(OUT/rates.json); without it the rates found before are used, and where there are none the methods' first.
`--docs` publishes results and rates in benchmarks/results, from where any run of the same setup goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
from collections.abc import Sequence, Sized
from dataclasses import replace
from pathlib import Path

import torch
from rich.progress import track

from atomdiff import pocket
from atomdiff.base.stable_diffusion import load_base
from atomdiff.pocket.judge import Judge

from ..court import Drawing
from ..report import machine, one_sentence, show, verdict
from . import charts, tables
from .catalogue import QUICK, chosen
from .handmade import BASE
from .ledger import PUBLISHED, Ledger
from .memory import measure, report_peak
from .ours import PRECISIONS, TOOL, default_bytes_on_sd15
from .protocol import Method
from .rates import Rates
from .running import Bench, case_of
from .tables import Row
from .tasks import Task, styles, subjects, tuning_subjects

RECIPE = 1  # to be raised when the loop or the figures change what a result means

FULL_DIALS = {"subjects": 8, "styles": 2, "seeds": 3, "steps": 300}
FULL_DIALS |= {"class_pictures": 48, "each": 4, "draw_steps": 25}
QUICK_DIALS = {"subjects": 2, "styles": 1, "seeds": 1, "steps": 60}
QUICK_DIALS |= {"class_pictures": 10, "each": 1, "draw_steps": 12}


def main(arguments: Sequence[str] | None = None) -> None:
    a = parse(arguments)
    if a.peak_of:
        report_peak(a.peak_of, a.device, a.batch)
        return
    methods = [in_precisions(method, a.precisions) for method in chosen(a.methods)]
    tasks, seeds = [*subjects(a.subjects), *styles(a.styles)], range(a.seeds)
    bench = open_bench(a)
    rates = Rates(a.out / "rates.json", PUBLISHED / "rates.json", a.first_rates)
    if not a.report:
        run(bench, methods, tasks, seeds, rates, tuning_subjects(a.tune_subjects) if a.tune else [])
    peaks = measure(methods, a.device, a.batch, a.out / "memory.json") if a.memory else {}
    finish(bench, methods, tasks, seeds, rates, peaks, a)


def in_precisions(method: Method, wanted: Sequence[str]) -> Method:
    """One of ours judged in those of its precisions that are wanted; in its own where it has none of them."""
    kept = tuple(p for p in method.precisions if p in wanted) if method.family == "ours" else ()
    return replace(method, precisions=kept) if kept and kept != method.precisions else method


def open_bench(a: argparse.Namespace) -> Bench:
    """The base, the judge, and the ledger of just this setup."""
    base, judge = load_base("pocket", device=a.device), Judge.load(a.judge)
    setup = {
        "recipe": RECIPE,
        "device": torch.device(a.device).type,  # step times of one table are of one kind of machine
        "base": [base.passport.architecture, base.passport.sketch_text()],
        "judge": hashlib.sha256(a.judge.read_bytes()).hexdigest(),
        "steps": a.steps,
        "batch": a.batch,
        "class pictures": a.class_pictures,
        "drawn": [a.each, a.draw_steps],
    }
    drawing = Drawing(a.each, a.draw_steps, a.draw_batch)
    ledger = Ledger(a.out / "results.jsonl", setup, PUBLISHED / "method.jsonl")
    return Bench(base, judge, ledger, drawing, a.steps, a.batch, a.class_pictures, a.out / ledger.setup)


def run(
    bench: Bench,
    methods: Sequence[Method],
    tasks: Sequence[Task],
    seeds: range,
    rates: Rates,
    others: Sequence[Task],
) -> None:
    """Everything that is missing: rates, on `others` if there are any, then seed by seed all tasks with all
    methods."""
    for method in track(methods if others else (), "learning rates"):
        if method is not TOOL:  # which is judged as it is given to people
            rates.search(bench, method, others)
    work = [(seed, task, method) for seed in seeds for task in tasks for method in methods]
    for seed, task, method in track(work, "cases"):
        bench.run(method, task, seed, rates.of(method))


def rows_of(
    bench: Bench, methods: Sequence[Method], tasks: Sequence[Task], seeds: range, rates: Rates
) -> list[Row]:
    """A row for every method and precision, over the seeds of which all `tasks` are done, the smallest file
    first."""
    rows, known = [], bench.ledger.outcomes
    for method in methods:
        for precision in method.precisions:
            cases = [
                [case_of(method, precision, task, seed, rates.of(method)) for task in tasks]
                for seed in (seeds[:1] if method is BASE else seeds)
            ]
            groups = [[known[case] for case in some] for some in cases if known.keys() >= set(some)]
            if not groups:
                continue
            by_seed = [statistics.fmean(o.likeness for o in group) for group in groups]
            outcomes = [o for group in groups for o in group]
            rate = f"{rates.of(method):g}{' ✓' * rates.searched(method)}" if method.rate else ""
            rows.append(Row(method.label(precision), method.name, method.family, outcomes, by_seed, rate))
    return sorted(rows, key=lambda row: row.bytes)


def finish(
    bench: Bench,
    methods: Sequence[Method],
    tasks: Sequence[Task],
    seeds: range,
    rates: Rates,
    peaks: dict[str, float],
    a: argparse.Namespace,
) -> None:
    """Tables, plot, sheets, docs and the verdict."""
    named, styled = [t for t in tasks if not t.is_style], [t for t in tasks if t.is_style]
    rows = rows_of(bench, methods, named, seeds, rates) if named else []
    charts.sheets(rows or rows_of(bench, methods, styled, seeds, rates), tasks, bench.out)
    shown = []
    if named:
        shown.append((counted(named, "subject"), tables.likeness_table(rows)))
        if len(named) > tables.SHOWN:
            shown.append(("Subject by subject", tables.subject_table(rows, named)))
        shown.append(("What it costs", tables.cost_table(rows, peaks)))
        charts.plot(rows, bench.out / "likeness.png")
    for task in styled:
        assert task.ideal
        made, ideal = rows_of(bench, methods, [task], seeds, rates), task.ideal(bench.judge, a.each)
        shown.append((f"The style {task.name}", tables.style_table(made, ideal)))
    for title, (headers, cells) in shown:
        show(title, headers, cells)
    setup = f"{a.steps} steps of {a.batch} pictures, {a.each} pictures a prompt of {a.draw_steps} steps"
    if a.docs:
        docs = Path("docs")
        bench.ledger.publish()
        rates.publish()
        pictures = {}
        if named:
            pictures[f"results-{a.section}.png"] = "likeness against bytes"
            charts.plot(rows, docs / f"results-{a.section}.png")
        for task in tasks if a.section == "styles" else named[:1]:
            name = f"results-{a.section}{f'-{task.name}' if task.is_style else ''}.jpg"
            pictures[name] = f"{task.name if task.is_style else 'the same subject'} by every method"
            own = rows_of(bench, methods, [task], seeds, rates)
            charts.comparison(own, task, bench.out, docs / name)
        tables.write_docs(a.section, shown, setup, pictures, docs)
    print(f"{machine()}; {setup}; pictures in {bench.out}")
    small = tables.best_small(rows)
    if small:
        found = f"{small.label}, likeness {small.likeness:.3f}, {small.bytes:,} bytes"
        print(f"best of ours within 10 KB: {found}")
    verdict(tables.targets(rows, default_bytes_on_sd15()), a.check)


def counted(things: Sized, name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.method",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--methods", nargs="+", default=[], help="names, patterns such as 'LoRA*', ours, peers")
    add("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS, help="of our files (default all)")
    add("--subjects", type=int, help="held-out subjects (default 8)")
    add("--styles", type=int, help="held-out styles, 0 to 2 (default 2)")
    add("--seeds", type=int, help="seeds of the training (default 3)")
    add("--steps", type=int, help="training steps (default 300)")
    add("--batch", type=int, default=4, help="pictures a step, and as many of the class (default 4)")
    add("--class-pictures", type=int, help="for prior preservation (default 48)")
    add("--each", type=int, help="pictures of each prompt (default 4)")
    add("--draw-steps", type=int, help="steps of a picture (default 25)")
    add("--draw-batch", type=int, default=16, help="pictures drawn at once; raise it on a GPU")
    add("--tune", action="store_true", help="find learning rates first")
    add("--tune-subjects", type=int, default=2, help="subjects to find them on, 1 to 4 (default 2)")
    add("--first-rates", action="store_true", help="leave aside the rates that were found, for comparison")
    add("--memory", action="store_true", help="measure the memory of each method too")
    add("--device", default="cpu")
    add("--judge", type=Path, default=pocket.path() / "judge.safetensors", help="the judge's weights")
    add("--out", type=Path, default=Path("outputs/method"))
    add("--quick", action="store_true", help="few methods, subjects and steps: under 10 minutes on two cores")
    add("--docs", action="store_true", help="write a section of docs/results.md and its pictures")
    add("--section", choices=tables.SECTIONS, default="method", help="which (default method)")
    add("--report", action="store_true", help="train nothing: the tables of what OUT holds")
    add("--check", action="store_true", help="exit 1 if a target is missed")
    add("--peak-of", help=argparse.SUPPRESS)
    a = parser.parse_args(arguments)
    for name, value in (QUICK_DIALS if a.quick else FULL_DIALS).items():
        if getattr(a, name) is None:
            setattr(a, name, value)
    if a.quick and a.tune:
        parser.error("--tune needs the steps of a full run; give either it or --quick")
    if a.first_rates and a.tune:
        parser.error("--first-rates leaves aside what --tune finds; give either")
    if a.quick and not a.methods:
        a.methods = list(QUICK)
    if min(a.seeds, a.steps, a.batch, a.each, a.draw_steps) < 1:
        parser.error("seeds, steps, batch, each and draw-steps are at least 1")
    if min(a.subjects, a.styles) < 0 or not a.subjects + a.styles:
        parser.error("subjects and styles are at least 0, and not both 0")
    return a


if __name__ == "__main__":
    with one_sentence():
        main()
