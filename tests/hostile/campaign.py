"""The readers that are attacked, and how what comes of it is judged."""

from __future__ import annotations

import contextlib
import gc
import re
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from atomdiff.errors import ConceptError, ImageError
from atomdiff.files import card, qr, text
from atomdiff.files.read_any import read_any
from atomdiff.files.safetensors_file import from_bytes, load_concept

SLOW_MS, LARGE_MB = 50.0, 50.0
PICTURE_MS, PICTURE_MB = 3000.0, 400.0  # of looking for codes in the pixels of one picture
FORBIDDEN = ("pickle.", "marshal.", "exec", "compile", "os.system", "os.exec", "os.posix_spawn", "os.fork",
             "subprocess.", "socket.", "ctypes.dlopen", "webbrowser.", "urllib.")  # fmt: skip

# ------------------------------------------------------------------------------------------ readers


def read_card(data: bytes) -> object:
    """A PNG that carries a concept; None if it carries none."""
    found = card.extract(data)
    return from_bytes(found) if found is not None else None


def read_codes(data: bytes) -> object:
    """QR codes, as (u16 length, bytes) in a row."""
    frames, position = [], 0
    while position + 2 <= len(data):
        (size,) = struct.unpack_from("<H", data, position)
        frames.append(data[position + 2 : position + 2 + size])
        position += 2 + size
    return from_bytes(qr.join([frame for frame in map(qr.parse_frame, frames) if frame]))


def read_text(data: bytes) -> object:
    """A line as it lies in a text file."""
    return from_bytes(text.from_text(data))


def read_path(data: bytes, folder: Path) -> object:
    """A file under the suffix that stands in its first line: whatever loads concepts refuses it."""
    suffix, _, content = data.partition(b"\n")
    path = folder / f"hostile.{suffix.decode()}"
    path.write_bytes(content)
    for read in (load_concept, card.load):
        with contextlib.suppress(ConceptError):
            read(path)
            raise AssertionError(f"{read} takes it for a concept")
    return read_any(path)


def read_picture(data: bytes, folder: Path) -> object:
    """A picture with a concept or codes, as `atomdiff read` takes it."""
    path = folder / "hostile.png"
    path.write_bytes(data)
    return read_any(path).concept


def readers(folder: Path) -> dict[str, Callable[[bytes], object]]:
    """All of them, by name."""
    return {
        "file": from_bytes,
        "card": read_card,
        "codes": read_codes,
        "text": read_text,
        "path": lambda data: read_path(data, folder),
        "picture": lambda data: read_picture(data, folder),
    }


# ------------------------------------------------------------------------------------------ judging


class Watch:
    """An audit hook that notes what a reader must never do; it can be switched off, not taken out."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple) -> None:
        if self.on and event.startswith(FORBIDDEN):
            self.seen.append(f"{event} {str(arguments)[:80]}")


@dataclass
class Tally:
    """What came of the cases of one reader."""

    cases: int = 0
    refused: int = 0
    slowest: float = 0.0  # ms
    largest: float = 0.0  # MB
    sentences: set[str] = field(default_factory=set)


@dataclass
class Campaign:
    """All that was found; `faults` tells of every case that broke a rule."""

    watch: Watch
    tallies: dict[str, Tally] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)

    def judge(self, name: str, reader: str, read: Callable[[bytes], object], data: bytes) -> bool:
        """Runs one case; whether it was refused. Slow ones are timed three times, for others use the
        machine."""
        tally = self.tallies.setdefault(reader, Tally())
        tally.cases += 1
        limit = PICTURE_MS if reader == "picture" else SLOW_MS
        refused, spent = self._once(name, read, data)
        for _ in range(2):
            if spent > limit:
                gc.collect()
                spent = min(spent, self._once(name, read, data)[1])
        if spent > limit:
            self.fault("slow", f"{name}: {spent:.0f} ms")
        tally.slowest = max(tally.slowest, spent)
        tally.refused += refused is not None
        if refused:
            tally.sentences.add(re.sub(r"'.*'|\d+", "…", refused))
        return refused is not None

    def _once(self, name: str, read: Callable[[bytes], object], data: bytes) -> tuple[str | None, float]:
        refused: str | None = None
        self.watch.on = True
        start = time.process_time()
        try:
            read(data)
        except (ConceptError, ImageError) as error:
            refused = str(error)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.fault("crash", f"{name}: {type(error).__name__}: {error} ({where.filename}:{where.lineno})")
        finally:
            spent = 1000 * (time.process_time() - start)
            self.watch.on = False
        if refused is not None and not _one_sentence(refused):
            self.fault("not one sentence", f"{name}: {refused[:300]!r}")
        if self.watch.seen:
            self.fault("run or unpickled", f"{name}: {self.watch.seen}")
            self.watch.seen.clear()
        return refused, spent

    def fault(self, kind: str, what: str) -> None:
        """Notes that a case broke a rule."""
        self.faults.setdefault(kind, []).append(what)
        print(f"{kind}: {what[:400]}", file=sys.stderr)


def _one_sentence(said: str) -> bool:
    """Whether an error is a line that tells what is wrong: of some length, and all of it printable."""
    return 25 <= len(said) <= 600 and said.isprintable() and said.rstrip()[-1] in ".:)"


@contextlib.contextmanager
def memory(found: list[float]) -> Iterator[None]:
    """Appends by how many MB the process grew at most meanwhile; 0 where the kernel does not tell."""
    before = _status("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    yield
    found.append(max(0.0, _status("VmHWM") - before))


def _status(key: str) -> float:
    try:
        found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return int(found[1]) * 1024 / 1e6 if found else 0.0
