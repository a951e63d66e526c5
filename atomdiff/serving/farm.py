"""Trainings of thousands of subjects over a cluster: each is a task of Ray's, which places it, and does it
again where a process or a machine is lost.

Every result is in the library and in OUT/results.jsonl before the next is looked at: a farm that is stopped
goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomdiff.errors import SettingsError
from atomdiff.serving import remote_training
from atomdiff.serving.remote_training import Outcome, Report, pictures_of, told
from atomdiff.training.settings import TrainingSettings

if TYPE_CHECKING:
    from atomdiff.library import Library

AHEAD = 2  # trainings that are handed to Ray for each that can run at a time
MAX_PICTURES = 256 << 20  # bytes of a subject's pictures
RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Subject:
    """A training to be done; `key` is of its settings and pictures."""

    key: str
    settings: TrainingSettings

    @staticmethod
    def of(settings: TrainingSettings) -> Subject:
        """Raises SettingsError for pictures that are too many to be sent."""
        whole = hashlib.sha256(json.dumps(told(settings), sort_keys=True).encode())
        size = 0
        for name, data in pictures_of(settings):
            size += len(data)
            whole.update(f"{name}:{len(data)}:".encode() + data)
        if size > MAX_PICTURES:
            raise SettingsError(
                f"The pictures of '{settings.name}' have {size >> 20} MiB, and {MAX_PICTURES >> 20} are "
                "sent: make them smaller."
            )
        return Subject(whole.hexdigest()[:32], settings)


@dataclass(frozen=True)
class Progress:
    """A farm at one moment: subjects that are done, of how many, and those before this start; how many are
    trained at a time. Then a line about the `last`, or reports of those at work by name, or at the start
    neither; and seconds until all are done, None before the first is."""

    done: int
    total: int
    before: int
    slots: int
    last: str = ""
    at_work: Mapping[str, Report] | None = None
    seconds_left: float | None = None


def farm(
    subjects: Sequence[Subject],
    out: Path,
    library: Library,
    progress: Callable[[Progress], None] = lambda now: None,
    cpus: float = 1,
    gpus: float = 0,
    tower: str = "",
    every: float = 20,
) -> dict[str, dict[str, Any]]:
    """Trains what is not in OUT/results.jsonl yet, on the cluster that Ray is connected to; returns the lines
    of that file by key.

    A training takes so many `cpus` and `gpus`. `progress` is told at the start, whenever a subject is done,
    and after so many seconds (`every`) in which none was. `tower` is a folder of DINO or CLIP on every
    machine, by which likeness is judged; only the pocket has a judge of its own.
    """
    import ray

    out.mkdir(parents=True, exist_ok=True)
    known = results(out)
    left = deque(subject for subject in subjects if "concept" not in known.get(subject.key, {}))
    task, board = remote_training.task(cpus, gpus), remote_training.make_board()
    under_way: dict[Any, Subject] = {}
    total, before, began = len(subjects), len(subjects) - len(left), time.monotonic()
    now = Progress(before, total, before, _slots(cpus, gpus))
    progress(now)
    while left or under_way:
        while left and len(under_way) < AHEAD * _slots(cpus, gpus):
            subject = left.popleft()
            what = told(subject.settings), dict(pictures_of(subject.settings))
            under_way[task.remote(*what, subject.key, board, True, tower)] = subject
        last, at_work = "", {}
        if ready := ray.wait(list(under_way), timeout=every)[0]:
            subject = under_way.pop(ready[0])
            known[subject.key] = _kept(subject, remote_training.outcome_of(ready[0]), out, library)
            last = _line(known[subject.key])
        else:
            names = {one.key: one.settings.name for one in under_way.values()}
            at_work = {names[key]: one for key, one in remote_training.said(board, list(names)).items()}
        done = total - len(left) - len(under_way)
        each = (time.monotonic() - began) / (done - before) if done > before else None
        now = replace(now, done=done, last=last, at_work=at_work, seconds_left=each and each * (total - done))
        progress(now)
    return known


def results(out: Path) -> dict[str, dict[str, Any]]:
    """The lines of OUT/results.jsonl by key, the last of each; a line that was cut is none."""
    found: dict[str, dict[str, Any]] = {}
    try:
        text = (out / RESULTS).read_text("utf-8")
    except FileNotFoundError:
        return {}
    for line in text.splitlines():
        try:
            one = json.loads(line)
            found[one["key"]] = one
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _kept(subject: Subject, outcome: Outcome, out: Path, library: Library) -> dict[str, Any]:
    """Puts a result where it stays; its line in the file of results."""
    line: dict[str, Any] = {"key": subject.key, "name": subject.settings.name}
    if outcome.error:
        line["error"] = outcome.error
    else:
        entry = library.add(outcome.data)
        library.set_thumbnail(entry.id, outcome.picture)
        if outcome.likeness is not None:
            library.tag(entry.id, f"likeness {outcome.likeness:.2f}")
        line |= {"concept": entry.id, "bytes": len(outcome.data), "likeness": outcome.likeness}
        line |= {"seconds": round(outcome.seconds, 1), "node": outcome.node}
        line |= {"notes": list(outcome.notes)} if outcome.notes else {}
    with (out / RESULTS).open("a+b") as file:
        if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read() != b"\n":
            file.write(b"\n")  # the last line was cut: it is none
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return line


def _line(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"{result['name']}: {result['error']}"
    likeness = result["likeness"]
    told = "" if likeness is None else f", likeness {likeness:.2f}"
    return f"{result['name']}: {result['bytes']:,} bytes{told}"


def _slots(cpus: float, gpus: float) -> int:
    """How many trainings can run at a time, on the cluster as it is now."""
    import ray

    there = ray.cluster_resources()
    ways = [there.get(kind, 0) / each for kind, each in (("CPU", cpus), ("GPU", gpus)) if each]
    return max(1, int(min(ways, default=1)))
