"""A concept cut down to the layers that matter most, so that its file has a given size."""

from __future__ import annotations

import bisect
import math
from dataclasses import replace

import torch
from torch import Tensor

from atomdiff.concept.concept import Concept
from atomdiff.concept.maps import maps_of
from atomdiff.errors import ConceptError
from atomdiff.files import safetensors_file


def trim(concept: Concept, max_bytes: int, dtype: str = "fp16") -> Concept:
    """The concept without the layers that matter least, so that its file in `dtype` has at most `max_bytes`.

    Layers are kept in the order of what they change for a byte: ‖ΔW‖/‖W‖ over how many numbers they take, as
    a W without preferred directions would have it, ‖M‖/k. Not its
    square: layers that were trained together push the same way, so what their loss takes away adds up as
    sizes do. One layer of each family always stays. A concept that fits is given back as it is. Raises
    ConceptError if even those few do not fit.
    """
    if _size(concept, dtype) <= max_bytes:
        return concept
    drifts = _relative_changes(concept)
    worth = [
        (math.sqrt(float(drift)) / concept.atoms[family][i].numel(), family, i)
        for family, of_layers in drifts.items()
        for i, drift in enumerate(of_layers)
    ]
    worth.sort(key=lambda item: (-item[0], item[1:]))
    firsts = {family: next(item for item in worth if item[1] == family) for family in drifts}
    order = [*firsts.values(), *(item for item in worth if item not in firsts.values())]

    def kept(count: int) -> Concept:
        keep = {key: torch.full((len(a), 1, 1), float(key not in drifts)) for key, a in concept.atoms.items()}
        for _, family, i in order[:count]:
            keep[family][i] = 1
        atoms = {family: atoms * keep[family] for family, atoms in concept.atoms.items()}
        bases = {family: basis * keep[family] for family, basis in concept.bases.items()}
        return replace(concept, atoms=atoms, bases=bases, trimmed=True)

    smallest = _size(kept(len(firsts)), dtype)
    if smallest > max_bytes:
        raise ConceptError(
            f"The concept {concept.title!r} with a single layer of each family still takes "
            f"{smallest:,} bytes in {dtype}, more than the {max_bytes:,} asked for: allow more."
        )
    count = bisect.bisect_right(
        range(len(firsts), len(order) + 1), max_bytes, key=lambda count: _size(kept(count), dtype)
    )
    return kept(len(firsts) + count - 1)


def _relative_changes(concept: Concept) -> dict[str, Tensor]:
    """Family -> ‖M‖²/k² of each layer (L,), k² the side of its map M."""
    return {key: M.square().sum((1, 2)) / M.shape[1] for key, M in maps_of(concept).items()}


def _size(concept: Concept, dtype: str) -> int:
    return len(safetensors_file.to_bytes(concept, dtype))
