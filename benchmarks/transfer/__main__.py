"""The discriminative half of arXiv 2403.00269 on the same core: atoms in classifiers, on new tasks.

    python -m benchmarks.transfer [--quick] [--seeds N] [--networks NAME ...] [--epochs N] [--docs] [--check]

A small ResNet and a small ConvNeXt learn the classes and colours of the pocket world, then, as in VTAB-1k,
each new task with 800 pictures to train on and 200 to choose the learning rate by. Reported are accuracy on
1,000 others and the gap between training and those. What is finished is kept in OUT/results.json; `--docs`
publishes it in benchmarks/results, and writes a section of docs/results.md for each network.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from atomdiff.formats.files import write_atomically

from ..method import ledger
from ..report import Target, machine, markdown, one_sentence, show, verdict, write_section, written
from .fitting import TRAIN, pretrained, transfer
from .networks import METHODS, NETWORKS, atom_share, convnext, resnet
from .tasks import TASKS

PAPER_SHARE = 4e-5  # atoms of ResNet-50's weights, as the paper counts them
RATES = (3e-4, 3e-3, 3e-2)
PUBLISHED = ledger.PUBLISHED / "transfer.json"
Shown = tuple[str, Sequence[str], Sequence[tuple[str, ...]]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.transfer", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="the ResNet, two tasks, one seed, few epochs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--epochs", type=int, default=30, help="of each training (default 30)")
    parser.add_argument("--out", type=Path, default=Path("outputs/transfer"))
    parser.add_argument("--docs", action="store_true", help="write the section of docs/results.md")
    parser.add_argument("--check", action="store_true", help="exit 1 if the paper's order does not hold")
    a = parser.parse_args(arguments)
    networks, names, count = a.networks, list(TASKS), 9600
    a.train, a.rates, pretraining = TRAIN, RATES, 12
    if a.quick:
        networks, names, count, a.seeds = networks[:1], names[1:3], 1920, 1
        a.epochs, a.rates, pretraining = 6, RATES[1:2], 4
    counted = {name: atom_share(make) for name, make in (("ResNet-50", resnet), ("ConvNeXt-T", convnext))}
    rows = [(n, f"{k:,}", f"{w:,}", f"{k / w:.4%}") for n, (k, w) in counted.items()]
    title = f"Atoms, m ≤ 9 (the paper: {PAPER_SHARE:.3%} of ResNet-50)"
    shares: Shown = title, ("network", "atoms", "of", "share"), rows
    results = run(networks, names, count, pretraining, a)
    headers = ("method", "numbers", *names, "mean", "gap")
    learnt: list[Shown] = [(n, headers, table(results, n, names, a.seeds)) for n in networks]
    for part in (shares, *learnt):
        show(*part)
    if a.docs:
        setup = f"{a.epochs} epochs, best of {len(a.rates)} rates, {a.seeds} seed{'s' * (a.seeds > 1)}"
        write_docs(shares, learnt, setup)
    print(machine())
    atoms, weights = counted["ResNet-50"]
    verdict(
        [Target("atoms' share of ResNet-50", atoms / weights, high=2 * PAPER_SHARE), *order(results)], a.check
    )


LEGEND = """Accuracy on 1,000 pictures after training on 800; 200 others choose the rate. Gap: accuracy on the
pictures trained on, less that. Numbers: what is trained beside the last linear layer. The networks are small
ones that were pretrained on the classes and colours of the pocket's world."""


def write_docs(shares: Shown, learnt: Sequence[Shown], setup: str) -> None:
    page = Path("docs/results.md")
    title, headers, rows = shares
    text = f"## Other networks, other tasks\n\n{LEGEND}\n\n### {title}\n\n{markdown(headers, rows)}"
    write_section(page, "transfer", text)
    for network, headers, rows in learnt:
        text = f"### {network}\n\n{written()}: {setup}.\n\n{markdown(headers, rows)}"
        write_section(page, f"transfer {network}", text)


def run(
    networks: list[str], names: list[str], count: int, pretraining: int, a: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Everything that is missing from what was published and from OUT/results.json."""
    file = a.out / "results.json"
    known: dict[str, dict[str, float]] = {}
    for some in (PUBLISHED, file):
        known |= json.loads(some.read_text()) if some.exists() else {}
    wanted = {}
    for network in networks:
        model = pretrained(network, a.out, count, pretraining)
        work = [(m, task, seed) for seed in range(a.seeds) for task in names for m in METHODS]
        for method, task, seed in track(work, network):
            key = f"{network}/{method}/{task}/{seed}"
            setup = f"{key}/{count}/{pretraining}/{a.epochs}/{len(a.rates)}"
            if setup not in known:
                known[setup] = transfer(model, method, task, seed, a)
                write_atomically(file, json.dumps(known, indent=0, ensure_ascii=False).encode())
            wanted[key] = known[setup]
    if a.docs:
        write_atomically(PUBLISHED, json.dumps(known, indent=0, ensure_ascii=False).encode())
    return wanted


def table(
    results: dict[str, dict[str, float]], network: str, names: list[str], seeds: int
) -> list[tuple[str, ...]]:
    rows = []
    for method in METHODS:
        cases = {task: [results[f"{network}/{method}/{task}/{s}"] for s in range(seeds)] for task in names}
        means = [statistics.fmean(c["test"] for c in some) for some in cases.values()]
        gap = statistics.fmean(c["gap"] for some in cases.values() for c in some)
        numbers = cases[names[0]][0]["numbers"]
        rows.append(
            (method, f"{numbers:,.0f}", *(f"{x:.3f}" for x in (*means, statistics.fmean(means), gap)))
        )
    return rows


def order(results: dict[str, dict[str, float]]) -> list[Target]:
    """The paper's claims, as differences of means over all networks, tasks and seeds."""

    def mean(method: str, figure: str) -> float:
        return statistics.fmean(r[figure] for key, r in results.items() if key.split("/")[1] == method)

    return [
        Target("atoms above the linear probe", mean("atoms", "test") - mean("linear probe", "test"), low=0.0),
        Target("atoms + Dc above atoms", mean("atoms + Dc", "test") - mean("atoms", "test"), low=0.0),
        Target("atoms above α tuned", mean("atoms", "test") - mean("α tuned", "test"), low=0.0),
        Target("gap of α tuned above atoms'", mean("α tuned", "gap") - mean("atoms", "gap"), low=0.0),
    ]


if __name__ == "__main__":
    with one_sentence():
        main()
