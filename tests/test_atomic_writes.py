"""Whatever interrupts a write (a killed process, a full or failing disk) leaves the old file or the new."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from test_files import concept
from typer.testing import CliRunner

from atomdiff import cli
from atomdiff.errors import AtomdiffError, ConceptError, TrainingError
from atomdiff.files import atomic, card, card_image, qr_image, text
from atomdiff.files.safetensors_file import from_bytes, save_concept, to_bytes, write_data
from atomdiff.sampling import sheets
from atomdiff.training import checkpoint

ROOT = Path(__file__).parent.parent
OLD, NEW = to_bytes(concept(name="old")), to_bytes(concept(name="new"))
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and modes are POSIX's")


class Disk:
    """Counts the calls that change a disk, and makes the one at `at` fail with `code`."""

    def __init__(self, at: int = -1, code: int = errno.ENOSPC) -> None:
        self.at, self.code = at, code
        self.calls: list[str] = []

    def failing(self, name: str, call: Callable) -> Callable:
        def wrapped(*args, **options):
            self.calls.append(name)
            if len(self.calls) - 1 == self.at:
                raise OSError(self.code, os.strerror(self.code), "somewhere")
            return call(*args, **options)

        return wrapped

    def file(self, opened):
        """A file whose writes count."""
        for name in ("write", "flush", "close"):
            setattr(opened, name, self.failing(name, getattr(opened, name)))
        return opened


class Opened:
    """A file object whose methods can be replaced, which those of the io module do not allow."""

    def __init__(self, inner) -> None:
        self.inner = inner
        self.write, self.flush, self.close, self.fileno = (
            inner.write,
            inner.flush,
            inner.close,
            inner.fileno,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc) -> None:
        try:
            self.close()
        finally:
            self.inner.close()


@contextmanager
def disk(monkeypatch: pytest.MonkeyPatch, at: int = -1, code: int = errno.ENOSPC) -> Iterator[Disk]:
    """The disk that every writer sees meanwhile."""
    made = Disk(at, code)
    fdopen, path_open = os.fdopen, Path.open
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", lambda *a, **o: made.file(Opened(fdopen(*a, **o))))
        patch.setattr(os, "fsync", made.failing("fsync", os.fsync))
        patch.setattr(os, "open", made.failing("open", os.open))
        for name in ("replace", "rename", "mkdir", "unlink"):
            patch.setattr(Path, name, made.failing(name, getattr(Path, name)))

        def opened(path, mode="r", *args, **options):
            file = path_open(path, mode, *args, **options)
            return made.file(Opened(file)) if "w" in mode else file

        patch.setattr(Path, "open", opened)
        yield made


# ------------------------------------------------------------------------------------------ writers


def run(*arguments: object) -> None:
    """A command; what it tells the user with status 2 is raised."""
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if done.exit_code == 2 and done.stderr.startswith("error: "):
        raise ConceptError(done.stderr)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output


def save_picture(path: Path, data: bytes) -> None:
    sheets.save_picture(Image.new("RGB", (8, 8)), path, from_bytes(data).name, data)


def carried(path: Path) -> bytes:
    return card.extract(path.read_bytes()) or b""


def of_text(path: Path) -> bytes:
    return text.from_text(path.read_bytes())


def codes(path: Path) -> bytes:
    return qr_image.read([Image.open(path)])


def command(name: str, suffix: str, *flags: object) -> Callable[[Path, bytes], None]:
    """A writer that is a command, run on the concept as it lies beside the output folder under `suffix`."""

    def write(path: Path, data: bytes) -> None:
        source = path.parent.parent / f"{'old' if data == OLD else 'new'}.{suffix}"
        run(name, source, *flags, "--out", path)

    return write


WRITERS: dict[str, tuple[str, Callable[[Path, bytes], object], Callable[[Path], bytes]]] = {
    "save_concept": (
        "x.safetensors",
        lambda path, data: save_concept(from_bytes(data), path),
        Path.read_bytes,
    ),
    "write_data": ("x.safetensors", lambda path, data: write_data(data, path), Path.read_bytes),
    "picture": ("x.png", save_picture, carried),
    "card": ("x.png", command("card", "safetensors"), carried),
    "qr": ("x.png", command("qr", "safetensors", "--scale", 2), codes),
    "export --text": ("x.txt", command("export", "safetensors", "--text"), of_text),
    "import": ("x.safetensors", command("import", "txt"), Path.read_bytes),
    "convert": ("x.safetensors", command("convert", "safetensors"), Path.read_bytes),
    "read": ("x.safetensors", command("read", "png"), Path.read_bytes),
}


def writer(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """(path, write(data), read() -> data) of a writer, with the old file in place."""
    suffix, write, read = WRITERS[name]
    target = folder / "out" / suffix
    folder.mkdir(exist_ok=True)
    for stem, data in (("old", OLD), ("new", NEW)):
        (folder / f"{stem}.safetensors").write_bytes(data)
        (folder / f"{stem}.txt").write_text(text.to_text(data), encoding="utf-8")
        (folder / f"{stem}.png").write_bytes(card.embed(small_png(), data))
    if name == "card":  # drawing takes long and writes nothing
        monkeypatch.setattr(card_image, "make", lambda data, pictures: card.embed(small_png(), data))
    write(target, OLD)
    assert read(target) == OLD
    return target, lambda data: write(target, data), lambda: read(target)


@cache
def small_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("name", WRITERS)
def test_a_failure_of_any_call_leaves_the_old_file_or_the_new(tmp_path, monkeypatch, name):
    path, write, read = writer(name, tmp_path, monkeypatch)
    with disk(monkeypatch) as whole:
        write(NEW)
    assert read() == NEW
    assert {"write", "fsync", "replace", "open"} <= set(whole.calls)
    for at, call in enumerate(whole.calls):
        write(OLD)
        code = (errno.ENOSPC, errno.EIO)[at % 2]
        told = None
        with disk(monkeypatch, at, code):
            try:
                write(NEW)
            except AtomdiffError as error:
                told = str(error)
        assert read() == (OLD if told else NEW), (call, told)
        if told:
            assert "cannot be written" in told and os.strerror(code) in told
        assert list(path.parent.iterdir()) == [path], call


def test_a_state_survives_a_failure_of_any_call(tmp_path, monkeypatch):
    parent = tmp_path / "run"

    def save(value: float) -> None:
        state = checkpoint.Checkpoint(5, {"a": torch.full((40,), value)}, {"value": value})
        checkpoint.save_checkpoint(parent, state)

    def value() -> float:
        found = checkpoint.find_checkpoint(parent, "latest")
        assert found is not None
        loaded = checkpoint.load_checkpoint(found)
        assert (loaded.tensors["a"] == loaded.state["value"]).all()
        return loaded.state["value"]

    monkeypatch.setattr(checkpoint, "_keep_elsewhere", lambda *given: None)
    save(1.0)
    with disk(monkeypatch) as whole:
        save(2.0)
    assert value() == 2.0
    assert whole.calls.count("rename") == 2
    for at, call in enumerate(whole.calls):
        save(1.0)
        told = None
        with disk(monkeypatch, at, errno.EIO):
            try:
                save(2.0)
            except AtomdiffError as error:
                told = str(error)
        assert value() == (1.0 if told else 2.0), (call, told)


# ------------------------------------------------------------------------------------------ real processes

LOOP = """
import itertools, sys
from pathlib import Path
from atomdiff.files.atomic import write_atomically
path, size = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
for i in itertools.count():
    write_atomically(path, bytes([i % 251]) * size)
"""

STATES = """
import hashlib, itertools, sys
from pathlib import Path
from atomdiff.training.checkpoint import _clear_parts, _put
parent = Path(sys.argv[1])
for i in itertools.count():
    data = bytes([i % 251]) * int(sys.argv[2])
    _clear_parts(parent)
    _put(parent / "checkpoint-7", data, {"sha256": hashlib.sha256(data).hexdigest()})
    if i == 0:
        print("ready", flush=True)
"""


def killed(code: str, target: Path, size: int, after: float) -> None:
    """Starts a process that writes over and over, and kills it some time after it began."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(target), str(size)], stdout=subprocess.PIPE, cwd=ROOT
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(after)
        process.send_signal(signal.SIGKILL)


@posix
def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\xff" * 300_000)
    for i in range(10):
        killed(LOOP, path, 300_000, 0.003 + 0.0071 * i)
        data = path.read_bytes()
        assert len(data) == 300_000
        assert data == data[:1] * 300_000
    for left in tmp_path.glob(".*.part"):
        assert left.name.startswith(".x.safetensors.")


@posix
def test_a_killed_writer_of_states_leaves_a_whole_state(tmp_path):
    for i in range(10):
        killed(STATES, tmp_path, 20_000, 0.03 + 0.0053 * i)
        found = checkpoint.find_checkpoint(tmp_path, "latest")
        assert found is not None and found.name == "checkpoint-7"
        state = json.loads((found / checkpoint.STATE).read_bytes())
        data = (found / checkpoint.TENSORS).read_bytes()
        assert hashlib.sha256(data).hexdigest() == state["sha256"]


def test_a_state_that_made_way_is_put_back(tmp_path):
    state = checkpoint.Checkpoint(5, {"a": torch.ones(3)}, {"value": 1})
    saved = checkpoint.save_checkpoint(tmp_path, state)
    saved.rename(tmp_path / ".checkpoint-5.old")  # killed between the two renames
    assert checkpoint.find_checkpoint(tmp_path, "latest") == saved
    assert checkpoint.load_checkpoint(saved).state["value"] == 1


@posix
def test_a_disk_that_is_really_full(tmp_path):
    """The system's own refusal: a process that may write files of 2,000 bytes at most."""
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from atomdiff.files.atomic import write\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "write(Path(sys.argv[1]), bytes(5000), 'The file')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "ConceptError: The file cannot be written to" in done.stderr
    assert "File too large" in done.stderr
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@posix
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_modes_follow_the_umask_whoever_writes(tmp_path, monkeypatch, mask):
    before = os.umask(mask)
    try:
        for name in ("save_concept", "picture", "export --text"):
            path, write, _ = writer(name, tmp_path / name, monkeypatch)
            assert path.stat().st_mode & 0o777 == 0o666 & ~mask
            write(NEW)
            assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    finally:
        os.umask(before)


def test_the_same_sentence_whatever_is_written(tmp_path):
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "x"
    with pytest.raises(ConceptError, match=r"^The card cannot be written to '.*x' \(.*\): choose a folder"):
        atomic.write(inside, b"", "The card")
    with pytest.raises(AtomdiffError, match=r"^The concept cannot be written to"):
        save_concept(concept(), inside.with_suffix(".safetensors"))
    with pytest.raises(AtomdiffError, match=r"^The picture cannot be written to"):
        sheets.save_picture(Image.new("RGB", (8, 8)), inside.with_suffix(".png"))


def test_a_folder_that_cannot_be_used_is_refused_beforehand(tmp_path, monkeypatch):
    atomic.require_writable(tmp_path / "new" / "folder", "--output_dir")
    assert not list((tmp_path / "new" / "folder").iterdir())
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        TrainingError, match=r"file' cannot be written: .*; choose another with --output_dir\."
    ):
        atomic.require_writable(tmp_path / "file", "--output_dir")
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda path: SimpleNamespace(free=3 << 20))
    with pytest.raises(TrainingError, match=r"Only 3 MB are free at .*, 16 are needed; free some space or"):
        atomic.require_writable(tmp_path, "--output_dir")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(TrainingError, match="cannot be written: Permission denied"):
        atomic.require_writable(tmp_path / "locked", "--output_dir")
