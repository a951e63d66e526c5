"""Threads of PyTorch on a CPU that others use too.

An operation is shared by OpenMP threads, which meet at its end. By default they wait spinning: on a busy
machine one spins for its whole share of time while the other, which it waits for, has none. Asleep they
leave the core to it, and with no more threads than there are free cores nobody waits."""

from __future__ import annotations

import os

POLICY = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
"""For GNU's, and Intel's and LLVM's OpenMP."""


def set_policy() -> None:
    """Lets OpenMP threads wait asleep; to be called before PyTorch is imported. What is set already stays."""
    for name, value in POLICY.items():
        os.environ.setdefault(name, value)


def free_cores() -> int:
    """How many cores others leave to this process, at least one: those it may run on, less the load of the
    last minute that is not its own thread."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none
        return own
    return max(1, own - round(max(0.0, load - 1)))


def fit_to_load() -> None:
    """Gives PyTorch as many threads as there are free cores, unless OMP_NUM_THREADS says how many."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(free_cores())
