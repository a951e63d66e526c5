"""How long a training takes on this machine, and how large its concept will be: measured once for a base and
its settings, by training a few steps and drawing a little, and remembered."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from atomdiff.files.atomic import write_atomically
from atomdiff.studio.desk import Job
from atomdiff.training.reporting import Reporter, StepRecord

if TYPE_CHECKING:
    from atomdiff.base.stable_diffusion import Base
    from atomdiff.studio.house import Studio
    from atomdiff.training.settings import TrainingSettings

STEPS = 3  # the first of them, which warms up, does not count
DECISIVE = (
    "base", "resolution", "train_batch_size", "with_prior_preservation", "num_atoms", "linear_atoms",
    "linear_block", "linear_family", "shared_numbers", "train_token", "num_vectors", "precision",
    "gradient_checkpointing",
)  # fmt: skip


@dataclass(frozen=True)
class Pace:
    """Seconds a step and a drawn picture, bytes of the concept."""

    step: float
    picture: float
    size: int

    def seconds(self, settings: TrainingSettings, class_pictures: int) -> float:
        """Of a whole training, with the pictures along it; `class_pictures` are to be drawn first."""
        steps = int(settings.max_train_steps or 0)
        states = -(-steps // settings.validation_steps)
        drawn = states * settings.num_validation_images + class_pictures
        return steps * self.step + drawn * self.picture


class Paces:
    """What was measured, in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def get(self, settings: TrainingSettings) -> Pace | None:
        """None if it was not measured yet."""
        try:
            return Pace(**self._read()[_key(settings)])
        except (KeyError, TypeError):
            return None

    def put(self, settings: TrainingSettings, pace: Pace) -> None:
        """Remembers a pace. Raises OSError."""
        known = self._read() | {_key(settings): asdict(pace)}
        write_atomically(self._file, json.dumps(known, indent=1).encode())

    def _read(self) -> dict[str, dict]:
        try:
            known = json.loads(self._file.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def measuring(studio: Studio, settings: TrainingSettings) -> Callable[[Job], None]:
    """The work of measuring, with the pictures of `settings`; its result is the Pace."""

    def work(job: Job) -> None:
        from atomdiff.concept.timeline import shared
        from atomdiff.files.safetensors_file import to_bytes
        from atomdiff.training import run as training

        base = studio.base(settings.base)
        job.progress(0, 1, "Timing a step on this machine")
        with tempfile.TemporaryDirectory(prefix="atomdiff-") as name:
            folder = Path(name)
            shutil.copytree(settings.instance_data_dir, folder / "class")  # stands in for class pictures
            short = replace(
                settings, output_dir=name, class_data_dir=str(folder / "class"), max_train_steps=STEPS,
                num_class_images=len(list((folder / "class").iterdir())), checkpointing_steps=0,
                timeline_steps=0, validation_prompt="",
            )  # fmt: skip
            clock = _Clock(job)
            concept = training.fit(short, base=base, reporter=clock, stop=lambda: job.stopping)
        picture = _drawing_seconds(base, settings)
        size = len(to_bytes(shared(concept), settings.precision))
        pace = Pace(min(clock.seconds[1:]), picture, size)
        studio.paces.put(settings, pace)
        job.add(pace)

    return work


def _drawing_seconds(base: Base, settings: TrainingSettings) -> float:
    """Of one picture of 25 steps among those drawn at once: what a step takes, and what comes on top."""
    from atomdiff.sampling.draw import draw

    taken, count = [], settings.num_validation_images
    for steps in (1, 3):
        start = time.perf_counter()
        draw(base, settings.instance_prompt, count=count, batch_size=count, steps=steps)
        taken.append(time.perf_counter() - start)
    step = max(0.0, (taken[1] - taken[0]) / 2)
    return (taken[0] + 24 * step) / count


class _Clock(Reporter):
    def __init__(self, job: Job) -> None:
        self._job = job
        self.seconds: list[float] = []

    def stage(self, what: str, done: int, total: int) -> None:
        self._job.progress(0, 1, "Timing a step on this machine")

    def step(self, record: StepRecord) -> None:
        self.seconds.append(record.seconds)


def _key(settings: TrainingSettings) -> str:
    values = [getattr(settings, name) for name in DECISIVE]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
