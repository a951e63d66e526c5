"""The timeline of a training: the states that it went through, each of them a concept.

All states of a run share everything but their numbers, so a timeline is one concept, the newest, and a stack
of atoms; `Timeline.at(step)` is the very concept that saving at that step would have written, in fp16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from atomdiff.concept.concept import Concept
from atomdiff.errors import ConceptError

MAX_STEP = 10**9 - 1


@dataclass(frozen=True, eq=False)
class Timeline:
    """States after `steps` (ascending), with the loss of each; `last` is the newest.

    `atoms` holds every state's atoms, packed as in `Concept` with the states as a first dimension:
    (S, L, r, c) fp16. `run` tells this training from another in the same folder. Raises ConceptError if the
    parts contradict each other or a number is not finite.
    """

    last: Concept
    steps: tuple[int, ...]
    losses: Tensor  # (S) fp32
    atoms: Mapping[str, Tensor]
    run: str = ""

    def __post_init__(self) -> None:
        count = len(self.steps)
        ascending = all(0 <= a < b <= MAX_STEP for a, b in zip((0, *self.steps), self.steps, strict=False))
        if not count or not ascending:
            raise ConceptError(f"The steps of a timeline are ascending numbers from 1, not {self.steps[:9]}.")
        shapes = {key: tuple(tensor.shape) for key, tensor in self.atoms.items()}
        wanted = {key: (count, *tensor.shape) for key, tensor in self.last.atoms.items()}
        if shapes != wanted or tuple(self.losses.shape) != (count,):
            raise ConceptError(
                f"A timeline of {count} states needs atoms {wanted} and as many losses, not {shapes} and "
                f"{tuple(self.losses.shape)}."
            )
        if not all(torch.isfinite(tensor).all() for tensor in (self.losses, *self.atoms.values())):
            raise ConceptError(f"The timeline of {self.last.title!r} holds NaN or infinity.")

    @classmethod
    def begin(cls, step: int, loss: float, concept: Concept, run: str = "") -> Timeline:
        """A timeline of one state. Raises ConceptError where fp16 cannot hold its numbers."""
        atoms = {key: tensor[None] for key, tensor in _half(concept).items()}
        return cls(_at_step(concept, step), (step,), torch.tensor([loss]), atoms, run)

    def then(self, step: int, loss: float, concept: Concept) -> Timeline:
        """With one more state. Raises ConceptError if it is not a later one of the same training."""
        if _of_the_run(self.last) != _of_the_run(concept) or step <= self.steps[-1]:
            raise ConceptError(
                f"The state of step {step} does not continue the timeline of {self.last.title!r}, which ends "
                f"at step {self.steps[-1]}: begin a new one."
            )
        added = _half(concept)
        atoms = {key: torch.cat([tensor, added[key][None]]) for key, tensor in self.atoms.items()}
        losses = torch.cat([self.losses, torch.tensor([loss])])
        return Timeline(_at_step(concept, step), (*self.steps, step), losses, atoms, self.run)

    def until(self, step: int) -> Timeline | None:
        """Without the states after `step`; None if none is left."""
        count = sum(kept <= step for kept in self.steps)
        if not count:
            return None
        atoms = {key: tensor[:count] for key, tensor in self.atoms.items()}
        last = self.at(self.steps[count - 1])
        return Timeline(last, self.steps[:count], self.losses[:count], atoms, self.run)

    def at(self, step: int) -> Concept:
        """The state after `step` as a concept. Raises ConceptError, naming the nearest, if not kept."""
        if step not in self.steps:
            nearest = min(self.steps, key=lambda kept: abs(kept - step))
            raise ConceptError(
                f"The timeline of {self.last.title!r} keeps no state of step {step}: the nearest of its "
                f"{len(self.steps)} is {nearest}."
            )
        index = self.steps.index(step)
        atoms = {key: tensor[index].float() for key, tensor in self.atoms.items()}
        return _at_step(replace(self.last, atoms=atoms), step)

    def norms(self) -> list[float]:
        """How far the atoms of each state are from the base: the norm of all their numbers."""
        squares = sum(tensor.double().square().flatten(1).sum(1) for tensor in self.atoms.values())
        return [float(square) ** 0.5 for square in torch.as_tensor(squares)]

    def spread(self, count: int) -> tuple[int, ...]:
        """At most `count` of the steps, evenly spread, with the first and the last; of one, the last."""
        if count >= len(self.steps):
            return self.steps
        gap = (len(self.steps) - 1) / max(1, count - 1)
        return tuple(self.steps[len(self.steps) - 1 - round(i * gap)] for i in reversed(range(count)))


def _at_step(concept: Concept, step: int) -> Concept:
    return replace(concept, training={**concept.training, "steps": step}, precision="fp16")


def shared(concept: Concept) -> Concept:
    """What the states of a run have in common: ones for numbers, since a file may leave out zeros."""
    ones = {key: torch.ones_like(tensor) for key, tensor in concept.atoms.items()}
    return replace(concept, atoms=ones, precision="fp16")


def _of_the_run(concept: Concept) -> dict[str, Any]:
    """What must be equal in all states of a run, as the file keeps it: everything but what was trained."""
    return vars(concept) | {
        "atoms": {key: tensor.shape for key, tensor in concept.atoms.items()},
        "bases": {key: tensor.half().tolist() for key, tensor in concept.bases.items()},
        "base": (concept.base, concept.base.name),
        "training": {},
        "precision": "fp16",
    }


def _half(concept: Concept) -> dict[str, Tensor]:
    atoms = {key: tensor.half() for key, tensor in concept.atoms.items()}
    if not all(torch.isfinite(tensor).all() for tensor in atoms.values()):
        raise ConceptError(
            f"The atoms of {concept.title!r} reach beyond what fp16 can hold: lower the learning rate."
        )
    return atoms
