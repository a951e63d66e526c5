"""`python -m benchmarks.tricks`: small things that may buy likeness, each tried alone beside the default.

On subjects that no result is reported of, judged from the files. What is finished is kept in
OUT/results.jsonl; runs with other --subjects may go on beside this one.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from atomdiff.sampling.gating import USUAL
from atomdiff.training.defaults import POCKET

from .court import CONTEXTS, Drawing
from .method.tasks import Task, tuning_subjects
from .recipes import PLAIN, Bench, Recipe
from .report import Target, machine, markdown, one_sentence, option, show, verdict, write_section, written

COLUMNS = ("likeness", "colour", "second", "pattern", "identity", "context", "accessory", "leak", "drift")
HEADERS = ("tried", "bytes", "above the default", "±", *COLUMNS)
NOISE = 0.05  # of likeness, taken for chance
SECTIONS = {"tricks": "What else was tried", "contenders": "What might have been the default"}
RATE, WORD_RATE = POCKET.linear_learning_rate, POCKET.token_learning_rate
HALF: dict[str, Any] = {"linear_learning_rate": RATE / 2, "token_learning_rate": WORD_RATE / 2}


def _tried(name: str, drawing: Mapping[str, Any] | None = None, **settings: Any) -> Recipe:
    return Recipe(name, settings, drawing=drawing or {})


LEGEND = "± is the standard error of what is above the default, by subject and seed."
DEFAULT = _tried("the default")
FREE = (  # what costs neither bytes nor time, so that the default should have it if it helps
    _tried("concept on both branches", {"branches": "both"}),
    _tried("concept on every prompt", {"always": True}),
    _tried("concept from the first step on", {"span": (0.0, USUAL[1])}),
    _tried("concept in all but the last step", {"span": (USUAL[0], 0.99)}),
    _tried("concept until four fifths", {"span": (USUAL[0], 0.8)}),
    _tried("concept at strength 0.7", {"strength": 0.7}),
    _tried("one vector for the trigger", num_vectors=1),
    _tried("no learned trigger", train_token=False),
    _tried("k, v and out alone", linear_atoms="attn2_kvo"),
    _tried("half the numbers shared", shared_numbers=64),
    _tried("Kronecker kc=8", linear_family="kronecker"),
    _tried("shared on attn", linear_atoms="attn", shared_numbers=64),
    _tried("shared in blocks of 4", linear_block=4),
    _tried("shared in blocks of 16", linear_block=16),
    _tried("twice the atoms' rate", linear_learning_rate=2 * RATE),
    _tried("twice the trigger's rate", token_learning_rate=2 * WORD_RATE),
    _tried("half the rates", **HALF),
    _tried("constant rates", lr_scheduler="constant"),
    _tried("mean of the last quarter", average_last=0.25),
    _tried("no min-SNR weights", snr_gamma=0.0),
    _tried("half the steps", max_train_steps=150),
    _tried("weight decay 0.01", adam_weight_decay=0.01),
    _tried("mirrored pictures", random_flip=True),
)
DEARER = (
    _tried("prior preservation", with_prior_preservation=True),
    _tried("prior preservation, on both branches", {"branches": "both"}, with_prior_preservation=True),
    _tried("eight pictures a step", train_batch_size=8),
    _tried("four vectors for the trigger", num_vectors=4),
    _tried("Dc of each layer, kc=4", linear_family="blocks"),
    _tried("twice the numbers shared", shared_numbers=256),
    _tried("twice the numbers, half the rates", shared_numbers=256, **HALF),
    _tried("one conv atom beside it", num_atoms=1),
    _tried("nine conv atoms beside it", num_atoms=9),
    _tried("nine conv atoms, half the rates", num_atoms=9, **HALF),
    _tried("nine conv atoms, SVD basis", num_atoms=9, basis="svd"),
    _tried("twice the steps", max_train_steps=600),
)
TRICKS = (DEFAULT, *FREE, *DEARER)


def row(bench: Bench, recipe: Recipe, tasks: Sequence[Task]) -> tuple[str, ...]:
    size, figures = bench.mean(recipe, tasks)
    above = ("", "")
    if recipe not in (PLAIN, DEFAULT):
        lead, error = bench.lead(recipe, DEFAULT, tasks)
        above = f"{lead:+.3f}", "" if isnan(error) else f"{error:.3f}"
    shown = (f"{figures[key]:.2f}" if key in figures else "" for key in COLUMNS)
    return recipe.name, f"{size:,.0f}", *above, *shown


def targets(bench: Bench, tricks: Sequence[Recipe], tasks: Sequence[Task]) -> list[Target]:
    """No free trick may be better than the default by more than chance, or it should be the default."""
    free = [trick for trick in tricks if trick in FREE]
    if not free:
        return []
    likeness = {trick.name: bench.mean(trick, tasks)[1]["likeness"] for trick in (DEFAULT, *free)}
    best = max(likeness, key=lambda name: likeness[name])
    return [Target(f"{best}, above the default", likeness[best] - likeness[DEFAULT.name], high=NOISE)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tricks", description=__doc__)
    add = parser.add_argument
    names = [trick.name for trick in TRICKS]
    told = "beside the default: " + "; ".join(names)
    add("--tricks", nargs="+", default=names, choices=names, metavar="NAME", help=told)
    add("--subjects", nargs="+", type=int, default=[1, 2], choices=(1, 2, 3, 4), help="tuning subjects")
    add("--seeds", type=int, default=1)
    add("--each", type=int, default=4, help="pictures in each of the 8 contexts")
    add("--draw-steps", type=int, default=12)
    add("--set", nargs="*", default=[], metavar="NAME=VALUE", help="training settings for all of them")
    add("--out", type=Path, default=Path("outputs/tricks"))
    add("--docs", action="store_true", help="write the section of docs/results.md")
    add("--section", default="tricks", choices=SECTIONS, help="which")
    add("--check", action="store_true", help="exit 1 if a trick is better than the default")
    a = parser.parse_args(arguments)
    bench = Bench("tricks", a.out, Drawing(a.each, a.draw_steps), dict(map(option, a.set)), a.seeds)
    tricks = [trick for trick in TRICKS if trick is DEFAULT or trick.name in a.tricks]
    tasks = [task for number, task in enumerate(tuning_subjects(4), 1) if number in a.subjects]
    bench.judge_all(tricks, tasks)
    rows = [row(bench, recipe, tasks) for recipe in (PLAIN, *tricks)]
    title = f"{len(tasks)} subjects x {len(CONTEXTS)} contexts x {a.each} pictures of {a.draw_steps} steps"
    show(title, HEADERS, rows)
    if a.docs:
        bench.ledger.publish()
        told = f"{written()}: {title}, {a.seeds} seed{'s' * (a.seeds > 1)}. {LEGEND}"
        text = f"## {SECTIONS[a.section]}\n\n{told}\n\n{markdown(HEADERS, rows)}"
        write_section(Path("docs/results.md"), a.section, text)
    print(machine())
    verdict(targets(bench, tricks, tasks), a.check)


if __name__ == "__main__":
    with one_sentence():
        main()
