"""Concepts of random numbers for a base, with a learned word: what a training leaves, made in no time."""

from __future__ import annotations

from typing import Any

import torch

from atomdiff.base.textual_inversion import TriggerToken
from atomdiff.concept.concept import Concept
from atomdiff.core import inject
from atomdiff.core.inject import AtomSpec

PLAIN: dict[str, Any] = {"acting": "plain"}
"""How `draw` is told to draw as other tools do."""


def concept(
    base: Any,
    spec: AtomSpec | None = None,
    *,
    trigger: str = "sks",
    vectors: int = 2,
    seed: int = 0,
    size: float = 0.05,
    **said: Any,
) -> Concept:
    """Random atoms of that size, and `vectors` random vectors for the trigger, 0 for no learned word."""
    generator = torch.Generator().manual_seed(seed)

    def random(values: torch.Tensor, size: float) -> torch.Tensor:
        return size * torch.randn(values.shape, generator=generator)

    spec = AtomSpec() if spec is None else spec
    attached = inject.attach(base.unet, spec)
    atoms = {key: random(values, size) for key, values in attached.read().items()}
    attached.detach()
    token = TriggerToken(base, trigger, vectors=vectors).read() if vectors else {}
    said = {"class_word": "dog", "name": "dog"} | said
    return Concept.of(
        base.unet, spec, atoms, base.passport, trigger=trigger,
        token={key: random(values, 0.5) for key, values in token.items()}, **said,
    )  # fmt: skip
