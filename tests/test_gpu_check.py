"""The dry run of what waits for a GPU: every check runs, and its figures are what they must be anywhere."""

from __future__ import annotations

import json

import pytest

from benchmarks.gpu_check.__main__ import main
from benchmarks.gpu_check.checks import CHECKS

ELSEWHERE = ("xformers",)  # needs its package and a GPU


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


def test_an_unknown_check_is_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "speed"])
    assert "there is no check 'speed'" in capsys.readouterr().err
