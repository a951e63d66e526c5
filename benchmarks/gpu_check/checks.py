"""The checks, most important first. Each takes the setup and returns figures by name."""

from __future__ import annotations

from collections.abc import Callable

from . import batches, correctness, steps
from .setup import Figures, Setup

CHECKS: dict[str, Callable[[Setup], Figures]] = {
    "correctness": correctness.correctness,
    "mixed correctness": correctness.mixed_correctness,
    "mixed batch": batches.mixed_batch,
    "steps, SD 1.5": steps.steps_sd15,
    "trainings": batches.trainings,
    "steps, SDXL": steps.steps_sdxl,
    "xformers": steps.xformers,
    "compiled": steps.compiled,
}
