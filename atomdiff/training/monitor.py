"""A watch on the base while a concept is trained: how far its prediction for the bare class has moved.

Every few steps the change of the predicted noise on the class prompt, ‖Δε̂‖ / ‖ε̂‖ (see `probes`), is measured
at the same points. Where it exceeds a bound, the run goes back to the numbers of the measurement before,
goes on at a fraction of its rates, and ends where that has been done too often: so what a run leaves, and
what it goes on from, is always within the bound.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from atomdiff.base.stable_diffusion import Base, encode_prompts
from atomdiff.training.probes import Probes, denoising_probes, noise_prediction, relative_change

SLOWER = 0.25  # by what the rates are multiplied when the bound is exceeded
SLOWEST = SLOWER**4  # a run that would have to go on more slowly than this ends
Held = dict[str, Tensor]
"""A run's tensors as a snapshot names them."""


@dataclass(frozen=True)
class Watch:
    """Points of the class prompt, and what the base predicts there."""

    probes: Probes
    before: Tensor  # (n, c, h, w) fp32

    @classmethod
    def of(cls, base: Base, class_prompt: str, resolution: int) -> "Watch":
        """Of a base that is as it is without a concept."""
        probes, _ = denoising_probes(base, encode_prompts(base, [class_prompt]), resolution)
        return cls(probes, noise_prediction(base, probes))

    def drift(self, base: Base) -> float:
        """The relative change now; infinite where the prediction is not a number."""
        found = relative_change(noise_prediction(base, self.probes), self.before)
        return found if math.isfinite(found) else math.inf


class Brake:
    """What a run does about its drift. `pace` multiplies its rates; `held` is where it can go back to.

    `bound` 0 lets a run drift as it likes. Both numbers and tensors are part of a saved state.
    """

    def __init__(self, bound: float, held: Held) -> None:
        self.bound, self.held, self.pace = bound, held, 1.0

    def exceeded(self, drift: float) -> bool:
        """Whether the run must go back; it is slowed then."""
        if not self.bound or drift <= self.bound:
            return False
        self.pace *= SLOWER
        return True

    @property
    def spent(self) -> bool:
        """Whether slowing has not helped, so that the run is to end with what is held."""
        return self.pace < SLOWEST
