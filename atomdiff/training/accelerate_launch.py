"""What `accelerate launch` leaves undone on CPUs, put right by the script that it starts.

- `accelerate launch --cpu --num_processes N` starts one process only, unless MPI is set up. `run_all` starts
  all of them.
- It sets OMP_NUM_THREADS to 1 unless told otherwise, so that training would use one core. `Launch.threads`
  says how many to use instead.

Both are read from the launcher itself, the parent process, since it does not pass them on.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RANKS = (
    "WORLD_SIZE",
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
)  # set where processes are started
NOTICE = 3.0  # seconds in which the others may find out by themselves that one has failed, and say so
GRACE = 30.0  # seconds that they get to end


@dataclass(frozen=True)
class Launch:
    """How this process should go on: as one of `processes`, with `threads` threads (None: as they are)."""

    processes: int = 1
    threads: int | None = None


def detect() -> Launch:
    """Look at the environment and the parent process."""
    import psutil

    try:
        parent = psutil.Process(os.getppid())
        command, environment = parent.cmdline(), parent.environ()
    except (psutil.Error, OSError):  # some systems do not let one look
        return Launch()
    cores = min(psutil.cpu_count(logical=False) or 1, _usable_cores())
    return plan(os.environ, command, environment, cores)


def plan(own: Mapping[str, str], command: Sequence[str], parent: Mapping[str, str], cores: int) -> Launch:
    """The same from what was seen: our environment, the parent's command and environment, the cores."""
    if "ACCELERATE_MIXED_PRECISION" not in own or not any("accelerate" in word for word in command):
        return Launch()
    if any(name in own for name in RANKS) or _number(command, "--num_machines", 1) > 1:
        return Launch()
    processes = 1
    if own.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes"):
        processes = max(1, _number(command, "--num_processes", 1))
    chosen = "OMP_NUM_THREADS" in parent or _number(command, "--num_cpu_threads_per_process", 0)
    return Launch(processes, None if chosen else max(1, cores // processes))


def run_all(launch: Launch, command: Sequence[str]) -> int:
    """Run `command` as every one of the processes; the exit status is that of the first that fails, else 0.

    Ctrl-C reaches all of them through the terminal, SIGTERM is handed on; they end by themselves.
    """
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(launch.processes),
        "LOCAL_WORLD_SIZE": str(launch.processes),
    }
    if launch.threads:
        environment["OMP_NUM_THREADS"] = str(launch.threads)
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(launch.processes)]
    workers = [subprocess.Popen(command, env=environment | rank) for rank in ranks]

    def hand_on(number: int, frame: Any) -> None:
        _signal_all(workers, number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, hand_on)
    status = 0
    told = killed = float("inf")
    while any(worker.poll() is None for worker in workers):
        failed = [code for worker in workers if (code := worker.poll())]
        if failed and not status:
            status, now = failed[0], time.monotonic()
            told, killed = now + NOTICE, now + GRACE
        if time.monotonic() > told:
            _signal_all(workers, signal.SIGTERM)  # they wait for the one that has failed
            told = float("inf")
        if time.monotonic() > killed:
            _signal_all(workers, signal.SIGKILL)
        time.sleep(0.1)
    return status or next((worker.returncode for worker in workers if worker.returncode), 0)


def adds_traceback() -> bool:
    """Whether the parent is `accelerate launch` without -q, which shows a traceback where a script fails."""
    import psutil

    try:
        command = psutil.Process(os.getppid()).cmdline()
    except (psutil.Error, OSError):
        return False
    own = command[: command.index(sys.argv[0])] if sys.argv[0] in command else command
    return any("accelerate" in word for word in own) and "launch" in own and not {"-q", "--quiet"} & set(own)


def this_command() -> list[str]:
    """How this script was called."""
    return [sys.executable, *sys.argv]


def _signal_all(workers: Sequence["subprocess.Popen[bytes]"], number: int) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(number)


def _number(command: Sequence[str], flag: str, default: int) -> int:
    """The last value of `--flag N` or `--flag=N`."""
    value = default
    for word, following in zip(command, [*command[1:], ""], strict=True):
        name, _, given = word.partition("=")
        text = given or following
        if name == flag and text.isdigit():
            value = int(text)
    return value


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
