"""What training adds to memory: two steps of a method in a process of its own, whose peak never falls."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

from atomdiff.base.stable_diffusion import Base, load_base
from atomdiff.errors import TrainingError
from atomdiff.files.atomic import write_atomically
from atomdiff.training.latents import LatentCache, encode_table
from atomdiff.training.loop import TrainingData

from .catalogue import chosen
from .fitting import train
from .protocol import TRIGGER, Method


def measure(methods: list[Method], device: str, batch: int, path: Path) -> dict[str, float]:
    """Method -> megabytes that training adds, kept in the JSON file `path`; known ones are not measured
    again."""
    known = json.loads(path.read_text()) if path.exists() else {}
    for method in methods:
        key = f"{method.name} {method.recipe} {device} {batch}"
        if method.rate and key not in known:
            known[key] = _measured(method, device, batch)
            write_atomically(path, json.dumps(known, indent=1, ensure_ascii=False).encode())
    return {m.name: known[key] for m in methods if (key := f"{m.name} {m.recipe} {device} {batch}") in known}


def _measured(method: Method, device: str, batch: int) -> float:
    command = [sys.executable, "-m", "benchmarks.method", "--peak-of", method.name]
    command += ["--device", device, "--batch", str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise TrainingError(f"The memory run of {method.name!r} failed: {' '.join(last)}")
    return json.loads(done.stdout.splitlines()[-1])


def report_peak(name: str, device: str, batch: int) -> None:
    """Prints the megabytes that attaching and two steps add, on random pictures."""
    base = load_base("pocket", device=device)
    data = _random_data(base)
    start = _peak(base)
    (method,) = (m for m in chosen([]) if m.name == name)
    train(method.attach(base), data, 2, batch, 0, method.rate, method.course)
    print(json.dumps((_peak(base) - start) / 1e6))


def _random_data(base: Base) -> TrainingData:
    side = int(base.unet.config.sample_size)
    mean = torch.randn(5, 1, 4, side, side, generator=torch.Generator().manual_seed(0))
    table = encode_table(base, [f"a {TRIGGER} dog", "a dog"])
    instance, prior = (LatentCache(mean, torch.zeros_like(mean), (row,) * 5) for row in (0, 1))
    return TrainingData(instance, prior, table)


def _peak(base: Base) -> float:
    """Bytes at most so far."""
    if base.device.type == "cuda":
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)
