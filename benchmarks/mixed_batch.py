"""Several concepts in one batch: what they cost beside one, what a swap costs, and several trainings at once.

    python -m benchmarks.mixed_batch [--size 256] [--batch 8] [--rounds 3] [--device cpu] [--docs] [--check]

A UNet of Stable Diffusion 1.5's shape with random weights; concepts are random atoms on all convolutions and
block atoms on cross-attention, as the default trains them. Times are medians of interleaved rounds, on a CPU
of processor seconds, since others may run beside. With --check the exit status is 1 if a target is missed.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from atomdiff.base.stable_diffusion import Base
from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import passport_of
from atomdiff.core import inject, subspace
from atomdiff.core.inject import AtomSpec
from atomdiff.core.mixing import Mixing, mixing
from atomdiff.files.safetensors_file import from_bytes, to_bytes
from atomdiff.sampling.mixed import ASKED_AGAIN, mixed_maps
from atomdiff.sampling.resident import Resident, Residents
from atomdiff.training.recipes import DEFAULT
from atomdiff.training.together import row_maps, unet_like

from .report import Target, command, conclude
from .shapes import DTYPES, SD15, Asked, Clock, asked, random_unet

SPEC = DEFAULT.spec
TRAININGS = 4
HEADERS = ("", "seconds", "×")


def base_of(unet: Any) -> Base:
    """The UNet as a base without text encoders, as much as `Residents` needs."""
    return Base("random", "sd1", SimpleNamespace(unet=unet), passport_of(unet, "sd1", "random"))


WORD = {"token": (2, 1, 768)}  # SD 1.5's


def random_concepts(
    base: Base, count: int, precision: str = "int8", word: Mapping[str, Sequence[int]] = WORD
) -> list[Concept]:
    """Concepts of the default's layers with random numbers, as files of this precision hold them; `word` are
    the shapes of their words' vectors."""
    attached = inject.attach(base.unet, SPEC)
    shapes = {name: atoms.shape for name, atoms in attached.read().items()}
    attached.detach()
    made = []
    for seed in range(count):
        g = torch.Generator().manual_seed(seed)
        atoms = {name: 0.05 * torch.randn(shape, generator=g) for name, shape in shapes.items()}
        token = {name: torch.randn(*shape, generator=g) for name, shape in word.items()}
        concept = Concept.of(base.unet, SPEC, atoms, base.passport, trigger="sks", token=token)
        made.append(from_bytes(to_bytes(concept, precision)))
    return made


# ------------------------------------------------------------------------------------------- drawing


def steps(unet: Any, held: list[Resident], call: Asked, rounds: int, clock: Clock) -> dict[str, float]:
    """Seconds of one step of a batch: of the base, of one concept folded into the weights, of one concept and
    of different ones by their maps; and of taking others into the batch."""
    several = f"{len(held)} concepts"
    one, each = mixed_maps([(held[0], 1.0)]), [mixed_maps([(r, 1.0)]) for r in held]
    parts = [({name: _delta(M) for name, M in held[0].layer_maps().items()}, 1.0)]
    step = lambda: call.of(unet)  # noqa: E731
    found: dict[str, list[float]] = {}

    def timed(name: str, what: Callable[[], object]) -> None:
        found.setdefault(name, []).append(clock(what))

    step()
    for _ in range(rounds):
        timed("the base", step)
        with contextlib.ExitStack() as stack:
            timed("folding one, for comparison", lambda: stack.enter_context(inject.fold(unet, parts)))
            timed("one concept, folded", step)
        with mixing(unet, lambda name: ASKED_AGAIN.search(name) is not None) as layers:
            layers.rows([one] * len(held))
            timed("one concept, by its maps", step)
            layers.rows(each)
            timed(f"{several}, first step", step)
            timed(several, step)
            timed("swap of all", lambda: layers.rows([mixed_maps([(r, 1.0)]) for r in held[::-1]]))
            timed("swap of one", lambda: layers.rows([mixed_maps([(held[1], 1.0)]), *each[1:]]))
    return {name: median(seconds) for name, seconds in found.items()}


def _delta(M: Tensor) -> Callable[[Tensor], Tensor]:
    def delta(weight: Tensor) -> Tensor:
        if weight.ndim == 4:
            return subspace.apply_spatial_map(weight, M[0])
        return subspace.apply_block_map(weight, M[0])

    return delta


def residence(base: Base, count: int) -> tuple[float, float]:
    """Megabytes of `count` resident concepts of int4 files: their numbers, and what the process grew by."""
    held = Residents(base)
    some = random_concepts(base, 8, "int4")
    before = resident_megabytes()
    for i in range(count):
        held.add(some[i % len(some)], f"concept {i}")
    return held.nbytes / 1e6, resident_megabytes() - before


def resident_megabytes() -> float:
    """Of this process, now; its most where the system does not tell that."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


# ------------------------------------------------------------------------------------------- training


def trainings(unet: Any, call: Asked, rounds: int, clock: Clock, spec: AtomSpec = SPEC) -> dict[str, float]:
    """Seconds of a step of as many trainings as `call` has samples, a picture each: one after another as each
    trains alone, and in one batch."""
    count = len(call.times)
    found: dict[str, list[float]] = {"alone": [], "together": []}

    def alone() -> None:
        for k in range(count):
            call.rows(slice(k, k + 1)).of(unet).float().square().mean().backward()
            adam.step()
            adam.zero_grad()

    def together() -> None:
        joint.set(row_maps(several, range(count)))
        call.of(unet).float().square().mean((1, 2, 3)).sum().backward()
        adam.step()
        adam.zero_grad()

    with torch.no_grad():
        call.of(unet)
    for _ in range(rounds):
        attached = inject.attach(unet, spec)
        adam = torch.optim.AdamW(attached.parameters(), lr=1e-3)
        found["alone"].append(clock(alone))
        attached.detach()
        several = [inject.attach(unet_like(unet), spec) for _ in range(count)]
        joint = Mixing(unet)
        adam = torch.optim.AdamW([p for own in several for p in own.parameters()], lr=1e-3)
        found["together"].append(clock(together))
        joint.close()
    return {name: median(seconds) for name, seconds in found.items()}


# --------------------------------------------------------------------------------------------- report


def targets_of(
    found: dict[str, float], train: dict[str, float], megabytes: float, cuda: bool
) -> list[Target]:
    """The promises of a mixed batch."""
    many = next((name for name in found if name.endswith(" concepts")), "")
    one = found.get("one concept, folded")
    swap = found.get("swap of one")
    return [
        Target("different concepts in one batch, × one concept", one and found[many] / one, high=1.2),
        Target("swap of one concept, ms", swap and 1000 * swap, high=5)
        if cuda
        else Target("swap of one concept, share of a step", swap and swap / found[many], high=0.02),
        Target("1,000 resident concepts", megabytes or None, high=60, unit="MB"),
        Target(
            f"{TRAININGS} trainings in one batch, × alone",
            train["together"] / train["alone"] if train else None,
            high=0.65,
        ),
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = command("mixed_batch", __doc__, docs="docs/scale.md")
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--batch", type=int, default=8, help="pictures of different concepts in a batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    a = parser.parse_args(arguments)
    clock, unet = Clock(a.device), random_unet(SD15, a.device, DTYPES[a.dtype])
    base = base_of(unet)
    drawn: dict[str, float] = {}
    train: dict[str, float] = {}
    numbers = grown = 0.0
    if "residence" in a.only:
        numbers, grown = residence(base, 1000)
    if "drawing" in a.only:
        held = Residents(base)
        resident = [held.add(concept) for concept in random_concepts(base, a.batch)]
        with torch.no_grad():
            drawn = steps(unet, resident, asked(unet, a.batch, a.size), a.rounds, clock)
    if "training" in a.only:
        train = trainings(unet, asked(unet, TRAININGS, a.size), a.rounds, clock)
    told = ((f"batch of {a.batch}", drawn, "one concept, folded"), (f"{TRAININGS} trainings", train, "alone"))
    rows = [
        (f"{what}: {name}", f"{s:.4f}", f"{s / times[one]:.4f}")
        for what, times, one in told
        for name, s in times.items()
    ]
    if numbers:
        rows.append(
            (f"1,000 resident concepts: {numbers:.1f} MB, the process grew by {grown:.0f} MB", "", "")
        )
    title = f"SD 1.5's shape, {a.size} px, {a.dtype}"
    targets = targets_of(drawn, train, numbers, clock.cuda)
    conclude(a, title, (HEADERS, rows), targets, "mixed batch")


PARTS = ("drawing", "residence", "training")

if __name__ == "__main__":
    main()
