"""Threads of PyTorch on a CPU that others use too.

An operation is shared by OpenMP threads, which meet at its end. By default they wait spinning: on a busy
machine one spins for its whole share of time while the other, which it waits for, has none. Asleep they
leave the core to it, and with no more threads than there are free cores nobody waits."""

from __future__ import annotations

import os
import time

POLICY = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
"""For GNU's, and Intel's and LLVM's OpenMP."""


def set_policy() -> None:
    """Lets OpenMP threads wait asleep; to be called before PyTorch is imported. What is set already stays."""
    for name, value in POLICY.items():
        os.environ.setdefault(name, value)


class ThreadCount:
    """How many threads suit this process: as many as cores that others leave to it, at least one."""

    def __init__(self) -> None:
        self._since = (time.monotonic(), time.process_time())

    def suitable(self) -> int:
        """By the load of the last minute, less what this process itself computed since the last call."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        now = (time.monotonic(), time.process_time())
        own = (now[1] - self._since[1]) / max(1e-3, now[0] - self._since[0])
        self._since = now
        try:
            others = os.getloadavg()[0] - own
        except (AttributeError, OSError):  # Windows has none
            return cores
        return max(1, min(cores, cores - round(others)))

    def fit(self) -> None:
        """Sets PyTorch's number, unless OMP_NUM_THREADS says how many."""
        import torch

        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(self.suitable())
