"""Threads of PyTorch beside other work."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from atomdiff.base import threads


@pytest.mark.parametrize(
    ("load", "own", "cores", "expected"),
    [
        (0.0, 0.0, 2, 2),
        (2.0, 2.0, 2, 2),
        (2.0, 0.0, 2, 1),
        (12.0, 1.0, 2, 1),
        (3.0, 1.0, 8, 6),
        (1.0, 4.0, 4, 4),
    ],
)
def test_others_keep_their_cores(monkeypatch, load, own, cores, expected):
    clock = {"wall": 0.0, "cpu": 0.0}
    monkeypatch.setattr(threads.time, "monotonic", lambda: clock["wall"])
    monkeypatch.setattr(threads.time, "process_time", lambda: clock["cpu"])
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(threads.os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    count = threads.ThreadCount()
    clock.update(wall=10.0, cpu=10 * own)
    assert count.suitable() == expected


def test_what_is_set_by_hand_stays(monkeypatch):
    for name in threads.POLICY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    threads.set_policy()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    assert os.environ["GOMP_SPINCOUNT"] == "0"


def test_the_commands_wait_asleep_from_the_start():
    code = "import os, sys; from atomdiff import cli; "
    code += "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean, check=True)
    assert done.stdout.split() == ["passive", "False"]
