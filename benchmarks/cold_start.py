"""How long a process of atomdiff takes to start, beside a Python that does nothing.

    python -m benchmarks.cold_start [--rounds 7] [--check]

CPU time of whole processes, the least of some rounds: of `python -c pass`, `import atomdiff`, and `atomdiff
inspect` of a concept file. None of them may import torch.nn, diffusers or gradio. Where the machine is
slower, so is Python itself; hence the ratio. With --check the exit status is 1 if a target is missed, and
the last line names those.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import report

SECONDS = 0.5
RATIO = SECONDS / 0.03  # of a machine on which Python itself takes 30 ms
HEAVY = ("torch", "torch.nn", "diffusers", "transformers", "gradio", "matplotlib", "PIL")
INSPECT = "import sys; sys.argv = ['atomdiff', 'inspect', {file!r}]; from atomdiff.cli import main; main()"


def cpu_seconds(code: str, rounds: int) -> float:
    """The least CPU time of a Python process that runs `code`. Raises CalledProcessError if it fails."""
    best = float("inf")
    for _ in range(rounds):
        before = _children()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        best = min(best, _children() - before)
    return best


def _children() -> float:
    """CPU seconds of all processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def heavy_modules(code: str) -> list[str]:
    """Which of the heavy modules a process that runs `code` has imported when it ends."""
    tell = (
        "import atexit, json, sys\n"
        f"atexit.register(lambda: print(json.dumps([n for n in {HEAVY!r} if n in sys.modules])))\n"
    )
    done = subprocess.run([sys.executable, "-c", tell + code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def commands(file: Path) -> dict[str, str]:
    """What is measured: a name, and the code of a process."""
    return {
        "python -c pass": "pass",
        "import numpy": "import numpy",
        "import atomdiff": "import atomdiff",
        "atomdiff inspect FILE": INSPECT.format(file=str(file)),
        "import torch": "import torch",
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    options = parser.parse_args()
    from benchmarks.qr import concept_file

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "dog.safetensors"
        file.write_bytes(concept_file(52, 64))
        made = commands(file)
        spent = {name: cpu_seconds(code, options.rounds) for name, code in made.items()}
        heavy = {name: heavy_modules(made[name]) for name in made if "atomdiff" in name}
    nothing = spent["python -c pass"]
    rows = [
        (name, f"{1000 * seconds:.0f} ms", f"{seconds / nothing:.1f}", ", ".join(heavy.get(name, [])) or "")
        for name, seconds in spent.items()
    ]
    headers = ("process", "CPU time", "ratio", "heavy modules")
    report.show(f"Cold start ({report.machine()})", headers, rows)
    targets = []
    for name, modules in heavy.items():
        targets += [
            report.Target(name, spent[name], high=SECONDS, unit="s"),
            report.Target(f"{name}, ratio to python -c pass", spent[name] / nothing, high=RATIO),
            report.Target(f"{name}, heavy modules", len(modules), high=0),
        ]
    report.verdict(targets, options.check)


if __name__ == "__main__":
    main()
