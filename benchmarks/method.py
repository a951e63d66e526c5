"""`python -m benchmarks.method`: the tool's recipes beside LoRA, Uni-LoRA and DreamBooth at equal steps.

Held-out subjects and a style, judged from the files, drawn plainly and gated. `--search NAME` tries a peer at
several rates on subjects that no result is reported of; the best is then its rate here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from math import isnan
from pathlib import Path

from atomdiff.errors import SettingsError
from atomdiff.training.recipes import DEFAULT, RECIPES

from . import peers
from .bench import BASE, Bench, Method, mean, parser
from .report import Target, markdown, one_sentence, verdict, write_section
from .size import bytes_on_sd15
from .tables import LEGEND, likeness_table, short_table, style_table, subject_table, tell
from .tasks import Task, styles, subjects, tuning_subjects

OURS = tuple(Method(name, {"recipe": name}) for name in RECIPES)
TOOL = next(method for method in OURS if method.name == DEFAULT.name)
NO_CONVS = Method("without its conv atoms", {"num_atoms": 0})
PARTS = (
    NO_CONVS,
    Method("without its Dc", {"linear_atoms": "none"}),
    Method("without its word", {"train_token": False}),
    Method("without class pictures", {"with_prior_preservation": False}),
)
LORA = Method("LoRA r=4 + 2 words", attach=peers.with_words(peers.lora(4)), rate=2.5e-4)
PEERS = (
    LORA,
    Method("Uni-LoRA 4608 + 2 words", attach=peers.with_words(peers.uni_lora(4608)), rate=1e-2),
    Method("DreamBooth, every weight", attach=peers.full(), rate=1e-4),
)
METHODS = (*OURS, *PARTS, *PEERS)
GRID = (0.25, 0.5, 1.0, 2.0, 4.0)  # of a peer's rate, for --search
KB12 = 12_000  # a KB is 1000 bytes, as --size counts


def chosen(patterns: Sequence[str]) -> list[Method]:
    """The methods whose name is, or matches, any of the patterns; all if there are none. Raises
    SettingsError."""
    for pattern in patterns:
        if not any(fnmatchcase(method.name, pattern) for method in METHODS):
            names = "; ".join(method.name for method in METHODS)
            raise SettingsError(f"No method is called {pattern!r}: choose among {names}.")
    return [m for m in METHODS if not patterns or any(fnmatchcase(m.name, p) for p in patterns)]


def at_rates(method: Method) -> list[Method]:
    """A peer at the rates of the grid. Raises SettingsError for what has none."""
    if not method.attach:
        raise SettingsError(f"--search finds the rate of a peer, and {method.name!r} is none.")
    return [
        replace(method, name=f"{method.name}, {rate:g}", rate=rate)
        for rate in (factor * method.rate for factor in GRID)
    ]


def targets(bench: Bench, tasks: Sequence[Task], styled: Sequence[Task]) -> list[Target]:
    """Of the default; those that need what was not run are not measured."""

    def of(method: Method, figure: str = "likeness", gated: bool = False) -> float | None:
        value = mean(bench.outcomes(method, tasks), figure, gated) if tasks else float("nan")
        return None if isnan(value) else value

    def less(one: float | None, other: float | None) -> float | None:
        return None if one is None or other is None else one - other

    plain, gated = of(TOOL), of(TOOL, gated=True)
    lead = bench.lead(TOOL, LORA, tasks)[0]
    parts = bench.lead(TOOL, NO_CONVS, tasks)[0]
    moved = max((outcome.moved for outcome in bench.outcomes(TOOL, tasks)), default=None)
    found = [
        Target("bytes on SD 1.5", bytes_on_sd15(DEFAULT), high=KB12),
        Target("likeness, plain", plain, low=0.72),
        Target(f"likeness above {LORA.name}", None if isnan(lead) else lead, low=0.0),
        Target(f"drift above {LORA.name}'s", less(of(TOOL, "drift"), of(LORA, "drift")), high=0.0),
        Target("leak above the base's", less(of(TOOL, "leak"), of(BASE, "leak")), high=0.05),
        Target("worn, lost", less(of(BASE, "accessory"), of(TOOL, "accessory")), high=0.08),
        Target("context, lost", less(of(BASE, "context"), of(TOOL, "context")), high=0.02),
        Target("likeness, gated", gated, low=0.74),
        Target("plain, of gated", plain / gated if plain and gated else None, low=0.95),
        Target("moved, of the layer that moved most", moved, high=0.35),
        Target("lost without conv atoms", None if isnan(parts) else parts, low=0.10),
    ]
    for task in styled:
        made = bench.outcomes(TOOL, [task])
        for figure in ("style", "context"):
            found.append(Target(f"{task.name}, {figure}", mean(made, figure) if made else None, low=0.85))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    command = parser("method", __doc__, seeds=2)
    add = command.add_argument
    add("--methods", nargs="+", default=[], metavar="NAME", help="or patterns: 'LoRA*' (default all)")
    add("--subjects", type=int, default=8, help="held-out subjects")
    add("--styles", type=int, default=1, choices=(0, 1, 2), help="held-out styles")
    add("--search", metavar="NAME", help="a peer at several rates, on tuning subjects")
    a = command.parse_args(arguments)
    bench = Bench.of(a, "method")
    if a.search:
        methods, tasks = [m for one in chosen([a.search]) for m in at_rates(one)], tuning_subjects(2)
        bench.run(methods, tasks)
        told = [("On tuning subjects", likeness_table(bench, methods, tasks))]
        tell(bench, "rates", "Rates of the peers", told, a.docs)
        return
    methods, tasks, styled = chosen(a.methods), subjects(a.subjects), styles(a.styles)
    bench.run(methods, [*tasks, *styled])
    tables = []
    if tasks:
        tables += [(f"{a.subjects} subjects", likeness_table(bench, methods, tasks))]
        tables += [("Plain likeness, subject by subject", subject_table(bench, methods, tasks, TOOL))]
    tables += [(f"The style {task.name}", style_table(bench, methods, task)) for task in styled]
    tell(bench, "method", f"The method\n\n{LEGEND}", tables, a.docs)
    if tasks and a.docs:
        write_section(Path("README.md"), "method", markdown(*short_table(bench, methods, tasks, TOOL)))
    verdict(targets(bench, tasks, styled), a.check)


if __name__ == "__main__":
    with one_sentence():
        main()
