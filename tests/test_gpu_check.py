"""The dry run of what waits for a GPU: every check runs, and its figures are what they must be anywhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

from benchmarks.gpu_check.__main__ import NEEDED, main
from benchmarks.gpu_check.checks import CHECKS

ELSEWHERE = ("xformers",)  # needs its package and a GPU
ROOT = Path(__file__).parent.parent

# Runs a check in a process in which the modules after it are not there.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

gone = set(sys.argv[1].split(","))

class Only(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in gone else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Only
from benchmarks.gpu_check.__main__ import main
sys.exit(main(["--toy", "--device", "cpu", "--only", "trainings", "--out", sys.argv[2]]))
"""


@pytest.mark.filterwarnings("ignore:Dynamo detected")
@pytest.mark.parametrize("name", [name for name in CHECKS if name not in ELSEWHERE])
def test_every_check_runs_at_toy_size(name, tmp_path) -> None:
    out = tmp_path / "new" / "gpu.jsonl"
    assert main(["--toy", "--device", "cpu", "--out", str(out), "--only", name]) == 0
    machine, figures = (json.loads(line) for line in out.read_text().splitlines())
    assert machine["toy"] and figures["check"] == name
    assert not [key for key in figures if "error" in key], figures
    assert len(figures) > 4
    for key, value in figures.items():
        if "fp32" in key and name.endswith("correctness"):
            assert value < 1e-4, key
        elif "bf16" in key or "fp16" in key:
            assert value < 0.2, key


def test_what_no_longer_fits_is_left_out(tmp_path) -> None:
    out = tmp_path / "gpu.jsonl"
    assert main(["--toy", "--device", "cpu", "--out", str(out), "--seconds", "0"]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["check"] for line in lines[1:]] == list(CHECKS) and all(
        "left out" in line for line in lines[1:]
    )


def test_what_travels_as_wheels_is_all_that_is_needed_beside_pytorch(tmp_path) -> None:
    def plain(name: str) -> str:
        return re.sub("[-_.]+", "-", name).lower()

    there, look = {plain(name) for name in (*NEEDED, "torch", "atomdiff")}, ["torch"]
    while look:  # what PyTorch itself has brought
        for line in requires(look.pop()) or ():
            name = plain(re.split(r"[^\w.-]", line)[0])
            if "extra ==" not in line and name not in there:
                with_it = name in {plain(one) for ones in packages_distributions().values() for one in ones}
                there.add(name)
                look += [name] * with_it
    gone = [
        module
        for module, names in packages_distributions().items()
        if not {plain(one) for one in names} & there
    ]
    assert {"gradio", "compel", "httpx"} <= set(gone)
    command = [sys.executable, "-c", WITHOUT, ",".join(gone), str(tmp_path / "gpu.jsonl")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_check_is_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "speed"])
    assert "there is no check 'speed'" in capsys.readouterr().err
