"""Logs of a run: TensorBoard, and whatever else accelerate knows how to write to.

A log is no reason to lose a run: one that cannot be opened is refused before the first step, one that breaks
off later is told once and left alone.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomdiff.errors import SettingsError, TrainingError, reason_of
from atomdiff.sampling.sheets import contact_sheet
from atomdiff.training.reporting import Reporter, StepRecord
from atomdiff.training.settings import TRACKERS, TrainingSettings

if TYPE_CHECKING:
    from PIL.Image import Image

FIGURES = ("loss", "instance_loss", "prior_loss", "learning_rate", "gradient_norm", "seconds")


def open_logs(settings: TrainingSettings, folder: Path, first_step: int, told: Reporter) -> "Logs":
    """The logs that --report_to asks for, `all` meaning every one that is installed. Raises SettingsError or
    TrainingError where one cannot be had."""
    wanted = [] if settings.report_to == "none" else [settings.report_to]
    if settings.report_to == "all":
        wanted = [name for name in TRACKERS if _installed(name)]
    return Logs([_opened(name, settings, folder, first_step) for name in wanted], settings.validations, told)


class Logs:
    """All logs of a run."""

    def __init__(self, logs: Sequence[Any], prompts: Sequence[str], told: Reporter) -> None:
        self._logs, self._prompts, self._told = list(logs), prompts, told

    def step(self, record: StepRecord) -> None:
        """Write the figures of a step, and the sheet of its validation pictures."""
        figures = {f"train/{name}": float(getattr(record, name)) for name in FIGURES}
        if record.drift is not None:
            figures["train/drift"] = record.drift
        sheet = sheet_of(record.pictures, self._prompts)
        for log in tuple(self._logs):
            try:
                log.write(figures, sheet, record.step)
            except Exception as error:  # every service raises its own
                self._logs.remove(log)
                reason = reason_of(error)
                self._told.warn(f"The log in {log.name} broke off at step {record.step} ({reason}).")

    def close(self) -> None:
        for log in self._logs:
            with suppress(Exception):  # the run is over, and what it made is safe
                log.close()


def sheet_of(pictures: "Sequence[Image]", prompts: Sequence[str]) -> "Image | None":
    """Validation pictures under their prompts; None without any."""
    if not pictures:
        return None
    each = len(pictures) // len(prompts)
    rows = [(prompt, pictures[i * each : (i + 1) * each]) for i, prompt in enumerate(prompts)]
    return contact_sheet(rows)


class TensorBoard:
    """Steps of an earlier run in the same folder that come again are purged."""

    name = "tensorboard"

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=first_step + 1)

    def write(self, figures: dict[str, float], sheet: "Image | None", step: int) -> None:
        import numpy as np

        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        if sheet:
            self._writer.add_image("validation", np.asarray(sheet), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class Tracker:
    """One of accelerate's trackers."""

    def __init__(self, name: str, folder: Path, settings: TrainingSettings) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        self.name = name
        kind = LOGGER_TYPE_TO_CLASS[name]
        options = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
        self._tracker = kind("atomdiff", **options)
        if hasattr(self._tracker, "start"):  # accelerate 1.8 or later
            self._tracker.start()
        simple = {k: v for k, v in vars(settings).items() if isinstance(v, (int, float, str, bool))}
        self._tracker.store_init_configuration(simple)

    def write(self, figures: dict[str, float], sheet: "Image | None", step: int) -> None:
        self._tracker.log(figures, step=step)
        if sheet and hasattr(self._tracker, "log_images"):
            self._tracker.log_images({"validation": [sheet]}, step=step)

    def close(self) -> None:
        self._tracker.finish()


def check_installed(name: str) -> None:
    """Refuse a log whose package is missing. Raises SettingsError."""
    if name not in ("none", "all") and not _installed(name):
        more = "install atomdiff[tensorboard]" if name == "tensorboard" else f"install {name}"
        raise SettingsError(
            f"--report_to {name} needs the package {name}, which is not installed; {more} or drop the flag."
        )


def _opened(name: str, settings: TrainingSettings, folder: Path, first_step: int) -> Any:
    try:
        return TensorBoard(folder, first_step) if name == "tensorboard" else Tracker(name, folder, settings)
    except OSError as error:
        if error.filename is not None:
            raise TrainingError(f"The log folder '{folder}' cannot be written: {error.strerror}.") from None
        raise _unreachable(name, error) from error
    except Exception as error:  # every service raises its own
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> SettingsError:
    return SettingsError(
        f"--report_to {name} cannot be used ({reason_of(error)}); log in to it, go online, or drop the flag."
    )


def _installed(name: str) -> bool:
    from accelerate.tracking import get_available_trackers

    return name in [str(getattr(kind, "value", kind)) for kind in get_available_trackers()]
