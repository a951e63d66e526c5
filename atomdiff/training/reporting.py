"""What training tells the world, and nothing about how it is shown."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomdiff.errors import SettingsError, TrainingError

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger("atomdiff")


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step, as every process sees it (losses are averages over the joint batch)."""

    step: int  # steps done, from 1
    steps: int
    loss: float
    instance_loss: float
    prior_loss: float
    learning_rate: float  # of the first kind of atoms that is trained
    gradient_norm: float
    seconds: float
    skipped: bool = False  # fp16 only: the gradient overflowed, and the loss scale was halved instead
    last: bool = False  # the run ends with this step, since it is done or was asked to stop
    saved: Path | None = None  # the state written after this step
    pictures: "tuple[Image, ...]" = field(default=(), repr=False)  # validation pictures, first process only


class Reporter:
    """Hears of a run. This one writes to the log `atomdiff`; subclass it to show more."""

    def notice(self, text: str) -> None:
        """One line of information: the base that is used, a picture that is skipped, a state resumed from."""
        logger.info(text)

    def warn(self, text: str) -> None:
        """Something that the user should look at, such as a prompt that was cut."""
        logger.warning(text)

    def stage(self, what: str, done: int, total: int) -> None:
        """Progress of the work before training, such as "drawing class pictures"."""

    def step(self, record: StepRecord) -> None:
        """One training step is done."""


class TensorBoard:
    """Writes records for TensorBoard. Raises SettingsError where the package is missing."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise SettingsError(
                "--report_to tensorboard needs the package tensorboard, which is not installed; "
                "install atomdiff[tensorboard] or drop the flag."
            ) from None
        try:
            self._writer: Any = SummaryWriter(str(folder), purge_step=first_step + 1)
        except OSError as error:
            raise TrainingError(f"The log folder '{folder}' cannot be written: {error.strerror}.") from None

    def step(self, record: StepRecord) -> None:
        """Log losses, rate and gradient norm; validation pictures where there are any."""
        import numpy as np

        for name in ("loss", "instance_loss", "prior_loss", "learning_rate", "gradient_norm", "seconds"):
            self._writer.add_scalar(f"train/{name}", getattr(record, name), record.step)
        if record.pictures:
            stack = np.stack([np.asarray(picture) for picture in record.pictures])
            self._writer.add_images("validation", stack, record.step, dataformats="NHWC")

    def close(self) -> None:
        self._writer.close()
