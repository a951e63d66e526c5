"""One training: what was asked, how far it is, and the folder that keeps it.

FOLDER/trainings/SECRET/training.json     settings, state, losses
                       /pictures/         what was dropped
                       /validation/       pictures of each kept state, at the same seeds
                       /NAME.timeline.safetensors, checkpoint-*, NAME.safetensors
"""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomdiff.errors import ConceptError, SettingsError
from atomdiff.files.atomic import write_atomically
from atomdiff.studio.desk import Job
from atomdiff.training.defaults import FULL_SIZE, POCKET, name_everything
from atomdiff.training.settings import TrainingSettings

if TYPE_CHECKING:
    from atomdiff.concept.timeline import Timeline
    from atomdiff.studio.house import Facts

QUALITIES = {"fast": 1 / 3, "good": 1.0, "best": 2.0}  # parts of the base's usual number of steps
STATES = 10  # that are kept, and drawn, on the way
MAX_PICTURES = 100
MAX_STEPS = 100_000
UNFINISHED = ("waiting", "running")
MORE = (
    "max_train_steps", "num_atoms", "linear_atoms", "train_token", "num_vectors", "with_prior_preservation",
    "random_flip", "learning_rate", "linear_learning_rate", "precision", "seed",
)  # fmt: skip
TEXTS = ("trigger", "validation_prompt")
CAPTION = ".txt"  # ending of a file that says what is in the picture of its name


@dataclass(frozen=True)
class Wish:
    """What someone wants trained. `files` are pictures and the captions of some of them; `more` are fields of
    TrainingSettings, of MORE and TEXTS: what writes elsewhere is not for visitors. Raises SettingsError for
    what cannot work."""

    files: tuple[Path, ...]
    class_word: str
    name: str = ""
    base: str = "pocket"
    quality: str = "good"
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.pictures:
            raise SettingsError("There are no pictures: drop a few of your subject, five are usual.")
        if len(self.pictures) > MAX_PICTURES:
            raise SettingsError(
                f"{len(self.pictures)} pictures are more than the {MAX_PICTURES} that fit: choose the best."
            )
        if not self.class_word.strip():
            raise SettingsError("Say what is in the pictures, in a word: dog, cup, person.")
        if self.quality not in QUALITIES:
            raise SettingsError(f"The quality is {', '.join(QUALITIES)}, not {self.quality[:20]!r}.")
        stems = {path.stem for path in self.pictures}
        for stem, path in self.captions.items():
            if stem not in stems:
                raise SettingsError(
                    f"'{path.name}' says what is in a picture called '{stem}', but there is none: drop that "
                    "picture too."
                )
        for name in self.more:
            if name not in MORE + TEXTS:
                raise SettingsError(
                    f"The studio has no setting {str(name)[:40]!r}: {', '.join(MORE + TEXTS)}."
                )

    @property
    def pictures(self) -> tuple[Path, ...]:
        """The files that are no captions."""
        return parted(self.files)[0]

    @property
    def captions(self) -> dict[str, Path]:
        """Name of a picture, without its ending -> the text that says what is in it."""
        return parted(self.files)[1]

    def settings(self, facts: Facts, folder: Path) -> TrainingSettings:
        """All choices, for a base and a folder. Raises SettingsError for what cannot work."""
        steps = self.more.get("max_train_steps") or steps_of(self.quality, facts.family)
        if not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
            raise SettingsError(f"A training takes 1 to {MAX_STEPS:,} steps, not {str(steps)[:20]}.")
        every = max(1, round(steps / STATES))
        fixed: dict[str, Any] = {
            "instance_data_dir": str(folder / "pictures"),
            "output_dir": str(folder),
            "caption_extension": CAPTION if self.captions else "",
            "base": self.base,
            "class_word": self.class_word.strip(),
            "name": self.name.strip() or self.class_word.strip(),
            "max_train_steps": steps,
            "timeline_steps": every,
            "checkpointing_steps": every,
            "validation_steps": every,
            "num_validation_images": shown_pictures(facts),
            "sample_batch_size": facts.batch,
        }
        settings = name_everything(TrainingSettings(**(dict(self.more) | fixed)))
        return replace(settings, validation_prompt=settings.validation_prompt or settings.instance_prompt)


@dataclass(frozen=True)
class View:
    """A training at one moment."""

    state: str
    """waiting, running, stopped, done or failed."""
    step: int = 0
    steps: int = 0
    stage: str = ""
    ahead: int = 0
    seconds_left: float | None = None
    losses: tuple[tuple[int, float], ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""

    @property
    def over(self) -> bool:
        return self.state not in UNFINISHED


class Course:
    """One training. Safe to look at from any thread; `owner` is the mark of its owner, not the name."""

    def __init__(self, folder: Path, owner: str, settings: TrainingSettings, made: float) -> None:
        self.folder, self.owner, self.settings, self.made = folder, owner, settings, made
        self.job: Job | None = None
        self._lock = threading.Lock()
        self._view = View("waiting", steps=int(settings.max_train_steps or 0))

    @property
    def ident(self) -> str:
        """Its name, which cannot be guessed."""
        return self.folder.name

    @property
    def title(self) -> str:
        """What to call it."""
        view = self.look()
        return f"{self.settings.name} · {view.state}, step {view.step} of {view.steps}"

    def look(self) -> View:
        """The training now."""
        with self._lock:
            return self._view

    def change(self, **values: Any) -> None:
        """Sets parts of the view."""
        with self._lock:
            self._view = replace(self._view, **values)

    def note(self, sentence: str) -> None:
        """Something its owner should know; told once."""
        with self._lock:
            if sentence not in self._view.notes:
                self._view = replace(self._view, notes=(*self._view.notes, sentence))

    def frames(self) -> dict[int, tuple[Path, ...]]:
        """Step -> its pictures, all at the same seeds."""
        found: dict[int, list[Path]] = {}
        for path in sorted((self.folder / "validation").glob("step-*-*.png")):
            parts = re.fullmatch(r"step-(\d+)-\d+", path.stem)
            if parts:
                found.setdefault(int(parts[1]), []).append(path)
        return {step: tuple(paths) for step, paths in sorted(found.items())}

    def timeline(self) -> Timeline | None:
        """The kept states; None if none was reached."""
        from atomdiff.concept.timeline import Timeline
        from atomdiff.training.run import timeline_path

        try:
            return Timeline.load(timeline_path(self.settings))
        except ConceptError:
            return None

    def save(self) -> None:
        """Writes what a later studio needs to know."""
        view = self.look()
        told = {
            "owner": self.owner,
            "made": self.made,
            "settings": dataclasses.asdict(self.settings),
            "view": dataclasses.asdict(view),
        }
        write_atomically(self.folder / "training.json", json.dumps(told).encode())

    @classmethod
    def read(cls, folder: Path) -> Course:
        """A training of an earlier studio, stopped if it was under way. Raises ValueError, KeyError,
        TypeError or OSError for one that cannot be read."""
        told = json.loads((folder / "training.json").read_text("utf-8"))
        settings = TrainingSettings(**told["settings"])
        moved = replace(settings, output_dir=str(folder), instance_data_dir=str(folder / "pictures"))
        course = cls(folder, str(told["owner"]), moved, float(told["made"]))
        view = View(**told["view"])
        losses = tuple((int(step), float(loss)) for step, loss in view.losses)
        state = "stopped" if view.state in UNFINISHED else view.state
        course.change(
            **dataclasses.asdict(replace(view, losses=losses, notes=tuple(view.notes), state=state))
        )
        return course


def parted(files: Sequence[Path]) -> tuple[tuple[Path, ...], dict[str, Path]]:
    """Pictures, and captions by the names, without endings, of the pictures that they are of."""
    captions = {path.stem: path for path in files if path.suffix.lower() == CAPTION}
    return tuple(path for path in files if path.suffix.lower() != CAPTION), captions


def steps_of(quality: str, family: str) -> int:
    """How many steps a quality takes on a family of bases."""
    usual = (POCKET if family == "pocket" else FULL_SIZE).max_train_steps
    return round(usual * QUALITIES[quality])


def shown_pictures(facts: Facts) -> int:
    """How many pictures of each state are drawn."""
    return 4 if facts.family == "pocket" else 2
