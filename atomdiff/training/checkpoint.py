"""States to resume from: written whole or not at all, in safetensors and JSON, never pickle.

A state is a folder `checkpoint-STEP` with

    state.safetensors    every tensor (atoms and the optimiser's moments)
    state.json           the step, the run's settings, small numbers, and the SHA-256 of state.safetensors

made under a temporary name, synced to disk and then renamed: a reader sees a complete state or none, whenever
the writer was killed.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomdiff.errors import TrainingError
from atomdiff.files.atomic import sync_folder

if TYPE_CHECKING:
    from torch import Tensor

TENSORS = "state.safetensors"
STATE = "state.json"
FORMAT = "atomdiff-checkpoint/1"
NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """One saved state; `state` is plain JSON data."""

    step: int
    tensors: "dict[str, Tensor]"
    state: dict[str, Any]


def save_checkpoint(parent: Path, checkpoint: Checkpoint, keep: int | None = None) -> Path:
    """Write `parent/checkpoint-STEP` atomically, then remove all but the `keep` newest (None or 0: all).

    Raises TrainingError when the disk is full or the folder cannot be written; older states then stay
    as they are, and this one is kept in the system's temporary folder if that has room.
    """
    from safetensors.torch import save

    final = parent / f"checkpoint-{checkpoint.step}"
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()})
    state = {
        "format": FORMAT,
        "step": checkpoint.step,
        "sha256": hashlib.sha256(data).hexdigest(),
    } | checkpoint.state
    try:
        _clear_parts(parent)
        _put(final, data, state)
    except OSError as error:
        kept = _keep_elsewhere(final.name, data, state)
        remedy = "free some space or choose another --output_dir. States saved before are untouched."
        if kept:
            remedy = (
                f"free some space and go on with --resume_from_checkpoint {kept}, where it is kept instead."
            )
        raise TrainingError(
            f"The state of step {checkpoint.step} could not be written to '{final}': {error.strerror}; "
            f"{remedy}"
        ) from None
    if keep:
        for old in _by_age(parent)[:-keep]:
            _remove(old)
    return final


def find_checkpoint(parent: Path, wanted: str) -> Path | None:
    """The folder that `wanted` means: "latest" (the one saved last, None without any), a name, or a path."""
    _put_back(parent)
    if wanted == "latest":
        saved = _by_age(parent)
        return saved[-1] if saved else None
    for path in (Path(wanted).expanduser(), parent / wanted):
        if (path / STATE).is_file():
            return path
    found = ", ".join(path.name for path in _by_age(parent)) or "none"
    raise TrainingError(
        f"There is no saved state '{wanted}'; '{parent}' holds: {found}. Give one of them or 'latest'."
    )


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a state. Raises TrainingError when a part is missing, damaged, or of another format."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        state = json.loads((path / STATE).read_bytes())
        data = (path / TENSORS).read_bytes()
    except OSError as error:
        raise TrainingError(f"The saved state '{path}' cannot be read: {error.strerror}.") from None
    except ValueError:
        raise TrainingError(
            f"The saved state '{path}' is damaged ({STATE} is not JSON); resume another."
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else state
        raise TrainingError(
            f"The saved state '{path}' is of the format {found!r}, not {FORMAT}; resume another."
        )
    if state.get("sha256") != hashlib.sha256(data).hexdigest():
        raise TrainingError(
            f"The saved state '{path}' is damaged ({TENSORS} was changed or cut); resume another."
        )
    try:
        return Checkpoint(int(state["step"]), load(data), state)
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise TrainingError(f"The saved state '{path}' is damaged; resume another.") from None


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What two runs' settings disagree in, each as `name: saved -> now`."""
    names = sorted(set(saved) | set(now))
    return [
        f"{name}: {saved.get(name, 'not set')} -> {now.get(name, 'not set')}"
        for name in names
        if saved.get(name, "not set") != now.get(name, "not set")
    ]


def _by_age(parent: Path) -> list[Path]:
    """The complete states in `parent`, the one saved last at the end.

    By time and not by number: a run started anew in the same folder counts from 1 again.
    """
    if not parent.is_dir():
        return []
    found = [path for path in parent.iterdir() if NAME.fullmatch(path.name) and (path / STATE).is_file()]
    return sorted(found, key=lambda path: ((path / STATE).stat().st_mtime_ns, int(path.name.split("-")[1])))


def _clear_parts(parent: Path) -> None:
    """Remove what writers left that were killed at work."""
    _put_back(parent)
    if parent.is_dir():
        for path in parent.glob(".checkpoint-*"):
            if path.suffix in (".part", ".old"):
                shutil.rmtree(path, ignore_errors=True)


def _put_back(parent: Path) -> None:
    """Give a state its name again that made way for one which a killed writer never put in its place."""
    for old in parent.glob(".checkpoint-*.old") if parent.is_dir() else ():
        final = old.with_name(old.name[1 : -len(".old")])
        if not final.exists():
            with contextlib.suppress(OSError):  # another process was faster, or nothing can be written here
                old.rename(final)


def _put(final: Path, data: bytes, state: dict[str, Any]) -> None:
    """Write a state to `final` whole or, with an OSError, not at all."""
    part = final.with_name(f".{final.name}.part")
    try:
        part.mkdir(parents=True)
        _write(part / TENSORS, data)
        _write(part / STATE, json.dumps(state, indent=1, allow_nan=False).encode())
        sync_folder(part)
        _replace(part, final)
        sync_folder(final.parent)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _keep_elsewhere(name: str, data: bytes, state: dict[str, Any]) -> Path | None:
    """The state in a new temporary folder, so that no step is lost; None where there is no room either."""
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix="atomdiff-"))
        _put(folder / name, data, state)
    except OSError:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        return None
    return folder / name


def _replace(part: Path, final: Path) -> None:
    """Rename `part` to `final`; a folder that is already there (of an earlier run) makes way first."""
    old = final.with_name(f".{final.name}.old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    try:
        part.rename(final)
    except OSError:
        _put_back(final.parent)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Remove a state so that one killed at it leaves none that looks whole."""
    part = folder.with_name(f".{folder.name}.part")
    with contextlib.suppress(OSError):
        folder.rename(part)
        shutil.rmtree(part, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
