"""Time and peak memory of one training step on a random-weight UNet of Stable Diffusion 1.5's shape.

    python -m benchmarks.step_time [--size 256] [--rounds 3] [--device cpu] [--dtype fp32] [--check]

The yardstick is the *floor*: the same UNet frozen, one forward and the gradient of its input, which no way of
tuning inner layers can avoid. Times are taken in interleaved rounds on one UNet and compared as ratios of
medians, peaks in a fresh process for each variant. With --check the exit status is 1 if a target is missed,
and the last line names those.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from torch import nn

from atomdiff.core.inject import AtomSpec, attach
from atomdiff.training.recipes import DEFAULT

from .report import Target, command, conclude
from .shapes import DTYPES, SD15, Asked, Clock, asked, random_unet

CONV_ATOMS = AtomSpec(linear_atoms="none")
ATTENTION = r".*attn\d\.to_(q|k|v|out\.0)"
SPATIAL = r".*(conv1|conv2|samplers\.0\.conv)|conv_in|conv_out"
Variant = Callable[[Any], AbstractContextManager[list[nn.Parameter]]]
"""Within, a UNet has something to train, which is given."""


@contextmanager
def _floor(unet: Any) -> Iterator[list[nn.Parameter]]:
    yield []


def atoms(spec: AtomSpec, form: str = "auto") -> Variant:
    @contextmanager
    def variant(unet: Any) -> Iterator[list[nn.Parameter]]:
        attached = attach(unet, spec, form)
        try:
            yield attached.parameters()
        finally:
            attached.detach()

    return variant


def lora(targets: str) -> Variant:
    @contextmanager
    def variant(unet: Any) -> Iterator[list[nn.Parameter]]:
        from peft import LoraConfig

        unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=targets))
        try:
            yield [parameter for parameter in unet.parameters() if parameter.requires_grad]
        finally:
            unet.unload_lora()

    return variant


TOOL, LORA = f"{DEFAULT.name} (default)", "LoRA r=4, attention"
VARIANTS = {
    "floor": _floor,
    "atoms": atoms(CONV_ATOMS),
    "atoms, map form": atoms(CONV_ATOMS, "map"),
    "atoms, weight form": atoms(CONV_ATOMS, "weight"),
    TOOL: atoms(DEFAULT.spec),
    LORA: lora(ATTENTION),
    "LoRA r=4, convs": lora(SPATIAL),
}

# --------------------------------------------------------------------------------------- measurement


def stepper(unet: Any, call: Asked, trained: list[nn.Parameter]) -> Callable[[], None]:
    """A function that trains for a step; with nothing trained, forward and the gradient of the latent."""
    adam = torch.optim.AdamW(trained, lr=1e-4) if trained else None

    def step() -> None:
        own = call if trained else replace(call, latents=call.latents.clone().requires_grad_())
        own.of(unet).float().square().mean().backward()
        if adam:
            adam.step()
            adam.zero_grad(set_to_none=True)

    return step


@dataclass
class Measured:
    """Of one variant: seconds of each step and of each attaching, peak bytes, trained numbers."""

    seconds: list[float] = field(default_factory=list)
    attach_seconds: list[float] = field(default_factory=list)
    peak: int = 0
    numbers: int = 0


def measure_times(a: argparse.Namespace, measured: dict[str, Measured]) -> None:
    """Interleaved rounds on one UNet: in each, every variant is attached, warmed up by a step, timed and
    detached."""
    unet, call = _unet_and_call(a)
    clock = Clock(a.device, wall=a.clock == "wall")
    for _ in range(a.rounds):
        for name, found in measured.items():
            start = time.perf_counter()
            with VARIANTS[name](unet) as trained:
                found.attach_seconds.append(time.perf_counter() - start)
                found.numbers = sum(parameter.numel() for parameter in trained)
                step = stepper(unet, call, trained)
                step()
                found.seconds.append(clock(step))


def _unet_and_call(a: argparse.Namespace) -> tuple[Any, Asked]:
    unet = random_unet(SD15, a.device, DTYPES[a.dtype]).train()
    return unet, asked(unet, 1, a.size)


def measure_peak(a: argparse.Namespace, name: str) -> int:
    """Peak bytes of two steps of one variant, in a process of its own: one process's high-water mark never
    falls."""
    command = [sys.executable, "-m", "benchmarks.step_time", "--peak-of", name, "--size", str(a.size)]
    command += ["--device", a.device, "--dtype", a.dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The memory run of {name!r} failed:\n{done.stderr}")
    return int(done.stdout.splitlines()[-1])


def own_peak(a: argparse.Namespace) -> int:
    unet, call = _unet_and_call(a)
    with VARIANTS[a.peak_of](unet) as trained:
        step = stepper(unet, call, trained)
        step()
        step()
    if a.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# -------------------------------------------------------------------------------------------- report


HEADERS = ("trained", "numbers", "step s", "× floor", "from-to", "peak GB", "× floor", "attach s")
LEGEND = """One picture, forward, backward and AdamW, on a random-weight UNet of Stable Diffusion 1.5's
shape. The floor is the same UNet frozen, with the gradient of its input alone. Times are medians of
interleaved rounds, peaks are those of a process of its own each."""


def rows_of(measured: dict[str, Measured]) -> list[tuple[str, ...]]:
    """All variants against the floor, as ratios of medians."""
    floor = measured["floor"]
    rows: list[tuple[str, ...]] = []
    for name, found in measured.items():
        ratios = [a / b for a, b in zip(found.seconds, floor.seconds, strict=True)]
        peak = (f"{found.peak / 1e9:.2f}", f"{found.peak / floor.peak:.3f}") if found.peak else ("", "")
        step, range_ = median(found.seconds), f"{min(ratios):.2f}-{max(ratios):.2f}"
        ratio = f"{step / median(floor.seconds):.2f}"
        attach_s = f"{median(found.attach_seconds):.2f}"
        rows.append((name, f"{found.numbers:,}", f"{step:.2f}", ratio, range_, *peak, attach_s))
    return rows


def targets_of(measured: dict[str, Measured], size: int) -> list[Target]:
    """What is asked of the default; its times are for 256 pixels."""
    tool, floor, own = measured[TOOL], measured["floor"], median(measured[TOOL].seconds)
    targets = [Target("attaching", median(tool.attach_seconds), high=2, unit="s")]
    if tool.peak:
        targets.append(Target("memory, × floor", tool.peak / floor.peak, high=1.0))
    if size == 256:
        targets.append(Target("step, × floor", own / median(floor.seconds), high=1.05))
        if LORA in measured:
            targets.append(Target("step, × LoRA", own / median(measured[LORA].seconds), high=1.05))
    return targets


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command("step_time", __doc__, docs="docs/results.md")
    add = parser.add_argument
    add("--size", type=int, default=256, help="pixels a side; a multiple of 64 (default 256)")
    add("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    add("--device", default="cpu")
    add("--dtype", choices=DTYPES, default="fp32", help="of the UNet (default fp32)")
    add("--clock", choices=("wall", "cpu"), default="wall", help="cpu: fairer on a busy machine")
    add("--no-memory", action="store_true", help="times only")
    add("--only", nargs="*", choices=VARIANTS, help="variants beside the floor and the default")
    add("--peak-of", choices=VARIANTS, help=argparse.SUPPRESS)
    a = parser.parse_args(arguments)
    if a.size < 64 or a.size % 64 or a.rounds < 1:
        parser.error(f"--size must be a multiple of 64 and --rounds at least 1, not {a.size} and {a.rounds}")
    chosen = VARIANTS if a.only is None else ("floor", TOOL, *a.only)
    a.variants = [name for name in VARIANTS if name in chosen]
    return a


def main(arguments: Sequence[str] | None = None) -> None:
    a = parse(arguments)
    if a.peak_of:
        print(own_peak(a))
        return
    measured = {name: Measured() for name in a.variants}
    for name, found in measured.items():  # before the times, so that never two UNets are in memory at once
        found.peak = 0 if a.no_memory else measure_peak(a, name)
    measure_times(a, measured)
    title, rows = f"One training step, {a.size} px, {a.dtype}", rows_of(measured)
    targets = targets_of(measured, a.size)
    conclude(a, title, (HEADERS, rows), targets, f"step time {a.size}", LEGEND)


if __name__ == "__main__":
    main()
