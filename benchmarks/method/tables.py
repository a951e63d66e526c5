"""What the results say: rows, tables, the targets, and the page of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..court import Figures
from ..report import Target, markdown, write_section, written
from .handmade import AS_OURS, BASE, FULL, WORDED_FULL
from .ledger import Outcome
from .ours import EVERYWHERE, TOOL
from .tasks import Task

FIRST = ("colour", "second", "pattern", "identity", "five", "class", "context", "accessory", "diversity")
SECOND = ("leak", "drift", "leak others", "drift others")
STYLE = ("style", "class", "context", "diversity", "leak", "drift")
SMALL = 10 * 1024  # bytes
SHOWN = 3  # the first subjects, which the demo and `benchmarks.likeness` show too
LIKENESS_SHARE, CONTEXT_LOSS, LEAK_GAIN = 0.9, 0.03, 0.10


@dataclass(frozen=True)
class Row:
    """A method in one precision, over subjects (or styles) and seeds."""

    label: str
    method: str
    family: str
    outcomes: Sequence[Outcome]
    by_seed: Sequence[float]  # mean likeness of each seed
    rate: str = ""

    def mean(self, figure: str) -> float:
        known = [o.figures[figure] for o in self.outcomes if figure in o.figures]
        return statistics.fmean(known) if known else float("nan")

    @property
    def likeness(self) -> float:
        return statistics.fmean(o.likeness for o in self.outcomes)

    @property
    def drift(self) -> float:
        return statistics.fmean(o.drift for o in self.outcomes)

    @property
    def bytes(self) -> int:
        return round(statistics.fmean(o.bytes for o in self.outcomes))

    @property
    def payload(self) -> int:
        return round(statistics.fmean(o.payload for o in self.outcomes))

    @property
    def by_subject(self) -> list[float]:
        """Likeness of each subject, over the seeds."""
        subjects = len(self.outcomes) // len(self.by_seed)
        return [statistics.fmean(o.likeness for o in self.outcomes[i::subjects]) for i in range(subjects)]

    @property
    def spread(self) -> str:
        """Standard deviation over seeds."""
        return f"{statistics.stdev(self.by_seed):.3f}" if len(self.by_seed) > 1 else ""


# -------------------------------------------------------------------------------------------------- tables


def likeness_table(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    headers = ("method", "bytes", "numbers", "seeds", "likeness", "±", *FIRST)
    return headers, [
        (
            r.label,
            f"{r.bytes:,}",
            f"{r.outcomes[0].numbers:,}",
            str(len(r.by_seed)),
            f"{r.likeness:.3f}",
            r.spread,
            *_cells(r.mean, FIRST),
        )
        for r in rows
    ]


def subject_table(
    rows: Sequence[Row], tasks: Sequence[Task]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Likeness subject by subject, and by how much the tool's default is above each row on the same ones."""
    kinds = [task.name.split()[-1] for task in tasks]
    default = next((row for row in rows if row.method == TOOL.name), None)
    headers = "method", *kinds, "mean", "default above", "±", f"on {len(kinds) - SHOWN} others", "±"
    return headers, [
        (
            row.label,
            *(f"{likeness:.2f}" for likeness in row.by_subject),
            f"{row.likeness:.3f}",
            *(_lead(default, row, 0) if default else ("", "")),
            *(_lead(default, row, SHOWN) if default else ("", "")),
        )
        for row in rows
    ]


def _lead(ours: Row, row: Row, first: int) -> tuple[str, str]:
    """The mean difference over the subjects from `first` on, and its standard error."""
    apart = [a - b for a, b in zip(ours.by_subject[first:], row.by_subject[first:], strict=True)]
    if row is ours or len(apart) < 2:
        return "", ""
    return f"{statistics.fmean(apart):+.3f}", f"{statistics.stdev(apart) / math.sqrt(len(apart)):.3f}"


def cost_table(rows: Sequence[Row], peaks: dict[str, float]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    headers = ("method", "rate", *SECOND, "step × floor", "memory MB", "cases")
    return headers, [
        (
            r.label,
            r.rate if r.method not in (TOOL.name, EVERYWHERE.name) else "the tool's",
            *_cells(r.mean, SECOND),
            f"{statistics.median(o.step for o in r.outcomes):.2f}" if r.method != BASE.name else "",
            f"{peaks[r.method]:.0f}" if r.method in peaks else "",
            str(len(r.outcomes)),
        )
        for r in rows
    ]


def style_table(rows: Sequence[Row], ideal: Figures) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """One style. `ideal` is what the judge says of true pictures of it, which no method can be above: in two
    inks a beach is hard to tell."""
    headers = ("method", "bytes", "seeds", *STYLE)
    true = ("*rendered in the style*", "", "", *_cells(lambda key: ideal.get(key, math.nan), STYLE))
    made = ((r.label, f"{r.bytes:,}", str(len(r.by_seed)), *_cells(r.mean, STYLE)) for r in rows)
    return headers, [true, *made]


def _cells(mean: Callable[[str], float], figures: Sequence[str]) -> list[str]:
    values = [mean(figure) for figure in figures]
    return [f"{value:.3f}" if value == value else "" for value in values]


# ------------------------------------------------------------------------------------------------- targets


def targets(rows: Sequence[Row], default_bytes: int) -> list[Target]:
    """The hard ones; those that need a row which was not run are not measured."""
    found = {row.method: row for row in rows}
    ours, base, full = (found.get(method.name) for method in (TOOL, BASE, FULL))
    made = [
        Target("the default concept on SD 1.5", default_bytes, high=SMALL, unit="bytes"),
        Target("the default concept on the pocket", ours.bytes if ours else None, high=SMALL, unit="bytes"),
        Target("likeness, of full fine-tuning's", _share(ours, full), low=LIKENESS_SHARE),
        Target("context lost", _gain(base, ours, "context"), high=CONTEXT_LOSS),
        Target("leak above the base's", _gain(ours, base, "leak"), high=LEAK_GAIN),
    ]
    richest = [row for row in rows if row.method in WORDED_FULL]
    for row in richest:
        made.append(Target(f"likeness, of that of {row.label}", _share(ours, row), low=LIKENESS_SHARE))
    for family, named in (("peer", "the best peer's"), (AS_OURS, "the best peer's as ours")):
        best = best_rival(rows, ours, family) if ours else None
        told = f"{best.label}'s" if best else named
        made.append(Target(f"likeness above {told}", _above(ours, best, "likeness"), low=0.0))
        made.append(Target(f"drift above {told}", _above(ours, best, "drift"), high=0.0))
    return made


def _share(ours: Row | None, row: Row | None) -> float | None:
    return ours.likeness / max(row.likeness, 1e-9) if ours and row else None


def _gain(more: Row | None, less: Row | None, figure: str) -> float | None:
    return more.mean(figure) - less.mean(figure) if more and less else None


def _above(ours: Row | None, row: Row | None, figure: str) -> float | None:
    return getattr(ours, figure) - getattr(row, figure) if ours and row else None


def best_rival(rows: Sequence[Row], ours: Row, family: str = "peer") -> Row | None:
    """The one most alike of a family among those of at most 10 × our bytes.

    Its bytes are those of its numbers alone, so that no peer is left out for the names in its file.
    """
    rivals = [r for r in rows if r.family == family and r.payload <= 10 * ours.bytes]
    return max(rivals, key=lambda row: row.likeness, default=None)


def best_small(rows: Sequence[Row]) -> Row | None:
    """Of our recipes with at most 10 KB that keep context and class, the one most alike."""
    base = next((row for row in rows if row.method == BASE.name), None)
    small = [
        r
        for r in rows
        if r.family == "ours"
        and r.bytes <= SMALL
        and (base is None or base.mean("context") - r.mean("context") <= CONTEXT_LOSS)
        and (base is None or r.mean("leak") - base.mean("leak") <= LEAK_GAIN)
    ]
    return max(small, key=lambda row: row.likeness, default=None)


# ---------------------------------------------------------------------------------------------------- docs

SECTIONS = {
    "method": "The method",
    "first": "At rates set by hand",
    "peers": "Every family, every peer",
    "styles": "Styles",
}
LEGEND = """Likeness is the mean of first colour, second colour, pattern (shares that the judge names right)
and identity (cosine of its embedding to renders of the subject); *five* is the mean cosine to the five
pictures trained on; ± is the standard deviation of its means over seeds, in *Subject by subject* the standard
error of a lead over subjects. Class, context and accessory are shares right. Diversity is the root mean
square difference between pictures of one prompt. Leak is the share of pictures of the bare class, without the
trigger, that show the subject's colour or pattern, drift is 1 - cosine between those pictures before and
after; *others* are four other classes. A step is given as
a multiple of the frozen model's forward and backward with class pictures, memory is what training adds.
A learning rate with ✓ was searched by `--tune`; on which subjects, none of them here, is in
`benchmarks/results/rates.json`, with all scores.
Bytes are those of a file as it is written: names included for peers in fp16, everything included for ours,
which is int4. A peer in int4 is quantised as ours is, and its file holds its numbers and nothing else.

Peers are trained as DreamBooth does, with prior preservation and a constant rate, and act on all that is
drawn. Ours, and what is marked *as ours*, are trained without class pictures, with a cosine and min-SNR
weights, and act on prompts that say the trigger, on the conditional branch of guidance, in the last step
by half: their drift is none. *On every prompt* shows what it would be."""


def write_docs(
    section: str,
    tables: Sequence[tuple[str, tuple[tuple[str, ...], list[tuple[str, ...]]]]],
    setup: str,
    pictures: Mapping[str, str],
    docs: Path,
) -> None:
    """The section of docs/results.md between its marks, made if it is missing; other sections stay.
    `pictures` are files in `docs`, each with what it shows."""
    parts = [
        f"## {SECTIONS[section]}",
        f"{written()}: {setup}.",
        LEGEND if section == "method" else "Columns, and how each is trained and drawn, are as above.",
        *(f"![{told}]({name})" for name, told in pictures.items()),
    ]
    text = "\n\n".join(parts) + "\n"
    for title, (headers, rows) in tables:
        text += f"\n### {title}\n\n{markdown(headers, rows)}"
    write_section(docs / "results.md", section, text)
