"""Drawing beside other work: how much slower does it get, and is that in proportion?

    python -m benchmarks.busy_machine [--others 2] [--steps 6] [--rounds 3] [--check]

Draws on the pocket model in a process of its own, alone and beside `--others` processes that compute on
every core, with the threads as PyTorch sets them and as `atomdiff.base.threads` does. With fair shares of
`cores` cores, drawing with t threads beside n single-threaded processes takes at least max(1, (n + t) /
cores) times as long: the figure is the time over that. Two threads that wait for each other while spinning
take far more. With --check the exit status is 1 if ours takes more than 2 times the fair share."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks import report

DRAW = """
import os, sys, time
if sys.argv[1] == "ours":
    from atomdiff.base import threads
    threads.set_policy()
    count = threads.ThreadCount()
import torch
import atomdiff
base = atomdiff.load_base("pocket")
atomdiff.draw(base, "a dog", count=4, steps=1)
times = []
for _ in range(int(sys.argv[3])):
    if sys.argv[1] == "ours":
        count.fit()
    start = time.perf_counter()
    atomdiff.draw(base, "a dog", count=4, steps=int(sys.argv[2]))
    times.append(time.perf_counter() - start)
print(min(times), sorted(times)[len(times) // 2], torch.get_num_threads())
"""
SPIN = "while True: sum(range(10000))"


def drawn(way: str, steps: int, rounds: int) -> tuple[float, float, int]:
    """(shortest, median) seconds of a drawing and its threads, in a new process."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", DRAW, way, str(steps), str(rounds)],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    best, median, threads = done.stdout.split()
    return float(best), float(median), int(threads)


def beside(others: int, way: str, steps: int, rounds: int) -> tuple[float, float, int]:
    """The same while `others` processes compute."""
    busy = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(others)]
    try:
        return drawn(way, steps, rounds)
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> None:
    """The command."""
    parser = report.command("busy_machine", __doc__)
    parser.add_argument("--others", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rows, ratios = [], {}
    for way in ("plain", "ours"):
        alone = drawn(way, options.steps, options.rounds)
        busy = beside(options.others, way, options.steps, options.rounds)
        fair = max(1.0, (options.others + busy[2]) / cores)
        ratios[way] = busy[1] / alone[0] / fair
        cells = (f"{alone[0]:.2f} s", f"{busy[1]:.2f} s", str(busy[2]), f"{ratios[way]:.2f}")
        rows.append((way, *cells))
    title = f"4 pocket pictures of {options.steps} steps beside {options.others}"
    headers = ("threads", "alone", "beside", "its threads", "over the fair share")
    target = report.Target("time over the fair share, ours", ratios["ours"], high=2)
    report.conclude(options, title, (headers, rows), [target])


if __name__ == "__main__":
    main()
