"""Where a check runs and how large it is, and what all of them measure with."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atomdiff.core.inject import AtomSpec

from ..shapes import SD15, SDXL
from .asked import TOY_SD15, TOY_SDXL

Figures = dict[str, float | str]
SPECS = {
    "atoms": AtomSpec(linear_atoms="none"),
    "atoms + Dc": AtomSpec(linear_atoms="attn2"),
    "recursive": AtomSpec(linear_atoms="none", conv_family="recursive", channel_groups=16),
}


@dataclass(frozen=True)
class Setup:
    """Where and how large: `toy` is the dry run."""

    device: str
    toy: bool
    rounds: int = 5

    @property
    def sd15(self) -> dict[str, Any]:
        return TOY_SD15 if self.toy else SD15

    @property
    def sdxl(self) -> dict[str, Any]:
        return TOY_SDXL if self.toy else SDXL

    def side(self, pixels: int) -> int:
        """The pixels of a check, in the dry run 64."""
        return 64 if self.toy else pixels

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    def seconds(self, call: Callable[[], object]) -> float:
        """Median of a few calls after two that do not count."""
        found = []
        for turn in range(self.rounds + 2):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            if turn >= 2:
                found.append(time.perf_counter() - start)
        return statistics.median(found)

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def fresh(self) -> None:
        """Forget peaks and free what is unused."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        """Peak GB since `fresh`; 0 where it is not known."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.cuda else 0.0


def apart(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖ in fp32."""
    return float((a.float() - b.float()).norm() / b.float().norm())
