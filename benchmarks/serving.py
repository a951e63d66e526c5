"""The real studio, or the real service, in a process of its own, for benchmarks and tests that meet it from
outside."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PATIENCE = 300  # seconds until it is open


STUDIO = ("app.py",)
SERVICE = ("-c", "from atomdiff.cli import main; main()", "serve")


@dataclass(frozen=True)
class Served:
    """What runs: where it is, its process, and what it wrote to its terminal."""

    port: int
    process: subprocess.Popen
    log: Path

    @property
    def url(self) -> str:
        """Its address, with a slash at the end."""
        return f"http://127.0.0.1:{self.port}/"


@contextmanager
def served(folder: Path, *flags: str, command: Sequence[str] = STUDIO) -> Iterator[Served]:
    """A studio, or with `SERVICE` the service, which keeps its own in `folder`/out and has its library in
    `folder`/concepts, until the block ends.

    Raises RuntimeError if it does not open.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = ["--port", str(port), "--out", str(folder / "out"), "--concepts", str(folder / "concepts")]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    with log.open("w") as terminal:
        process = subprocess.Popen(
            [sys.executable, *command, *own, *flags],
            cwd=ROOT,
            stdout=terminal,
            stderr=terminal,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
        )
        try:
            _wait(process, log)
            yield Served(port, process, log)
        finally:
            process.kill()  # at once: nobody needs what it would put in order
            process.wait()


def _wait(process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while "Ctrl-C ends it" not in log.read_text():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"It did not open:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)
