"""`python -m benchmarks.rates`: do the rates that are measured on a base suit it?

    python -m benchmarks.rates [speed] [same] [likeness] [--check]

`speed`: on random weights of the shapes of SD 1.5 and SDXL, the atoms at the rates found against LoRA through
PEFT, both really trained. `same`: the pocket written in other weights gets the same rates, and a training on
it arrives at the same concept. `likeness`: on the pocket and what was made of it, the concept at the rates
that follow from the pocket's own best against the best of five rates tried by hand. Without a name: all.
With --check the exit status is 1 if a target is missed, and the last line names those.
"""

from __future__ import annotations

import argparse
import gc
import math
import time
from pathlib import Path
from typing import Any

from atomdiff.base.stable_diffusion import Base, encode_prompts
from atomdiff.training.calibration import LORA_RATE, Calibration, calibrate

from ..bench import Bench, Method
from ..report import Target, command, machine, one_sentence, show, verdict
from ..shapes import DTYPES
from ..tasks import tuning_subjects
from .speed import SPEC, atoms, change_after, full_size_base, lora, random_prompt, trained_atoms
from .variants import pocket_variant

FACTOR = 1.5  # within which the atoms are as fast as LoRA
WITHIN = 0.03  # of the best likeness of five rates
SAME = ("pocket", "same function", "widened")
JUDGED = ("pocket", "epsilon")
HAND = (
    6.25e-4,
    1.25e-3,
    2.5e-3,
    5e-3,
    1e-2,
)  # of conv atoms, tried by hand; linear ones learn LINEAR times as fast
LINEAR = 2.0
COURSE: dict[str, Any] = {
    "recipe": "atoms+dc", "num_class_images": 16, "max_train_steps": 100, "train_batch_size": 2,
    "token_learning_rate": 2.5e-3, "max_drift": 0.0,
}  # fmt: skip


def speed(args: argparse.Namespace) -> list[Target]:
    """Real trainings of LoRA and of the atoms on the full-size shapes."""
    rows, targets = [], []
    for kind in args.shapes:
        base = full_size_base(kind, DTYPES[args.dtype])
        start = time.process_time()
        found = calibrate(base, SPEC, random_prompt(base, 0), random_prompt(base, 2), args.size)
        seconds = time.process_time() - start
        with lora(base) as groups:
            wanted = change_after(base, groups, args.size)
        with atoms(base, found) as groups:
            reached = change_after(base, groups, args.size)
        ratio = reached / wanted
        rates = f"{found.learning_rate:g}", f"{found.linear_learning_rate:g}"
        rows.append((kind, *rates, f"{wanted:.3f}", f"{reached:.3f}", f"{ratio:.2f}", f"{seconds:.0f}"))
        targets.append(Target(f"{kind}: speed over LoRA's", ratio, low=1 / FACTOR, high=FACTOR))
        del base, groups
        gc.collect()
    headers = ("shape", "conv", "linear", "LoRA moved", "atoms moved", "ratio", "CPU s to find")
    show(f"Rates as fast as LoRA r=4 at {LORA_RATE:g}, {args.size} px, {args.dtype}", headers, rows)
    return targets


def same(args: argparse.Namespace) -> list[Target]:
    """Rates and concepts of one function written in three ways."""
    rows, targets, first = [], [], None
    for name in SAME:
        base = pocket_variant(name, args.out)
        found = rates_on(base, LORA_RATE)
        concept = trained_atoms(base, found, steps=args.steps)
        first = first or (found, concept)
        apart = float((concept - first[1]).norm() / first[1].norm())
        rate = (
            found.learning_rate / first[0].learning_rate,
            found.linear_learning_rate / first[0].linear_learning_rate,
        )
        rows.append((name, f"{found.learning_rate:g}", f"{found.linear_learning_rate:g}", f"{apart:.1e}"))
        worst = max(max(r, 1 / r) for r in rate)
        targets.append(Target(f"{name}: rates over the pocket's", worst, high=1.02))
        targets.append(Target(f"{name}: conv atoms apart", apart, high=0.05))
    headers = ("the pocket", "conv", "linear", f"conv atoms apart after {args.steps} steps")
    show("One function in other weights", headers, rows)
    return targets


def likeness(args: argparse.Namespace) -> list[Target]:
    """The reference is found once, on the pocket: the LoRA rate that its best rate by hand comes to."""
    rows, targets, lora_rate, tasks = [], [], 0.0, tuning_subjects(1)
    for name in args.bases:
        base = pocket_variant(name, args.out)
        bench = Bench("rates", args.out / name.replace(" ", "-"), given=base)

        def told(rate: float, linear: float, bench: Bench = bench) -> tuple[float, str]:
            """The plain likeness of the concept at these rates, and its cell."""
            method = Method(f"{rate:g}", COURSE | {"learning_rate": rate, "linear_learning_rate": linear})
            bench.run([method], tasks)
            (outcome,) = bench.outcomes(method, tasks)
            return outcome.likeness, f"{outcome.likeness:.2f} ({outcome.figures['drift']:.2f})"

        by_hand = {rate: told(rate, LINEAR * rate) for rate in HAND}
        best = max(by_hand, key=lambda rate: by_hand[rate])
        if not lora_rate:  # of the first base, the pocket
            lora_rate = LORA_RATE * best / rates_on(base, LORA_RATE).learning_rate
        found = rates_on(base, lora_rate)
        rule = told(found.learning_rate, found.linear_learning_rate)
        rates = f"{found.learning_rate:g}, {found.linear_learning_rate:g}"
        rows.append((name, *(cell for _, cell in by_hand.values()), rates, rule[1]))
        lead = rule[0] - by_hand[best][0]
        targets.append(Target(f"{name}: likeness beside the best by hand", lead, low=-WITHIN))
    hand = (f"{rate:g}" for rate in HAND)
    headers = ("base", *hand, f"as LoRA at {lora_rate:.2g}", "likeness (class drift)")
    show("Likeness (and drift of the class) by rate of conv atoms, plainly drawn", headers, rows)
    return targets


def rates_on(base: Base, lora_rate: float) -> Calibration:
    prompt, empty = (encode_prompts(base, [text]) for text in ("a dog", ""))
    return calibrate(base, SPEC, prompt, empty, base.resolution, lora_rate)


PARTS: dict[str, Any] = {"speed": speed, "same": same, "likeness": likeness}


def main() -> None:
    parser = command("rates", __doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--shapes", nargs="+", choices=("sd15", "sdxl"), default=["sd15", "sdxl"])
    parser.add_argument("--size", type=int, default=128, help="pixels a side on the full-size shapes")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the full-size UNets")
    parser.add_argument("--bases", nargs="+", default=list(JUDGED), help="for likeness, the pocket first")
    parser.add_argument("--steps", type=int, default=20, help="of training where concepts must be the same")
    parser.add_argument("--out", type=Path, default=Path("outputs/rates"))
    a = parser.parse_args()
    if unknown := set(a.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}: give some of {', '.join(PARTS)}")
    targets = [target for part in a.parts or PARTS for target in PARTS[part](a)]
    assert all(math.isfinite(target.value) for target in targets)
    print(machine())
    verdict(targets, a.check)


if __name__ == "__main__":
    with one_sentence():
        main()
