"""Writing a file whole or not at all, and knowing beforehand whether it can be written."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from atomdiff.errors import AtomdiffError, ConceptError, TrainingError

NEEDED_SPACE = 16 << 20  # bytes: states and concepts are far smaller, class pictures about as large


def write_atomically(path: Path, data: bytes) -> None:
    """Puts `data` at `path` so that a reader, a crash or a full disk sees the old file or the new one, never
    a part.

    The folder is made if missing; the file's mode follows the umask, as for any new file. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the reason is told; what is left has a name of its own
            part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write(path: Path, data: bytes, what: str, refusal: type[AtomdiffError] = ConceptError) -> Path:
    """The same, for `what` ("The concept"), with a sentence for what the system refuses: raises `refusal`."""
    try:
        write_atomically(path, data)
    except OSError as error:
        raise refusal(
            f"{what} cannot be written to {str(path)!r} ({error.strerror or error}): choose a folder that "
            "can be written, or free some space."
        ) from error
    return path


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` last through a power cut, where the system can."""
    with contextlib.suppress(OSError):  # some systems cannot open a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def require_writable(folder: Path, flag: str) -> None:
    """Makes `folder`. Raises TrainingError, naming the flag that chooses it, where nothing could be written
    to it later."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise TrainingError(
            f"The folder '{folder}' cannot be written: {error.strerror}; choose another with {flag}."
        ) from None
    if free < NEEDED_SPACE:
        raise TrainingError(
            f"Only {free >> 20} MB are free at '{folder}', {NEEDED_SPACE >> 20} are needed; free some space "
            f"or choose another folder with {flag}."
        )
