"""The tables of every benchmark that trains: a row a method, drawn plainly and gated, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, sqrt
from pathlib import Path
from statistics import fmean, stdev

from atomdiff.evaluation.pocket_figures import CONTEXTS

from .bench import BASE, Bench, Method, mean
from .report import machine, markdown, show, write_section, written
from .tasks import Task

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
FIGURES = ("class", "context", "accessory", "leak", "drift", "drift others")
NAMES = {"accessory": "worn"}
STYLE = ("style", "class", "context", "leak", "drift")
LEGEND = """\
*Plain* is drawn as any tool draws with the concept attached: always on, on both branches of guidance, in
every step; all figures are of that but the one called *gated*, drawn with `--acting gated`. Likeness is the
mean of first colour, second colour and pattern (shares of the pictures that the judge names right) and
identity (cosine of its embedding to renders of the subject), times the share of pictures that are still of
their class; ± is the standard error over cases. Class, context and worn: shares of the pictures that are
of the subject's class, and show the place, and the thing worn, that the prompt asks for. Without the word:
leak is the share of pictures of the bare class with the subject's colour or pattern, drift is 1 - cosine
between them before and after, same seeds, *drift others* that of four other classes. Moved: ‖ΔW‖ / ‖W‖ of
the layer that moved most. Bytes are those of the file: ours in int4 with everything in it, a peer's in fp16
as its library writes it."""


def likeness_table(bench: Bench, methods: Sequence[Method], tasks: Sequence[Task]) -> Table:
    """Means over tasks and seeds."""
    names = (NAMES.get(figure, figure) for figure in FIGURES)
    headers = ("method", "bytes", "numbers", "cases", "likeness, plain", "±", "gated", *names, "moved")
    rows = []
    for method in (BASE, *methods):
        found = bench.outcomes(method, tasks)
        if not found:
            continue
        moved = max(outcome.moved for outcome in found)
        rows.append(
            (
                method.name,
                f"{fmean(o.bytes for o in found):,.0f}" if method != BASE else "",
                f"{found[0].numbers:,}" if method != BASE else "",
                str(len(found)),
                f"{mean(found, 'likeness'):.3f}",
                _error([o.likeness for o in found]),
                _cell(mean(found, "likeness", gated=True)),
                *(_cell(mean(found, figure)) for figure in FIGURES),
                f"{moved:.2f}" if moved else "",
            )
        )
    return headers, rows


def short_table(bench: Bench, methods: Sequence[Method], tasks: Sequence[Task], ours: Method) -> Table:
    """What a stranger asks of each method, for README: plainly drawn, means over tasks and seeds."""
    headers = ("", "file", "likeness", "class", "place", "worn", "leak", "drift")
    rows = []
    for method in (BASE, *methods):
        found = bench.outcomes(method, tasks)
        if found:
            size = f"{fmean(o.bytes for o in found) / 1000:,.1f} KB" if method != BASE else ""
            name = f"**{method.name}**, the default" if method == ours else method.name
            shares = (f"{mean(found, figure):.0%}" for figure in ("class", "context", "accessory", "leak"))
            likeness, drift = (f"{mean(found, figure):.2f}" for figure in ("likeness", "drift"))
            rows.append((name, size, likeness, *shares, drift))
    return headers, rows


def subject_table(bench: Bench, methods: Sequence[Method], tasks: Sequence[Task], ours: Method) -> Table:
    """Plain likeness subject by subject, and the lead of `ours` over each."""
    headers = ("method", *(task.name.split()[-1] for task in tasks), f"{ours.name} above it", "±")
    rows = []
    for method in (BASE, *methods):
        known = [bench.outcomes(method, [task]) for task in tasks]
        if not any(known):
            continue
        lead, error = bench.lead(ours, method, tasks) if method != ours else (float("nan"),) * 2
        means = (mean(found, "likeness") if found else float("nan") for found in known)
        rows.append((method.name, *map(_cell, means), "" if isnan(lead) else f"{lead:+.3f}", _cell(error)))
    return headers, rows


def style_table(bench: Bench, methods: Sequence[Method], task: Task) -> Table:
    """One style. The first row is of true pictures of it, which no method can be above."""
    assert task.ideal
    ideal = task.ideal(bench.judge, bench.drawing.each)
    headers = ("method", "bytes", "cases", *STYLE, "style, gated", "context, gated")
    rows = [
        ("*rendered in the style*", "", "", *(_cell(ideal.get(key, float("nan"))) for key in STYLE), "", "")
    ]
    for method in (BASE, *methods):
        found = bench.outcomes(method, [task])
        if found:
            shown = [_cell(mean(found, key)) for key in STYLE]
            gated = [_cell(mean(found, key, gated=True)) for key in ("style", "context")]
            size = f"{found[0].bytes:,}" if method != BASE else ""
            rows.append((method.name, size, str(len(found)), *shown, *gated))
    return headers, rows


def tell(
    bench: Bench,
    section: str,
    title: str,
    tables: Sequence[tuple[str, Table]],
    docs: bool,
    page: str = "docs/results.md",
) -> None:
    """Prints the tables; with `docs` publishes the outcomes and writes the tables into a page."""
    for name, (headers, rows) in tables:
        show(name, headers, rows)
    print(f"{machine()}; pictures in {bench.out}")
    if docs:
        bench.ledger.publish()
        drawn = f"{len(CONTEXTS)} contexts × {bench.drawing.each} pictures of {bench.drawing.steps} steps"
        parts = [f"## {title}", f"{written()}: {drawn}."]
        parts += [f"### {name}\n\n{markdown(*table)}" for name, table in tables]
        write_section(Path(page), section, "\n\n".join(parts))


def _error(values: Sequence[float]) -> str:
    return f"{stdev(values) / sqrt(len(values)):.3f}" if len(values) > 1 else ""


def _cell(value: float) -> str:
    return "" if isnan(value) else f"{value:.3f}"
