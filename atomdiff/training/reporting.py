"""What training tells the world, and nothing about how it is shown."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

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
    drift: float | None = None  # of the class from the base, where it was measured, see `monitor`
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
