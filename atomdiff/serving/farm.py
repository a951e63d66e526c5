"""Trainings of thousands of subjects over a cluster: each is a task of Ray's, which places it, and does it
again where a process or a machine is lost.

What a task needs travels with it (settings and pictures), and what it leaves comes back (a concept of a few
KB, its likeness), so that machines share no disk. Every result is in the library and in OUT/results.jsonl
before the next is looked at: a farm that is stopped goes on where it was."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomdiff.errors import AtomdiffError, Interrupted, SettingsError, sentence_of
from atomdiff.files.atomic import write_atomically
from atomdiff.training.settings import TrainingSettings

if TYPE_CHECKING:
    from PIL.Image import Image

    from atomdiff.base.stable_diffusion import Base
    from atomdiff.library import Library

RETRIES = 5  # of a training whose process or machine was lost
AHEAD = 2  # trainings that are handed to Ray for each that can run at a time
MAX_PICTURES = 256 << 20  # bytes of a subject's pictures
EACH = 2  # pictures of each context that the likeness is judged on
RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Subject:
    """A training to be done; `key` is of its settings and pictures."""

    key: str
    settings: TrainingSettings

    @staticmethod
    def of(settings: TrainingSettings) -> Subject:
        """Raises SettingsError for pictures that are too many to be sent."""
        whole = hashlib.sha256(json.dumps(_told(settings), sort_keys=True).encode())
        size = 0
        for name, data in _pictures(settings):
            size += len(data)
            whole.update(f"{name}:{len(data)}:".encode() + data)
        if size > MAX_PICTURES:
            raise SettingsError(
                f"The pictures of '{settings.name}' have {size >> 20} MiB, and {MAX_PICTURES >> 20} are "
                "sent: make them smaller."
            )
        return Subject(whole.hexdigest()[:32], settings)


@dataclass(frozen=True)
class Outcome:
    """What came of a training: the bytes of a concept and of a picture, or a sentence."""

    data: bytes = b""
    likeness: float | None = None
    picture: bytes = b""
    seconds: float = 0
    node: str = ""
    error: str = ""


def farm(
    subjects: Sequence[Subject],
    out: Path,
    library: Library,
    progress: Callable[[int, int, str], None] = lambda done, total, last: None,
    cpus: float = 1,
    gpus: float = 0,
    tower: str = "",
) -> dict[str, dict[str, Any]]:
    """Trains what is not in OUT/results.jsonl yet, on the cluster that Ray is connected to; returns the lines
    of that file by key.

    A training takes so many `cpus` and `gpus`. `progress` is told of the subjects that are done, of how many,
    and a line about the last. `tower` is a folder of DINO or CLIP on every machine, by which likeness is
    judged; only the pocket has a judge of its own.
    """
    import ray
    from ray.exceptions import RayError

    out.mkdir(parents=True, exist_ok=True)
    known = results(out)
    left = [subject for subject in subjects if "concept" not in known.get(subject.key, {})]
    task = ray.remote(train_one).options(
        num_cpus=cpus,
        num_gpus=gpus,
        max_retries=RETRIES,
        retry_exceptions=[Interrupted, OSError, MemoryError],
    )
    under_way: dict[Any, Subject] = {}
    total, done = len(subjects), len(subjects) - len(left)
    while left or under_way:
        while left and len(under_way) < AHEAD * _slots(ray.cluster_resources(), cpus, gpus):
            subject = left.pop(0)
            sent = task.remote(_told(subject.settings), dict(_pictures(subject.settings)), subject.key, tower)
            under_way[sent] = subject
        for ready in ray.wait(list(under_way), timeout=10)[0]:
            subject = under_way.pop(ready)
            try:
                outcome = ray.get(ready)
            except RayError as error:
                outcome = Outcome(error=f"Ray lost it {RETRIES} times: {' '.join(str(error).split())[:200]}")
            known[subject.key] = _kept(subject, outcome, out, library)
            done += 1
            progress(done, total, _line(known[subject.key]))
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


def train_one(told: dict[str, Any], pictures: dict[str, bytes], key: str, tower: str) -> Outcome:
    """One training, on a machine of the cluster. What was lost here before goes on from its saved state.

    Raises Interrupted, OSError or MemoryError for what another machine may have better luck with."""
    from atomdiff.training.run import concept_path, fit

    began = time.monotonic()
    folder = (
        Path(tempfile.gettempdir()) / f"atomdiff-farm-{os.getuid() if hasattr(os, 'getuid') else 0}" / key
    )
    for name, data in pictures.items():
        write_atomically(folder / "pictures" / Path(name).name, data)
    own = {"instance_data_dir": str(folder / "pictures"), "output_dir": str(folder), "base": told["base"]}
    try:
        settings = TrainingSettings(**(told | own | {"resume_from_checkpoint": "latest"}))
        base = _base(settings.base)
        fit(settings, base=base)
        data = concept_path(settings).read_bytes()
        likeness, picture = judged(base, data, folder / "pictures", tower)
    except (Interrupted, OSError, MemoryError):
        raise
    except AtomdiffError as error:
        return Outcome(error=str(sentence_of(error)))
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(data, likeness, picture, time.monotonic() - began, _node())


def judged(base: Base, data: bytes, photographs: Path, tower: str = "") -> tuple[float | None, bytes]:
    """The likeness of what a concept draws to the photographs, None where nothing can judge it; and one of
    the pictures."""
    from atomdiff.evaluation.best_step import CONTEXTS
    from atomdiff.evaluation.dreambench_run import photographs as read
    from atomdiff.evaluation.likeness import likeness
    from atomdiff.files.safetensors_file import from_bytes
    from atomdiff.sampling.draw import draw
    from atomdiff.sampling.sheets import picture_bytes

    concept = from_bytes(data)
    called = f"a {concept.trigger} {concept.class_word}".strip()
    drawn = draw(base, [f"{called} {where}" for where in CONTEXTS], concepts=[concept], count=EACH)
    look = _eyes(base.family, tower, str(base.device))
    score = None if look is None else likeness(look(drawn), look(read(photographs)))
    return score, picture_bytes(drawn[0])


@functools.lru_cache(maxsize=1)
def _eyes(family: str, tower: str, device: str) -> Callable[[Sequence[Image]], Any] | None:
    from atomdiff import pocket
    from atomdiff.evaluation.best_step import PocketEyes
    from atomdiff.evaluation.towers import load_tower
    from atomdiff.pocket.judge import Judge

    if tower:
        return load_tower(Path(tower), device=device).images
    return (
        PocketEyes(Judge.load(Path(pocket.path()) / "judge.safetensors")).images
        if family == "pocket"
        else None
    )


@functools.lru_cache(maxsize=1)
def _base(name: str) -> Base:
    """Loaded once in a process, which Ray keeps for the next task."""
    from atomdiff.training.run import shared_base

    return shared_base(TrainingSettings(base=name))


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
    with (out / RESULTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return line


def _line(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"{result['name']}: {result['error']}"
    likeness = result["likeness"]
    told = "" if likeness is None else f", likeness {likeness:.2f}"
    return f"{result['name']}: {result['bytes']:,} bytes{told}"


def _pictures(settings: TrainingSettings) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file directly in a subject's folder, in order."""
    for path in sorted(Path(settings.instance_data_dir).expanduser().iterdir()):
        if path.is_file() and not path.name.startswith("."):
            yield path.name, path.read_bytes()


def _told(settings: TrainingSettings) -> dict[str, Any]:
    """What decides a training, wherever it runs."""
    here = ("instance_data_dir", "output_dir")
    return {name: value for name, value in dataclasses.asdict(settings).items() if name not in here}


def _slots(there: dict[str, float], cpus: float, gpus: float) -> int:
    """How many trainings can run at a time."""
    ways = [there.get(kind, 0) / each for kind, each in (("CPU", cpus), ("GPU", gpus)) if each]
    return max(1, int(min(ways, default=1)))


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""
