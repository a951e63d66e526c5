"""Concepts as vectors: weighted sums, likeness and clash.

All of it is about the maps M of the layers, ΔW = W M, not the numbers that were trained (see `maps`). Layers
are weighed by ‖M‖²/k², k² the side of M: for a W without preferred directions that is ‖ΔW‖²/‖W‖², and it does
not depend on how the blocks of a linear layer are cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from atomdiff.concept.contents import MAX_TEXT, PRECISIONS, Contents
from atomdiff.concept.maps import Maps, aligned
from atomdiff.core.spec import AtomSpec
from atomdiff.errors import ConceptError, SettingsError

AnyConcept = TypeVar("AnyConcept", bound=Contents[Tensor])
CLASH = 0.3
"""Above this two concepts are said to clash: each then acts, in what they share, as if at a strength 0.3
higher or lower. Concepts of different subjects were found to overlap by 0.02 to 0.2."""

# ----------------------------------------------------------------------------------------------- sums


def mix(
    parts: Sequence[tuple[AnyConcept, float]], name: str = "", checksums: Sequence[str] = ()
) -> AnyConcept:
    """Σ wᵢ conceptᵢ: the concept whose change of every layer is the weighted sum of theirs.

    Weights may be negative. Trigger, class word and base are those of the first; its precision is the best of
    theirs; `training` tells the files it was mixed of, where their `checksums` are given (SHA-256). Raises
    SettingsError for weights that are not finite, ConceptError if the concepts are of different bases or
    layers, or their changes are not maps.
    """
    if not parts or not all(math.isfinite(weight) for _, weight in parts):
        raise SettingsError(
            f"A mix takes one concept or more, each with a finite weight, not {[w for _, w in parts]}."
        )
    concepts = [concept for concept, _ in parts]
    spec, layers, maps = aligned(concepts)
    bases = _shared_bases(concepts)
    if bases:
        spec, maps = concepts[0].spec, [_without_token(concept) for concept in concepts]
    if not layers:
        raise ConceptError(
            f"None of the concepts {', '.join(repr(c.title) for c in concepts)} has all layers of the mix, "
            "and files do not name their layers: give them separately when drawing."
        )
    summed: Maps = {}
    for (_, weight), own in zip(parts, maps, strict=True):
        for family, values in own.items():
            term = float(weight) * values
            summed[family] = summed[family] + term if family in summed else term
    first = concepts[0]
    files = zip(checksums, parts, strict=bool(checksums))
    made_of = [(checksum[:12], weight) for checksum, (_, weight) in files]
    return replace(
        first,
        atoms={key: _cut(key, values, spec) for key, values in summed.items()} | _token(parts),
        layers=layers,
        spec=spec,
        name=name or _sum([(concept.title, weight) for concept, weight in parts]),
        training={"mix": _sum(made_of)} if made_of else {},
        bases=bases,
        extra={},
        precision=min((concept.precision for concept in concepts), key=PRECISIONS.index),
    )


def _sum(terms: Sequence[tuple[str, float]]) -> str:
    """`0.7 dog - cat`, of at most as many letters as a text may have."""
    signed = (
        ("- " if weight < 0 else "+ ") + ("" if abs(weight) == 1 else f"{abs(weight):g} ") + what
        for what, weight in terms
    )
    return " ".join(signed).removeprefix("+ ")[:MAX_TEXT]


def _shared_bases(concepts: Sequence[Contents[Tensor]]) -> dict[str, Tensor]:
    """The stored bases that all the concepts are over, if there are such; then their atoms can be added."""
    first = concepts[0]
    shared = all(
        other.spec == first.spec
        and other.bases.keys() == first.bases.keys()
        and all(torch.equal(basis, other.bases[key]) for key, basis in first.bases.items())
        for other in concepts
    )
    return dict(first.bases) if shared else {}


def _without_token(concept: Contents[Tensor]) -> Maps:
    return {family: a for family, a in concept.atoms.items() if not family.startswith("token")}


def _token(parts: Sequence[tuple[Contents[Tensor], float]]) -> Maps:
    """The weighted sum of the trained tokens. Raises ConceptError if they belong to several triggers."""
    trigger, summed = parts[0][0].trigger, Maps()
    for concept, weight in parts:
        for key, vectors in concept.token.items():
            if concept.trigger != trigger or summed.get(key, vectors).shape != vectors.shape:
                raise ConceptError(
                    f"The concept {concept.title!r} has trained the word {concept.trigger!r}, and a mix is "
                    f"called by one word, here {trigger!r}: give them separately when drawing."
                )
            summed[key] = summed.get(key, torch.zeros(())) + float(weight) * vectors
    return summed


def _cut(family: str, maps: Tensor, spec: AtomSpec) -> Tensor:
    """The atoms over the first of the DCT; what is cut off is zero."""
    return maps if family == "linear" else maps[:, : min(spec.num_atoms, maps.shape[1])]


# ------------------------------------------------------------------------------------------ likenesses


@dataclass(frozen=True)
class Comparison:
    """Two concepts, layer by layer: the inner products of their maps over k², and those of each with itself.

    Each is family -> (L,); a family that a concept lacks is zero there.
    """

    both: Mapping[str, Tensor]
    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]

    @property
    def similarity(self) -> float:
        """The cosine between the two, -1 to 1: how alike what they do to the weights is."""
        return sum(float(both.sum()) for both in self.both.values()) / self._norms()

    @property
    def clash(self) -> float:
        """The same with every layer's inner product by its magnitude, 0 to 1: how much they move the same in
        the same layers, be it with or against each other, so that each is drawn by the other's strength."""
        return sum(float(both.abs().sum()) for both in self.both.values()) / self._norms()

    def _norms(self) -> float:
        squares = (sum(float(part.sum()) for part in own.values()) for own in (self.first, self.second))
        return math.sqrt(math.prod(squares)) or 1.0


def compare(first: Contents, second: Contents) -> Comparison:
    """Raises ConceptError if the concepts are of different bases or layers, or their changes are not maps."""
    _, _, (a, b) = aligned([first, second])
    families = sorted({*a, *b})

    def products(x: Maps, y: Maps) -> dict[str, Tensor]:
        return {
            key: (x[key] * y[key]).sum((1, 2)) / x[key].shape[1]
            if key in x and key in y
            else torch.zeros(len((a | b)[key]))
            for key in families
        }

    return Comparison(products(a, b), products(a, a), products(b, b))


def similarity(first: Contents, second: Contents) -> float:
    """The cosine between the maps of two concepts (see `Comparison`). Raises ConceptError like `compare`."""
    return compare(first, second).similarity


def clash(first: Contents, second: Contents) -> float | None:
    """`Comparison.clash`; None for concepts whose layers or families cannot be compared."""
    try:
        return compare(first, second).clash
    except ConceptError:
        return None
