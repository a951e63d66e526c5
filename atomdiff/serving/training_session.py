"""One training: what was asked, how far it is, and the folder that keeps it.

FOLDER/training.json     settings, status, losses
      /pictures/         what was uploaded
      /validation/       pictures of each kept state, at the same seeds
      /NAME.timeline.safetensors, checkpoint-*, NAME.safetensors
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomdiff.errors import ConceptError, SettingsError
from atomdiff.files.atomic import write_atomically
from atomdiff.serving.bases import BaseInfo
from atomdiff.training.defaults import FULL_SIZE, POCKET, FamilyDefaults, name_everything, suit_recipe
from atomdiff.training.settings import TrainingSettings

if TYPE_CHECKING:
    from atomdiff.concept.timeline import Timeline

QUALITIES = {"fast": 1 / 3, "good": 1.0, "best": 2.0}  # parts of the base's usual number of steps
STATES = 10  # that are kept, and drawn, on the way
MAX_PICTURES = 100
MAX_STEPS = 100_000
UNFINISHED = ("waiting", "running")
MORE = (
    "recipe", "max_train_steps", "with_prior_preservation", "random_flip", "learning_rate", "precision",
    "seed",
)  # fmt: skip
TEXTS = ("trigger", "validation_prompt")
CAPTION = ".txt"  # ending of a file that says what is in the picture of its name


@dataclass(frozen=True)
class TrainingRequest:
    """What someone wants trained. `files` are pictures and the captions of some of them; `more` are fields of
    TrainingSettings, of MORE and TEXTS: what writes elsewhere is not for visitors. Raises SettingsError for
    what cannot work."""

    files: tuple[Path, ...]
    class_word: str
    name: str = ""
    base: str = "pocket"
    quality: str = "good"
    more: Mapping[str, Any] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
    """Names of pictures, without endings -> what is in them; these go before the files."""
    samples: bool = True
    """Whether pictures are drawn of each kept state."""

    def __post_init__(self) -> None:
        pictures, captions = self.split
        if not pictures:
            raise SettingsError("There are no pictures: drop a few of your subject, five are usual.")
        if len(pictures) > MAX_PICTURES:
            raise SettingsError(
                f"{len(pictures)} pictures are more than the {MAX_PICTURES} that fit: choose the best."
            )
        if not self.class_word.strip():
            raise SettingsError("Say what is in the pictures, in a word: dog, cup, person.")
        if self.quality not in QUALITIES:
            raise SettingsError(f"The quality is {', '.join(QUALITIES)}, not {self.quality[:20]!r}.")
        for stem in captions.keys() - {path.stem for path in pictures}:
            raise SettingsError(
                f"'{captions[stem].name}' says what is in a picture called '{stem}', but there is none: drop "
                "that picture too."
            )
        for name in self.more:
            if name not in MORE + TEXTS:
                raise SettingsError(f"There is no setting {str(name)[:40]!r}: {', '.join(MORE + TEXTS)}.")

    @property
    def split(self) -> tuple[tuple[Path, ...], dict[str, Path]]:
        """Pictures, and captions by the names, without endings, of the pictures that they are of."""
        return split_captions(self.files)

    def settings(self, info: BaseInfo, folder: Path) -> TrainingSettings:
        """All choices, for a base and a folder. Raises SettingsError for what cannot work."""
        steps = self.more.get("max_train_steps") or steps_of(self.quality, info)
        if not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
            raise SettingsError(f"A training takes 1 to {MAX_STEPS:,} steps, not {str(steps)[:20]}.")
        every = max(1, round(steps / STATES))
        fixed: dict[str, Any] = {
            "instance_data_dir": str(folder / "pictures"),
            "output_dir": str(folder),
            "caption_extension": CAPTION if self.split[1] or self.captions else "",
            "base": self.base,
            "class_word": self.class_word.strip(),
            "name": self.name.strip() or self.class_word.strip(),
            "max_train_steps": steps,
            "timeline_steps": every,
            "checkpointing_steps": every,
            "validation_steps": every,
            "num_validation_images": 4 if info.family == "pocket" else 2,
            "sample_batch_size": info.batch,
        }
        settings = suit_recipe(name_everything(TrainingSettings(**(dict(self.more) | fixed))))
        usual = settings.instance_prompt if self.samples else ""
        return replace(settings, validation_prompt=settings.validation_prompt or usual)

    def copy_files(self, folder: Path, captions: bool = True) -> None:
        """Keeps the pictures, in order and under names of our own, with their captions. Raises OSError."""
        folder.mkdir(parents=True)
        pictures, texts = self.split
        for i, path in enumerate(pictures):
            shutil.copyfile(path, folder / f"{i:03d}{path.suffix.lower()[:10]}")
            if captions and self.captions.get(path.stem):
                (folder / f"{i:03d}{CAPTION}").write_text(self.captions[path.stem], "utf-8")
            elif captions and path.stem in texts:
                shutil.copyfile(texts[path.stem], folder / f"{i:03d}{CAPTION}")


@dataclass(frozen=True)
class TrainingStatus:
    """A training at one moment."""

    state: str
    """waiting, running, stopped, done or failed."""
    step: int = 0
    steps: int = 0
    stage: str = ""
    ahead: int = 0
    seconds_left: float | None = None
    losses: tuple[tuple[int, float], ...] = ()
    drifts: tuple[tuple[int, float], ...] = ()
    """By how much the base's prediction of the class has changed, where it was measured: ‖Δε̂‖ / ‖ε̂‖."""
    notes: tuple[str, ...] = ()
    error: str = ""
    concept: str = ""
    """Its id in the library, where a finished training is kept there."""

    @property
    def over(self) -> bool:
        return self.state not in UNFINISHED


class TrainingSession:
    """One training. Safe to look at from any thread; `owner` is the mark of its owner, not the name."""

    def __init__(self, folder: Path, owner: str, settings: TrainingSettings, made: float) -> None:
        self.folder, self.owner, self.settings, self.made = folder, owner, settings, made
        self._lock = threading.Lock()
        self._status = TrainingStatus("waiting", steps=int(settings.max_train_steps or 0))

    @property
    def ident(self) -> str:
        """Its name, which cannot be guessed."""
        return self.folder.name

    def status(self) -> TrainingStatus:
        """The training now."""
        with self._lock:
            return self._status

    def change(self, **values: Any) -> None:
        """Sets parts of the status."""
        with self._lock:
            self._status = replace(self._status, **values)

    def note(self, sentence: str) -> None:
        """Something its owner should know; told once."""
        notes = self.status().notes
        self.change(notes=notes if sentence in notes else (*notes, sentence))

    def samples(self) -> dict[int, tuple[Path, ...]]:
        """Step -> its pictures, all at the same seeds."""
        found: dict[int, tuple[Path, ...]] = {}
        for path in sorted((self.folder / "validation").glob("step-*-*.png")):
            parts = re.fullmatch(r"step-(\d+)-\d+", path.stem)
            if parts:
                found[int(parts[1])] = (*found.get(int(parts[1]), ()), path)
        return dict(sorted(found.items()))

    def timeline(self) -> Timeline | None:
        """The kept states; None if none was reached."""
        from atomdiff.files.timeline_file import load_timeline
        from atomdiff.training.run import timeline_path

        try:
            return load_timeline(timeline_path(self.settings))
        except ConceptError:
            return None

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps whose states were kept."""
        timeline = self.timeline()
        return timeline.steps if timeline else ()

    def save(self) -> None:
        """Writes what a later start needs to know."""
        about = {
            "owner": self.owner,
            "made": self.made,
            "settings": dataclasses.asdict(self.settings),
            "status": dataclasses.asdict(self.status()),
        }
        write_atomically(self.folder / "training.json", json.dumps(about).encode())

    @classmethod
    def read(cls, folder: Path) -> TrainingSession:
        """A training of an earlier start, stopped if it was under way. Raises ValueError, KeyError,
        TypeError or OSError for one that cannot be read."""
        about = json.loads((folder / "training.json").read_text("utf-8"))
        settings = TrainingSettings(**about["settings"])
        moved = replace(settings, output_dir=str(folder), instance_data_dir=str(folder / "pictures"))
        session = cls(folder, str(about["owner"]), moved, float(about["made"]))
        status = TrainingStatus(**about["status"])
        losses, drifts = (
            tuple((int(s), float(v)) for s, v in said) for said in (status.losses, status.drifts)
        )
        state = "stopped" if status.state in UNFINISHED else status.state
        session._status = replace(
            status, losses=losses, drifts=drifts, notes=tuple(status.notes), state=state
        )
        return session


def told(session: TrainingSession, status: TrainingStatus, *parts: str) -> dict[str, Any]:
    """A training as the HTTP APIs give it: what it is, its last loss, and these parts of its status."""
    loss = status.losses[-1][1] if status.losses else None
    about = {"id": session.ident, "name": session.settings.name, "loss": loss}
    return about | {part: getattr(status, part) for part in parts}


def split_captions(files: Sequence[Path]) -> tuple[tuple[Path, ...], dict[str, Path]]:
    """Pictures, and captions by the names, without endings, of the pictures that they are of."""
    captions = {path.stem: path for path in files if path.suffix.lower() == CAPTION}
    return tuple(path for path in files if path.suffix.lower() != CAPTION), captions


def defaults_of(info: BaseInfo) -> FamilyDefaults:
    """What suits the family of a base."""
    return POCKET if info.family == "pocket" else FULL_SIZE


def steps_of(quality: str, info: BaseInfo) -> int:
    """How many steps a quality takes on a base."""
    return round(defaults_of(info).max_train_steps * QUALITIES[quality])
