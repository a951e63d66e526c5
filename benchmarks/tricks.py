"""`python -m benchmarks.tricks`: what may buy likeness or keep the class, each tried alone.

On subjects that no result is reported of, judged from the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Any

from atomdiff.training.defaults import POCKET_RATES

from .bench import Bench, Method, parser
from .report import Target, one_sentence, verdict
from .tables import likeness_table, subject_table, tell
from .tasks import Task, tuning_subjects

NOISE = 0.05  # of likeness, taken for chance
TOOL = Method("the default", {})


def _tried(name: str, **settings: Any) -> Method:
    return Method(name, settings)


FREE = (  # what costs neither bytes nor time, so that the default should have it if it helps
    _tried("class weighs 1", prior_loss_weight=1.0),
    _tried("class weighs 10", prior_loss_weight=10.0),
    _tried("half the rate of Dc", linear_learning_rate=POCKET_RATES.linear_learning_rate / 2),
    _tried("half the rate of conv atoms", learning_rate=POCKET_RATES.learning_rate / 2,
           linear_learning_rate=POCKET_RATES.linear_learning_rate),
    _tried("half the rate of the word", token_learning_rate=POCKET_RATES.token_learning_rate / 2),
    _tried("4 times the rate of the word", token_learning_rate=POCKET_RATES.token_learning_rate * 4),
    _tried("k and v alone", linear_atoms="attn2_kv"),
    _tried("blocks of 2 on all attention", linear_atoms="attn", linear_block=2),
    _tried("blocks of 2 on all linear layers", linear_atoms="all", linear_block=2),
    _tried("one vector", num_vectors=1),
    _tried("no min-SNR weights", snr_gamma=0.0),
    _tried("noise offset 0.05", noise_offset=0.05),
    _tried("constant rates", lr_scheduler="constant"),
    _tried("mean of the last quarter", average_last=0.25),
    _tried("half the steps", max_train_steps=150),
)  # fmt: skip
DEARER = (
    _tried("no class pictures", with_prior_preservation=False),
    _tried("as many class pictures a step", prior_batch_size=4),
    _tried("twice the steps", max_train_steps=600),
    _tried("four vectors", num_vectors=4),
    _tried("recursive, 16 groups", recipe="recursive"),
    _tried("Dc on the queries too", linear_atoms="attn2"),
    _tried("Dc on all attention", linear_atoms="attn"),
    _tried("Dc on α", coef_block=4),
)
TRICKS = (TOOL, *FREE, *DEARER)


def targets(bench: Bench, tricks: Sequence[Method], tasks: Sequence[Task]) -> list[Target]:
    """No free trick may be better than the default by more than chance, or it should be the default."""
    leads = {trick.name: bench.lead(trick, TOOL, tasks)[0] for trick in tricks if trick in FREE}
    known = {name: lead for name, lead in leads.items() if not isnan(lead)}
    if not known:
        return []
    best = max(known, key=lambda name: known[name])
    return [Target(f"{best}, above the default", known[best], high=NOISE)]


def main(arguments: Sequence[str] | None = None) -> None:
    command = parser("tricks", __doc__)
    add = command.add_argument
    names = [trick.name for trick in TRICKS]
    add("--tricks", nargs="+", default=names, choices=names, metavar="NAME", help="; ".join(names))
    add("--subjects", nargs="+", type=int, default=[1, 2], choices=(1, 2, 3, 4), help="tuning subjects")
    a = command.parse_args(arguments)
    bench = Bench.of(a, "tricks")
    tricks = [trick for trick in TRICKS if trick is TOOL or trick.name in a.tricks]
    tasks = [task for number, task in enumerate(tuning_subjects(4), 1) if number in a.subjects]
    bench.run(tricks, tasks)
    told = [
        ("On tuning subjects", likeness_table(bench, tricks, tasks)),
        ("Plain likeness, subject by subject", subject_table(bench, tricks, tasks, TOOL)),
    ]
    tell(bench, "tricks", "What else was tried", told, a.docs)
    verdict(targets(bench, tricks, tasks), a.check)


if __name__ == "__main__":
    with one_sentence():
        main()
