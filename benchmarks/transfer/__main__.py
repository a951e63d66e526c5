"""The discriminative half of arXiv 2403.00269 on the same core: atoms in classifiers, on new tasks.

    python -m benchmarks.transfer [--quick] [--seeds N] [--networks NAME ...] [--epochs N] [--docs] [--check]

A small ResNet and a small ConvNeXt learn the classes and colours of the pocket world, then, as in VTAB-1k,
each new task with 800 pictures to train on and 200 to choose the learning rate by. Reported are accuracy on
1,000 others and the gap between training and those. What is finished is kept in OUT/results.json; `--docs`
publishes it in benchmarks/results, and writes a section of docs/results.md for each network.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.progress import track

from atomdiff.files.atomic import write_atomically

from .. import ledger
from ..report import (
    Shown,
    Target,
    command,
    machine,
    markdown,
    one_sentence,
    show,
    verdict,
    write_section,
    written,
)
from .fitting import TRAIN, pretrained, transfer
from .networks import METHODS, NETWORKS, atom_share, convnext, resnet
from .tasks import TASKS

PAPER_SHARE = 4e-5  # atoms of ResNet-50's weights, as the paper counts them
RATES = (3e-4, 3e-3, 3e-2)
LIKE_PAPER = "ResNet-50, m ≤ 6, its 3×3 kernels"
COUNTED = {
    "ResNet-50, m ≤ 9": partial(atom_share, resnet, 9),
    "ResNet-50, m ≤ 6": partial(atom_share, resnet, 6),
    LIKE_PAPER: partial(atom_share, resnet, 6, 3),
    "ConvNeXt-T, m ≤ 9": partial(atom_share, convnext, 9),
}
CLAIMS = (  # of the paper: what is above what, in which figure
    ("atoms above the linear probe", "atoms", "linear probe", "test"),
    ("atoms + Dc above atoms", "atoms + Dc", "atoms", "test"),
    ("atoms above α tuned", "atoms", "α tuned", "test"),
    ("gap of α tuned above atoms'", "α tuned", "atoms", "gap"),
)
PUBLISHED = ledger.PUBLISHED / "transfer.json"
Results = dict[str, dict[str, float]]
"""NETWORK/METHOD/TASK/SEED -> figures."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command("transfer", __doc__, docs="docs/results.md")
    add = parser.add_argument
    add("--quick", action="store_true", help="the ResNet, two tasks, one seed, few epochs")
    add("--seeds", type=int, default=3)
    add("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    add("--epochs", type=int, default=30, help="of each training (default 30)")
    add("--out", type=Path, default=Path("outputs/transfer"))
    a = parser.parse_args(arguments)
    names, count = list(TASKS), 9600
    a.train, a.rates, pretraining = TRAIN, RATES, 12
    if a.quick:
        a.networks, names, count, a.seeds = a.networks[:1], names[1:3], 1920, 1
        a.epochs, a.rates, pretraining = 6, RATES[1:2], 4
    counted = {name: share() for name, share in COUNTED.items()}
    shares = [(n, f"{k:,}", f"{w:,}", f"{k / w:.4%}") for n, (k, w) in counted.items()]
    title = f"Atoms (the paper: {PAPER_SHARE:.3%} of ResNet-50)"
    results = run(a, names, count, pretraining)
    shown: dict[str, list[Shown]] = {"": [(("network", "atoms", "of", "share"), shares)]}
    for network in a.networks:
        headers = ("method", "numbers", *names, "mean", "gap", "at the edge")
        tables = (headers, table(results, network, names, a.seeds)), (ORDER, order_table(results, network))
        shown[network] = list(tables)
    for network, tables_ in shown.items():
        for columns, rows in tables_:
            show(network or title, columns, rows)
    if a.docs:
        setup = f"{a.epochs} epochs, best of {len(a.rates)} rates, {a.seeds} seed{'s' * (a.seeds > 1)}"
        for network, tables_ in shown.items():
            about = f"### {network}\n\n{written()}: {setup}."
            about = about if network else f"## Other networks, other tasks\n\n{LEGEND}\n\n### {title}"
            text = "\n\n".join([about, *(markdown(*part) for part in tables_)])
            write_section(Path("docs/results.md"), f"transfer {network}".strip(), text)
    print(machine())
    atoms, weights = counted[LIKE_PAPER]
    paper = Target("atoms' share of ResNet-50", atoms / weights, high=PAPER_SHARE)
    verdict([paper, *order(results)], a.check)


ORDER = ("claim", "difference", "±", "holds")
LEGEND = """Accuracy on 1,000 pictures (of the digits 797, all there are) after training on 800; 200 others
choose the rate. Gap: accuracy on the pictures trained on, less that. Numbers: what is trained beside the last
linear layer. At the edge: cases in which the largest of the rates was the best, so that a larger one might be
better still. The networks are small ones that were pretrained on the classes and colours of the pocket's
world. Chance is a fifth in counting and a third in patterns. ± is the standard error over tasks and seeds of
a difference: a claim of the paper holds where the difference is above it, and not where it is below its
negative."""


def run(a: argparse.Namespace, names: Sequence[str], count: int, pretraining: int) -> Results:
    """Everything that is missing from what was published and from OUT/results.json."""
    file = a.out / "results.json"
    known: Results = {}
    for some in (PUBLISHED, file):
        known |= json.loads(some.read_text()) if some.exists() else {}
    wanted, models = {}, {}
    cases = itertools.product(a.networks, range(a.seeds), names, METHODS)
    for network, seed, task, method in track(list(cases), "cases"):
        key = f"{network}/{method}/{task}/{seed}"
        setup = f"{key}/{count}/{pretraining}/{a.epochs}/{len(a.rates)}"
        if setup not in known:
            if network not in models:
                models[network] = pretrained(network, a.out, count, pretraining)
            known[setup] = transfer(models[network], method, task, seed, a)
            write_atomically(file, json.dumps(known, indent=0, ensure_ascii=False).encode())
        wanted[key] = known[setup]
    if a.docs:
        write_atomically(PUBLISHED, json.dumps(known, indent=0, ensure_ascii=False).encode())
    return wanted


def table(results: Results, network: str, names: list[str], seeds: int) -> list[tuple[str, ...]]:
    rows = []
    for method in METHODS:
        cases = {task: [results[f"{network}/{method}/{task}/{s}"] for s in range(seeds)] for task in names}
        means = [statistics.fmean(c["test"] for c in some) for some in cases.values()]
        gap = statistics.fmean(c["gap"] for some in cases.values() for c in some)
        numbers = cases[names[0]][0]["numbers"]
        rates = [c["rate"] for some in cases.values() for c in some]
        figures = (f"{x:.3f}" for x in (*means, statistics.fmean(means), gap))
        edge = f"{sum(rate == max(RATES) for rate in rates)} of {len(rates)}"
        rows.append((method, f"{numbers:,.0f}", *figures, edge))
    return rows


def order(results: Results) -> list[Target]:
    """The paper's claims, as differences of means over all networks, tasks and seeds."""
    return [
        Target(claim, statistics.fmean(_apart(results, more, less, figure)), low=0.0)
        for claim, more, less, figure in CLAIMS
    ]


def order_table(results: Results, network: str) -> list[tuple[str, ...]]:
    """The paper's claims on one network."""
    own = {key: value for key, value in results.items() if key.startswith(f"{network}/")}
    rows: list[tuple[str, ...]] = []
    for claim, more, less, figure in CLAIMS:
        apart = _apart(own, more, less, figure)
        mean = statistics.fmean(apart)
        error = statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else 0.0
        holds = "yes" if mean > error else "no" if mean < -error else "open"
        rows.append((claim, f"{mean:+.3f}", f"{error:.3f}", holds))
    return rows


def _apart(results: Results, more: str, less: str, figure: str) -> list[float]:
    """By how much one method is above another, case by case."""
    cases = [key.split("/") for key in results]
    return [
        results["/".join(case)][figure] - results["/".join([case[0], less, *case[2:]])][figure]
        for case in cases
        if case[1] == more
    ]


if __name__ == "__main__":
    with one_sentence():
        main()
