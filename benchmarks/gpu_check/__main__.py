"""Everything that waits for a GPU, most important first, each result written as soon as it is there.

    python -m benchmarks.gpu_check [--out gpu.jsonl] [--seconds 450] [--only CHECK ...] [--device cuda]
    python -m benchmarks.gpu_check --wheels FOLDER       # what a machine with PyTorch alone needs, beforehand

Correctness of fp16, bf16 and tf32 in training and drawing; mixed batches, swaps and pictures a second; time
and memory of a training step at 512² (SD 1.5's shape) and 1024² (SDXL's) of atoms, Dc, recursive atoms and
LoRA, with checkpointing, xformers and `torch.compile`; four trainings in one batch. Weights are random.
Meant for one H100 in under 8 minutes; what does not fit into --seconds is left out. --toy is the dry run, on
any machine.
On a machine without network: pip install --no-index --no-deps --target site FOLDER/*.whl, and run with
PYTHONPATH=site:.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ..report import command

MOST = 60e6  # bytes of wheels
NEEDED = (
    "accelerate", "diffusers", "huggingface_hub", "numpy", "peft", "pillow", "regex", "rich", "safetensors",
    "tokenizers", "transformers", "typer", "anyio", "certifi", "filelock", "fsspec", "h11", "httpcore2",
    "httpx2", "idna", "importlib-metadata", "markdown-it-py", "mdurl", "packaging", "psutil", "pygments",
    "pyyaml", "requests", "charset-normalizer", "urllib3", "shellingham", "tqdm", "truststore",
    "typing-extensions", "zipp", "click", "xformers",
)  # fmt: skip
MANYLINUX = ("_2_28", "_2_27", "_2_17", "2014")


def wheels(folder: Path) -> None:
    """Downloads what is needed beside PyTorch, as tested (requirements.txt). Exits 1 if it is too much."""
    text = Path("requirements.txt").read_text("utf-8")
    pins = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", text, re.MULTILINE))
    wanted = [f"{name}=={pins[name]}" if name in pins else name for name in NEEDED]
    options = ["download", "-q", "--no-deps", "--only-binary=:all:", "--python-version", "3.12"]
    options += ["--implementation", "cp", "-d", str(folder)]
    options += [f"--platform=manylinux{version}_x86_64" for version in MANYLINUX]
    subprocess.run([sys.executable, "-m", "pip", *options, *wanted], check=True)
    size = sum(file.stat().st_size for file in folder.glob("*.whl"))
    print(f"{size / 1e6:.1f} MB in {folder}")
    if size > MOST:
        sys.exit(f"That is more than {MOST / 1e6:.0f} MB.")


def run(setup: Any, checks: dict[str, Any], out: Path, seconds: float) -> list[dict[str, Any]]:
    """Every check in turn, a line of `out` each; one that fails or no longer fits says so in its line."""
    import torch

    end, done = time.monotonic() + seconds, []
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:

        def write(line: dict[str, Any]) -> None:
            done.append(line)
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(json.dumps(line, indent=1), flush=True)

        device = torch.cuda.get_device_name() if setup.clock.cuda else platform.machine()
        write({"check": "machine", "device": device, "torch": torch.__version__, "toy": setup.toy})
        for name, check in checks.items():
            start = time.monotonic()
            if start >= end:
                write({"check": name, "left out": f"the {seconds:.0f} seconds are over"})
                continue
            try:
                found: dict[str, Any] = check(setup)
            except Exception as error:
                found = {"error": f"{type(error).__name__}: {error}"[:500]}
            setup.fresh()
            write({"check": name, "seconds": round(time.monotonic() - start, 1), **found})
    return done


def main(arguments: list[str] | None = None) -> int:
    parser = command("gpu_check", __doc__, check=False)
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_check.jsonl"))
    parser.add_argument("--seconds", type=float, default=450.0, help="no check is begun after so many")
    parser.add_argument("--only", nargs="*", help="these checks")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="the dry run: tiny UNets, two rounds")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="only download what is needed")
    a = parser.parse_args(arguments)
    if a.wheels:
        wheels(a.wheels)
        return 0
    from .checks import CHECKS, Setup

    unknown = set(a.only or ()) - CHECKS.keys()
    if unknown:
        parser.error(f"there is no check {min(unknown)!r}: choose from {', '.join(CHECKS)}")
    checks = {name: check for name, check in CHECKS.items() if not a.only or name in a.only}
    done = run(Setup(a.device, a.toy, 1 if a.toy else 5), checks, a.out, a.seconds)
    return int(any("error" in line for line in done))


if __name__ == "__main__":
    sys.exit(main())
