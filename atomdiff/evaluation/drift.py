"""Drift: how far a concept moves each layer of its base, ‖ΔW‖ / ‖W‖ (Frobenius norms)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from atomdiff.concept.concept import Concept
from atomdiff.core.blocks import BLOCKS, OTHER, block_of, in_flow_order


@dataclass(frozen=True)
class LayerDrift:
    """One layer: ‖ΔW‖ and ‖W‖, the block that it is in, and whether it is a spatial convolution."""

    layer: str
    block: str
    spatial: bool
    change: float
    weight: float

    @property
    def ratio(self) -> float:
        """‖ΔW‖ / ‖W‖; 0 for a layer of zeros, which no map can move."""
        return self.change / self.weight if self.weight else 0.0


@torch.no_grad()
def drift(concept: Concept, model: nn.Module) -> list[LayerDrift]:
    """Every layer of the concept, in the order in which a picture meets them.

    Raises ConceptError if `model` is not of the architecture that the concept was trained on.
    """
    found = []
    for layer, delta in in_flow_order(concept.deltas(model)).items():
        weight = model.get_parameter(f"{layer}.weight").detach().float()
        spatial = weight.ndim == 4 and weight.shape[2:].numel() > 1
        change = float(torch.linalg.vector_norm(delta(weight)))
        found.append(
            LayerDrift(layer, block_of(layer), spatial, change, float(torch.linalg.vector_norm(weight)))
        )
    return found


def total(drifts: Iterable[LayerDrift]) -> float:
    """The drift of all the layers together, as if they were one: √Σ‖ΔW‖² / √Σ‖W‖²."""
    layers = list(drifts)
    weight = math.hypot(*(item.weight for item in layers))
    return math.hypot(*(item.change for item in layers)) / weight if weight else 0.0


def by_block(drifts: Sequence[LayerDrift]) -> dict[str, float]:
    """`total` of each block that has layers: down, mid, up."""
    groups = {block: [item for item in drifts if item.block == block] for block in (*BLOCKS, OTHER)}
    return {block: total(group) for block, group in groups.items() if group}
