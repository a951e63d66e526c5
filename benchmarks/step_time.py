"""Time and peak memory of one training step on a random-weight UNet of Stable Diffusion 1.5's shape.

    python -m benchmarks.step_time [--size 256] [--rounds 3] [--device cpu] [--dtype fp32] [--check]

The yardstick is the *floor*: the same UNet frozen, one forward and the gradient of its input, which no way of
tuning inner layers can avoid. Times are taken in interleaved rounds on one UNet and compared as ratios of
medians, peaks in a fresh process for each variant. With --check the exit status is 1 if a target is missed,
and the last line names those.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from atomdiff.core.inject import AtomSpec, attach
from atomdiff.training.recipes import DEFAULT

from .report import markdown, show, write_section, written
from .shapes import SD15, empty_unet, fill

STEP_TARGET, MEMORY_TARGET, ATTACH_TARGET = 1.15, 1.10, 2.0  # × floor at 256 px, × floor, seconds
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CONV_ATOMS = AtomSpec(linear_atoms="none")
ATTENTION = r".*attn\d\.to_(q|k|v|out\.0)"
SPATIAL = r".*(conv1|conv2|samplers\.0\.conv)|conv_in|conv_out"

# ------------------------------------------------------------------------------------------ variants


@contextmanager
def _floor(unet: Any) -> Iterator[list[nn.Parameter]]:
    unet.requires_grad_(False)
    yield []


def atoms(spec: AtomSpec, form: str) -> Callable[[Any], AbstractContextManager[list[nn.Parameter]]]:
    @contextmanager
    def variant(unet: Any) -> Iterator[list[nn.Parameter]]:
        attached = attach(unet, spec, form)
        try:
            yield attached.parameters()
        finally:
            attached.detach()

    return variant


def lora(targets: str) -> Callable[[Any], AbstractContextManager[list[nn.Parameter]]]:
    @contextmanager
    def variant(unet: Any) -> Iterator[list[nn.Parameter]]:
        from peft import LoraConfig

        unet.requires_grad_(False)
        unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=targets))
        try:
            yield [parameter for parameter in unet.parameters() if parameter.requires_grad]
        finally:
            unet.unload_lora()

    return variant


TOOL, LORA = f"{DEFAULT.name} (default)", "LoRA r=4, attention"
VARIANTS = {
    "floor": _floor,
    "atoms": atoms(CONV_ATOMS, "auto"),
    "atoms, map form": atoms(CONV_ATOMS, "map"),
    "atoms, weight form": atoms(CONV_ATOMS, "weight"),
    TOOL: atoms(DEFAULT.spec, "auto"),
    LORA: lora(ATTENTION),
    "LoRA r=4, convs": lora(SPATIAL),
}

# ------------------------------------------------------------------------------------------ one step


def sd15_shaped_unet(device: str, dtype: torch.dtype) -> Any:
    """A UNet of SD 1.5's shape with random weights, made without a second copy in memory."""
    unet = nn.Module.to(empty_unet(SD15), dtype)  # diffusers' own `to` warns about a dtype, loaded or not
    fill(unet, device)
    return unet.train()


@dataclass
class Batch:
    """What one step sees: one picture of `size` pixels a side as a latent, and a prompt of 77 tokens."""

    latent: Tensor
    prompt: Tensor
    timestep: Tensor
    target: Tensor

    @staticmethod
    def random(size: int, device: str, dtype: torch.dtype) -> Batch:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        side = size // 8
        latent, prompt, target = normal(1, 4, side, side), normal(1, 77, 768), normal(1, 4, side, side)
        return Batch(latent, prompt, torch.tensor([500], device=device), target)


def step(
    unet: Any, batch: Batch, trained: list[nn.Parameter], optimizer: torch.optim.Optimizer | None
) -> None:
    """One training step; with nothing trained, forward and the gradient of the latent."""
    latent = batch.latent if trained else batch.latent.clone().requires_grad_()
    prediction = unet(latent, batch.timestep, batch.prompt).sample
    torch.nn.functional.mse_loss(prediction.float(), batch.target.float()).backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _optimizer(trained: list[nn.Parameter]) -> torch.optim.Optimizer | None:
    return torch.optim.AdamW(trained, lr=1e-4) if trained else None


# --------------------------------------------------------------------------------------- measurement


@dataclass
class Measured:
    """Of one variant: seconds of each step and of each attaching, peak bytes, trained numbers."""

    seconds: list[float] = field(default_factory=list)
    attach_seconds: list[float] = field(default_factory=list)
    peak: int = 0
    numbers: int = 0


def measure_times(args: argparse.Namespace, console: Console) -> dict[str, Measured]:
    """Interleaved rounds on one UNet: in each, every variant is attached, warmed up by a step, timed and
    detached."""
    unet = sd15_shaped_unet(args.device, DTYPES[args.dtype])
    batch = Batch.random(args.size, args.device, DTYPES[args.dtype])
    measured = {name: Measured() for name in args.variants}
    with console.status("") as status:
        for round_ in range(args.rounds):
            for name, found in measured.items():
                status.update(f"timing: round {round_ + 1} of {args.rounds}, {name}")
                start = time.perf_counter()
                with VARIANTS[name](unet) as trained:
                    found.attach_seconds.append(time.perf_counter() - start)
                    found.numbers = sum(parameter.numel() for parameter in trained)
                    optimizer = _optimizer(trained)
                    step(unet, batch, trained, optimizer)
                    found.seconds.append(_timed_step(args, unet, batch, trained, optimizer))
    return measured


def _timed_step(args: argparse.Namespace, *parts: Any) -> float:
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    _synchronise(args.device)
    start = clock()
    step(*parts)
    _synchronise(args.device)
    return clock() - start


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure_peak(args: argparse.Namespace, name: str) -> int:
    """Peak bytes of two steps of one variant, in a process of its own: one process's high-water mark never
    falls."""
    command = [sys.executable, "-m", "benchmarks.step_time", "--peak-of", name, "--size", str(args.size)]
    command += ["--device", args.device, "--dtype", args.dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The memory run of {name!r} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])["peak"]


def _report_peak(args: argparse.Namespace) -> None:
    unet = sd15_shaped_unet(args.device, DTYPES[args.dtype])
    batch = Batch.random(args.size, args.device, DTYPES[args.dtype])
    with VARIANTS[args.peak_of](unet) as trained:
        optimizer = _optimizer(trained)
        for _ in range(2):
            step(unet, batch, trained, optimizer)
    if args.device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"peak": peak}))


# -------------------------------------------------------------------------------------------- report


HEADERS = ("trained", "numbers", "step s", "× floor", "from-to", "peak GB", "× floor", "attach s")


def rows_of(measured: dict[str, Measured]) -> list[tuple[str, ...]]:
    """All variants against the floor, as ratios of medians."""
    floor = measured["floor"]
    rows: list[tuple[str, ...]] = []
    for name, found in measured.items():
        ratios = [a / b for a, b in zip(found.seconds, floor.seconds, strict=True)]
        rows.append(
            (
                name,
                f"{found.numbers:,}",
                f"{statistics.median(found.seconds):.2f}",
                f"{step_ratio(measured, name):.2f}",
                f"{min(ratios):.2f}-{max(ratios):.2f}",
                f"{found.peak / 1e9:.2f}" if found.peak else "",
                f"{found.peak / floor.peak:.3f}" if found.peak else "",
                f"{statistics.median(found.attach_seconds):.2f}",
            )
        )
    return rows


LEGEND = """One picture, forward, backward and AdamW, on a random-weight UNet of Stable Diffusion 1.5's
shape. The floor is the same UNet frozen, with the gradient of its input alone. Times are medians of
interleaved rounds, peaks are those of a process of its own each."""


def write_docs(title: str, rows: Sequence[tuple[str, ...]], size: int) -> None:
    told = f"{written()}."
    text = f"## {title}\n\n{told}\n\n{LEGEND}\n\n{markdown(HEADERS, rows)}"
    write_section(Path("docs/results.md"), f"step time {size}", text)


def step_ratio(measured: dict[str, Measured], name: str) -> float:
    """Median step of a variant over the floor's median step."""
    return statistics.median(measured[name].seconds) / statistics.median(measured["floor"].seconds)


def missed_targets(measured: dict[str, Measured], size: int) -> list[str]:
    """The targets of the default that were missed, in words; the time targets are for 256 pixels."""
    tool, floor = measured[TOOL], measured["floor"]
    missed = []
    ratio = step_ratio(measured, TOOL)
    if size == 256 and ratio > STEP_TARGET:
        missed.append(f"step {ratio:.2f} × floor (target {STEP_TARGET:.2f})")
    if size == 256 and LORA in measured and ratio / step_ratio(measured, LORA) > STEP_TARGET:
        missed.append(f"step {ratio / step_ratio(measured, LORA):.2f} × LoRA (target {STEP_TARGET:.2f})")
    if tool.peak and (ratio := tool.peak / floor.peak) > MEMORY_TARGET:
        missed.append(f"memory {ratio:.2f} × floor (target {MEMORY_TARGET:.2f})")
    if (seconds := statistics.median(tool.attach_seconds)) > ATTACH_TARGET:
        missed.append(f"attaching {seconds:.1f} s (target {ATTACH_TARGET:.0f} s)")
    return missed


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_time", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--size", type=int, default=256, help="pixels a side; a multiple of 64 (default 256)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the UNet (default fp32)")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: fairer on a busy machine"
    )
    parser.add_argument("--no-memory", action="store_true", help="times only")
    parser.add_argument("--docs", action="store_true", help="write the section of docs/results.md")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument(
        "--only", nargs="*", choices=VARIANTS, help="variants beside the floor and the default"
    )
    parser.add_argument("--peak-of", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.size < 64 or args.size % 64 or args.rounds < 1:
        parser.error(
            f"--size must be a multiple of 64 and --rounds at least 1, not {args.size} and {args.rounds}"
        )
    chosen = VARIANTS if args.only is None else ("floor", TOOL, *args.only)
    args.variants = [name for name in VARIANTS if name in chosen]
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if args.peak_of:
        _report_peak(args)
        return 0
    console = Console(width=None if sys.stdout.isatty() else 120)
    peaks = {}
    if not args.no_memory:  # before the times, so that never two UNets are in memory at once
        for name in args.variants:
            with console.status(f"memory: {name}"):
                peaks[name] = measure_peak(args, name)
    measured = measure_times(args, console)
    for name, peak in peaks.items():
        measured[name].peak = peak
    where = (
        torch.cuda.get_device_name()
        if args.device.startswith("cuda")
        else f"{torch.get_num_threads()} threads"
    )
    title, rows = f"One training step, {args.size} px, {args.dtype}", rows_of(measured)
    show(f"{title}, {where}", HEADERS, rows)
    if args.docs:
        write_docs(title, rows, args.size)
    missed = missed_targets(measured, args.size)
    console.print(f"missed: {'; '.join(missed)}" if missed else "all targets met", soft_wrap=True)
    return 1 if args.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
