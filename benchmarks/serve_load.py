"""Many users of the service at once: is all drawn, how long do they wait, and what does batching gain?

    python -m benchmarks.serve_load [--users 20] [--minutes 5] [--steps 8] [--concepts 12] [--docs] [--check]

A real service on the pocket model in a process of its own. First one user draws alone; then locust's users
draw, each with one of the concepts or none, and every answer must be the picture that was asked for. Pictures
that the service counted and users did not get are lost. One at a time is the user alone. What the service
itself costs is told beside: such batches drawn by `atomdiff.draw`, without any service, on as many threads.
All is also told by seconds of the processor, which others at work on the machine change less. With --check
the exit status is 1 if a target is missed, and the last line names those.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks import report
from benchmarks.serving import SERVICE, Served, served

TOKEN = "a-token-of-the-benchmark"
ALONE = 8  # pictures, of which the first does not count
ROUNDS = 3  # batches without a service, beside one that does not count


@dataclass(frozen=True)
class Load:
    """What was seen: seconds a picture alone and in batches without a service, each of the clock and the
    processor; under load the p95 and median of the waits, pictures, failures, 5xx, lost ones, and seconds of
    clock and processor of it all."""

    alone: float
    alone_processor: float
    bare: float
    bare_processor: float
    median: float
    p95: float
    pictures: int
    failed: int
    broken: int
    lost: int
    seconds: float
    processor: float
    batch: float

    @property
    def gain(self) -> float:
        """Pictures a second, of one at a time."""
        return self.pictures / self.seconds * self.alone

    @property
    def gain_processor(self) -> float:
        """Pictures a second of the processor, of one at a time."""
        return self.pictures / self.processor * self.alone_processor

    @property
    def kept(self) -> tuple[float, float]:
        """Pictures a second, of the clock and of the processor, of what the same batches give without a
        service."""
        return self.bare / self.seconds * self.pictures, self.bare_processor / self.processor * self.pictures


def made(count: int) -> tuple[Any, list[Any]]:
    """The base, and random concepts c0, c1, ... with words."""
    from dataclasses import replace

    import atomdiff
    from atomdiff.base.textual_inversion import TriggerToken
    from benchmarks.mixed_batch import random_concepts

    base = atomdiff.load_base("pocket")
    word = {name: tuple(vector.shape) for name, vector in TriggerToken(base, "sks").read().items()}
    named = enumerate(random_concepts(base, count, word=word))
    return base, [replace(one, name=f"c{i}") for i, one in named]


def concepts(service: httpx.Client, every: Sequence[Any]) -> None:
    """Puts concepts into the library."""
    from atomdiff.files.safetensors_file import to_bytes

    for one in every:
        service.post("/concepts", files={"file": ("c", to_bytes(one, "int8"))}).raise_for_status()


def bare(base: Any, every: Sequence[Any], batch: int, steps: int) -> tuple[float, float]:
    """Median seconds of a picture of mixed batches without a service, of the clock and of the processor."""
    from atomdiff import draw

    own = [[(every[i % len(every)], 0.8)] if i % (len(every) + 1) else [] for i in range(batch)]
    prompts, process, taken = [f"a sks dog {i}" for i in range(batch)], psutil.Process(), []
    for seed in range(1 + ROUNDS):
        began, worked = time.monotonic(), _processor(process)
        draw(base, prompts, concepts=own, steps=steps, seed=seed, batch_size=batch)
        taken.append((time.monotonic() - began, _processor(process) - worked))
    clock, processor = zip(*taken[1:], strict=True)
    return statistics.median(clock) / batch, statistics.median(processor) / batch


def alone(service: httpx.Client, process: psutil.Process, steps: int) -> tuple[float, float]:
    """Median seconds of a picture with a concept, of the clock and of the processor, nobody else there."""
    taken = []
    for i in range(ALONE):
        began, worked = time.monotonic(), _processor(process)
        body = {"prompt": f"a sks dog <atom:c{i % 2}>", "seed": i, "steps": steps}
        service.post("/sdapi/v1/txt2img", json=body).raise_for_status()
        taken.append((time.monotonic() - began, _processor(process) - worked))
    clock, processor = zip(*taken[1:], strict=True)
    return statistics.median(clock), statistics.fmean(processor)


def loaded(
    service: httpx.Client,
    running: Served,
    options: argparse.Namespace,
    folder: Path,
    without: tuple[float, float],
) -> Load:
    """Everything, on a service that has its concepts; `without` is what a picture takes without it."""
    process = psutil.Process(running.process.pid)
    lone = alone(service, process, options.steps)
    before, began, worked = _counted(service), time.monotonic(), _processor(process)
    out = folder / "locust"
    users, length = str(options.users), f"{round(60 * options.minutes)}s"
    flags = ["--headless", "-u", users, "-r", users, "-t", length, "-H", running.url.rstrip("/")]
    flags += ["--only-summary", "--stop-timeout", "600", "--json-file", str(out), "--exit-code-on-error", "0"]
    told = {"CONCEPTS": str(options.concepts), "STEPS": str(options.steps), "ATOMDIFF_TOKEN": TOKEN}
    users_of = [sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("serve_users.py"))]
    done = subprocess.run([*users_of, *flags], capture_output=True, text=True, env=os.environ | told)
    if not out.with_suffix(".json").exists() or " 0(0.00%)" not in done.stdout:
        print(done.stdout[-3000:], done.stderr[-1000:])  # what failed, and how
    seconds, worked, after = time.monotonic() - began, _processor(process) - worked, _counted(service)
    seen = json.loads(out.with_suffix(".json").read_text())[0]
    waits = sorted(float(ms) for ms, count in seen["response_times"].items() for _ in range(count))
    good = seen["num_requests"] - seen["num_failures"]
    drawn, batches, broken = (after[name] - before[name] for name in ("pictures", "batches", "broken"))
    p95 = waits[int(0.95 * (len(waits) - 1))]
    return Load(
        *lone, *without, statistics.median(waits) / 1000, p95 / 1000, good, seen["num_failures"], broken,
        drawn - good, seconds, worked, drawn / max(1, batches),
    )  # fmt: skip


def _processor(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _counted(service: httpx.Client) -> dict[str, int]:
    """Pictures, batches and answers of 5xx that the service counted."""
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(service.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples]

    def total(name: str, status: str = "") -> int:
        return int(
            sum(s.value for s in samples if s.name == name and s.labels.get("status", "").startswith(status))
        )

    return {
        "pictures": total("atomdiff_pictures_total"),
        "batches": total("atomdiff_batch_pictures_count"),
        "broken": total("atomdiff_requests_total", "5"),
    }


def targets_of(load: Load, users: int, batch: int) -> list[report.Target]:
    """The issue's: waits in proportion to the queue, and a gain of drawing together."""
    return [
        report.Target("answers of 5xx", load.broken, high=0),
        report.Target("requests failed", load.failed, high=0),
        report.Target("pictures lost", abs(load.lost), high=0),
        report.Target("p95 / (alone × users / batch)", load.p95 / (load.alone * users / batch), high=3),
        report.Target("pictures a second, of one at a time", load.gain, low=2.5),
    ]


def main() -> None:
    """The command."""
    parser = report.command("serve_load", __doc__, docs="docs/scale.md")
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--concepts", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8, help="pictures drawn together")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    if options.users < 1 or options.minutes <= 0:
        parser.error("--users is at least 1 and --minutes more than 0.")
    os.environ["ATOMDIFF_TOKEN"] = TOKEN
    flags = ["--batch", str(options.batch), "--device", options.device]
    flags += ["--max-waiting", str(10 * options.users)]
    with (
        tempfile.TemporaryDirectory() as name,
        served(Path(name), *flags, command=SERVICE) as running,
        httpx.Client(
            base_url=running.url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=600
        ) as service,
    ):
        base, every = made(options.concepts)
        concepts(service, every)
        load = loaded(service, running, options, Path(name), bare(base, every, options.batch, options.steps))
    tell(load, options)


def tell(load: Load, options: argparse.Namespace) -> None:
    """The table, and the verdict."""
    headers = ("", "clock", "processor")
    rows = [
        ("a picture alone, s", f"{load.alone:.2f}", f"{load.alone_processor:.2f}"),
        (
            "a picture under load, s",
            *(f"{s / max(1, load.pictures):.2f}" for s in (load.seconds, load.processor)),
        ),
        ("pictures a second, of one at a time", f"{load.gain:.2f}", f"{load.gain_processor:.2f}"),
        ("a picture of such batches without a service, s", f"{load.bare:.2f}", f"{load.bare_processor:.2f}"),
        ("pictures a second, of these", *(f"{share:.2f}" for share in load.kept)),
        ("wait, median and p95, s", f"{load.median:.1f}, {load.p95:.1f}", ""),
        ("pictures, failed, lost, 5xx", f"{load.pictures}, {load.failed}, {load.lost}, {load.broken}", ""),
        ("pictures a batch", f"{load.batch:.1f}", ""),
    ]
    title = f"{options.users} users, {options.minutes:g} minutes, {options.steps} steps"
    targets = targets_of(load, options.users, options.batch)
    report.conclude(options, title, (headers, rows), targets, "serve load")


if __name__ == "__main__":
    main()
