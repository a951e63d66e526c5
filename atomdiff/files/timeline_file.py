"""The file of a timeline: a concept file whose families have the states as a first dimension.

docs/format.md says what is in it and why. Everything that a concept file must not hold, this must not hold
either: the newest state is cut out and read as the concept file that it is.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from atomdiff.concept.timeline import Timeline, shared
from atomdiff.errors import ConceptError
from atomdiff.files import atomic, safetensors_file
from atomdiff.files.header import MAX_DATA, Entry, parse_header, read_file
from atomdiff.files.quantization import Part
from atomdiff.files.safetensors_file import assemble, canonical_place

FORMAT = "atomdiff-timeline/1"
OWN = ("steps", "run")  # the metadata that a concept file does not have
LOSS = "loss"
_STEPS = re.compile(r"[1-9]\d{0,8}(,[1-9]\d{0,8})*")
_RUN = re.compile(r"([0-9a-f]{8})?")
_WIDE, _NARROW = np.dtype("<f4"), np.dtype("<f2")


def to_bytes(timeline: Timeline) -> bytes:
    """The file's bytes. Raises ConceptError if they are too many, or a name is taken."""
    clash = next((key for key in OWN if key in timeline.last.extra), None)
    if clash is not None:
        raise ConceptError(f"The extra field {clash!r} is one of the timeline's own: name it otherwise.")
    data = safetensors_file.to_bytes(shared(timeline.last), "fp16")
    metadata, entries, start = parse_header(data)
    metadata |= {"format": FORMAT, "steps": ",".join(map(str, timeline.steps))}
    metadata |= {"run": timeline.run} if timeline.run else {}
    parts = [Part(LOSS, "F32", (len(timeline.steps),), timeline.losses.numpy().astype(_WIDE).tobytes())]
    for entry in entries:
        if entry.name in timeline.atoms:
            states = timeline.atoms[entry.name]
            parts.append(
                Part(entry.name, "F16", tuple(states.shape), states.numpy().astype(_NARROW).tobytes())
            )
        else:
            parts.append(Part(entry.name, "F16", entry.shape, data[start + entry.start : start + entry.end]))
    size = sum(len(part.data) for part in parts)
    if size > MAX_DATA:
        raise ConceptError(
            f"The timeline has {size / 2**20:.0f} MiB, and a file holds {MAX_DATA >> 20}: keep fewer steps."
        )
    return assemble(metadata, parts)


def from_bytes(data: bytes) -> Timeline:
    """Inverse of `to_bytes`. Raises ConceptError on anything that is not a sound timeline."""
    metadata, entries, start = parse_header(data, "timeline")
    return _timeline(metadata, entries, memoryview(data)[start:])


def save_timeline(timeline: Timeline, path: str | Path) -> Path:
    """Writes the timeline, whole or not at all; equal ones give equal bytes. Raises ConceptError."""
    return atomic.write(Path(path), to_bytes(timeline), "The timeline")


def load_timeline(path: str | Path) -> Timeline:
    """Reads a timeline. Raises ConceptError if it is missing, broken, foreign or hostile."""
    return read_file(Path(path), _timeline, "timeline")


def _timeline(metadata: dict[str, str], entries: list[Entry], data: memoryview) -> Timeline:
    steps, run = metadata.get("steps", ""), metadata.get("run", "")
    if not _STEPS.fullmatch(steps) or not _RUN.fullmatch(run):
        raise ConceptError(f"The timeline's steps cannot be read: {steps[:60]!r}; get it again.")
    if entries != sorted(entries, key=lambda entry: canonical_place(entry.dtype, entry.name)):
        raise ConceptError("The file's tensors are not in canonical order: it was altered.")
    count = steps.count(",") + 1
    by_name = {entry.name: entry for entry in entries}
    if LOSS not in by_name or by_name[LOSS].dtype != "F32" or by_name[LOSS].shape != (count,):
        raise ConceptError(f"The timeline does not hold a loss for each of its {count} states: get it again.")
    losses = np.frombuffer(_raw(by_name.pop(LOSS), data), _WIDE).astype(np.float32)
    atoms, parts = {}, []
    for entry in by_name.values():
        basis = entry.name.startswith("basis")
        if entry.dtype != "F16" or (not basis and (len(entry.shape) != 4 or entry.shape[0] != count)):
            raise ConceptError(
                f"The tensor {entry.name[:60]!r} of type {entry.dtype} and shape {list(entry.shape)} is not "
                f"one of a timeline of {count} states: get it again."
            )
        raw = _raw(entry, data)
        if basis:
            parts.append(Part(entry.name, "F16", entry.shape, raw))
        else:
            parts.append(Part(entry.name, "F16", entry.shape[1:], raw[-len(raw) // count :]))
            states = np.frombuffer(raw, _NARROW).reshape(entry.shape).astype(np.float16)
            atoms[entry.name] = torch.from_numpy(states)
    texts = {key: text for key, text in metadata.items() if key not in OWN} | {
        "format": safetensors_file.FORMAT
    }
    last = safetensors_file.from_bytes(assemble(texts, parts))
    return Timeline(last, tuple(map(int, steps.split(","))), torch.from_numpy(losses), atoms, run)


def _raw(entry: Entry, data: memoryview) -> bytes:
    return bytes(data[entry.start : entry.end])
