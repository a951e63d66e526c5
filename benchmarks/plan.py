"""`python -m benchmarks.plan`: what one GPU holds and serves, computed from the shapes of the models.

Operations are counted by torch's FlopCounterMode over models without contents, bytes from their parameters.
What cannot be counted is an argument: the GPU's peak and the share of it that is reached, its memory and its
price, what eight different concepts cost in a batch and what a resident one takes (both printed by
`benchmarks.mixed_batch`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from atomdiff.training.defaults import FULL_SIZE

from .full_size.building import KINDS, components
from .full_size.memory import SIDES
from .report import command, markdown, show, write_section, written
from .shapes import asked

LEGEND = """**Computed, not measured on a GPU.** {written}: {gpu} of {memory:g} GB at $ {price:g} an hour, of
whose {tflops:g} TFLOP/s in fp16 a share of {reached:g} is assumed to be reached; {activations:g} GB
are kept for activations. A picture has {steps} steps with guidance. A batch of different concepts
costs {mixed:g} × one of the same, and a resident concept takes {resident:g} KB, as measured above.
A training has {training} steps of a picture and a class picture, backward twice the forward, and
the base's own answer for the latter."""


@dataclass(frozen=True)
class Counted:
    """A base of its native size: bytes in fp16, and operations."""

    kind: str

    @cached_property
    def parts(self) -> dict[str, Any]:
        with torch.device("meta"):
            return components(KINDS[self.kind])

    @property
    def weights(self) -> int:
        """Bytes of all models."""
        return sum(2 * p.numel() for model in self.parts.values() for p in model.parameters())

    @cached_property
    def unet(self) -> int:
        """Operations of a sample's prediction."""
        unet = self.parts["unet"]
        return operations(lambda: asked(unet, 1, SIDES[self.kind]).of(unet))

    @cached_property
    def decoding(self) -> int:
        """Operations of a picture's decoding."""
        vae, side = self.parts["vae"], SIDES[self.kind] // 8
        return operations(lambda: vae.decode(torch.empty(1, 4, side, side, device="meta")))

    def picture(self, steps: int) -> int:
        return 2 * steps * self.unet + self.decoding

    @property
    def training(self) -> int:
        """Of two samples forward and twice as much backward, and the base's answer to one of them."""
        return FULL_SIZE.max_train_steps * (2 * 3 + 1) * self.unet


def operations(call: Callable[[], object]) -> int:
    """Floating-point operations, a multiplication and an addition being two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def rows(bases: list[Counted], a: argparse.Namespace) -> list[tuple[str, ...]]:
    """What one GPU does, a column for each base."""
    speed = a.tflops * 1e12 * a.reached
    pictures = [speed / (a.mixed * base.picture(a.steps)) for base in bases]
    trainings = [speed / base.training for base in bases]
    room = [a.memory - a.activations - base.weights / 1e9 for base in bases]
    lines: list[tuple[str, list[float], str]] = [
        ("all weights, GB", [base.weights / 1e9 for base in bases], ".1f"),
        ("resident concepts, millions", [gb / a.resident for gb in room], ".1f"),
        ("operations of a picture, TFLOP", [base.picture(a.steps) / 1e12 for base in bases], ".0f"),
        ("pictures a second", pictures, ".1f"),
        ("pictures a day, thousands", [86.4 * each for each in pictures], ",.0f"),
        ("a thousand pictures, $", [a.price / 3.6 / each for each in pictures], ".2f"),
        ("operations of a training, PFLOP", [base.training / 1e15 for base in bases], ".1f"),
        ("seconds a concept", [1 / each for each in trainings], ".0f"),
        ("concepts a day, thousands", [86.4 * each for each in trainings], ".1f"),
        ("a thousand concepts, $", [a.price / 3.6 / each for each in trainings], ".2f"),
    ]
    return [(name, *(format(value, how) for value in values)) for name, values, how in lines]


def main() -> None:
    parser = command("plan", __doc__, docs="docs/scale.md", check=False)
    add = parser.add_argument
    add("--gpu", default="one H100")
    add("--tflops", type=float, default=990, help="of its dense fp16 peak (default: H100 SXM's data sheet)")
    add("--reached", type=float, default=0.4, help="share of the peak that is reached (default 0.4, a guess)")
    add("--memory", type=float, default=80, help="GB")
    add("--activations", type=float, default=20, help="GB kept for activations (default 20)")
    add("--price", type=float, default=3.0, help="$ an hour (default 3)")
    add("--steps", type=int, default=25)
    add("--mixed", type=float, default=1.04, help="batch of eight concepts, by benchmarks.mixed_batch")
    add("--resident", type=float, default=23.0, help="KB of a resident concept, by benchmarks.mixed_batch")
    a = parser.parse_args()
    bases = [Counted(kind) for kind in KINDS]
    headers = ("", *(f"{kind}, {SIDES[kind]}²" for kind in KINDS))
    found = rows(bases, a)
    show(f"{a.gpu}, computed", headers, found)
    if a.docs:
        text = LEGEND.format(**vars(a), written=written(), training=FULL_SIZE.max_train_steps)
        write_section(Path(a.page), "plan", text + "\n\n" + markdown(headers, found))


if __name__ == "__main__":
    main()
