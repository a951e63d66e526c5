"""Concepts as vectors: weighted sums, likeness and clash, neighbours, and a file cut down to what matters.

All of it is about the maps M of the layers, ΔW = W M, not the numbers that were trained (see `maps`). Layers
are weighed by ‖M‖²/k², k² the side of M: for a W without preferred directions that is ‖ΔW‖²/‖W‖², and it does
not depend on how the blocks of a linear layer are cut.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from atomdiff.concept.concept import Concept
from atomdiff.concept.contents import MAX_TEXT, Contents
from atomdiff.concept.maps import Maps, aligned, maps_of, unshared
from atomdiff.core import pool
from atomdiff.core.spec import AtomSpec
from atomdiff.errors import ConceptError, SettingsError
from atomdiff.files import card, quantization, safetensors_file
from atomdiff.files.header import MAX_DATA, parse_header

CLASH = 0.3
"""Above this two concepts are said to clash: each then acts, in what they share, as if at a strength 0.3
higher or lower. Concepts of different subjects overlap by 0.02 to 0.2; `benchmarks.clash`
prints it."""

# ----------------------------------------------------------------------------------------------- sums


def mix(parts: Sequence[tuple[Concept, float]], name: str = "") -> Concept:
    """Σ wᵢ conceptᵢ: the concept whose change of every layer is the weighted sum of theirs.

    Weights may be negative. Trigger, class word and base are those of the first; `training` tells what it was
    mixed of; its precision is the best of theirs. Raises SettingsError for weights that are not finite,
    ConceptError if the concepts are of different bases or layers, or their changes are not maps.
    """
    if not parts or not all(math.isfinite(weight) for _, weight in parts):
        raise SettingsError(
            f"A mix takes one concept or more, each with a finite weight, not {[w for _, w in parts]}."
        )
    concepts = [concept for concept, _ in parts]
    spec, layers, maps = aligned(concepts)
    bases = _shared_bases(concepts)
    if bases or _share_alike(concepts):
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
    return Concept(
        atoms={key: _cut(key, values, spec) for key, values in summed.items()} | _token(parts),
        layers=layers,
        spec=spec,
        base=first.base,
        trigger=first.trigger,
        class_word=first.class_word,
        name=name or _sum([(concept.title, weight) for concept, weight in parts]),
        training={"mix": _sum([(concept.sha256()[:12], weight) for concept, weight in parts])},
        bases=bases,
        trimmed=any(concept.trimmed for concept in concepts),
        precision=min((concept.precision for concept in concepts), key=quantization.PRECISIONS.index),
    )


def _sum(terms: Sequence[tuple[str, float]]) -> str:
    """`0.7 dog - cat`, of at most as many letters as a text may have."""
    signed = (
        ("- " if weight < 0 else "+ ") + ("" if abs(weight) == 1 else f"{abs(weight):g} ") + what
        for what, weight in terms
    )
    return " ".join(signed).removeprefix("+ ")[:MAX_TEXT]


def _shared_bases(concepts: Sequence[Concept]) -> dict[str, Tensor]:
    """The stored bases that all the concepts are over, if there are such; then their atoms can be added."""
    first = concepts[0]
    shared = all(
        other.spec == first.spec
        and other.bases.keys() == first.bases.keys()
        and all(torch.equal(basis, other.bases[key]) for key, basis in first.bases.items())
        for other in concepts
    )
    return dict(first.bases) if shared else {}


def _share_alike(concepts: Sequence[Concept]) -> bool:
    """Whether all are made of pools of one form, which can be added as they are."""
    first = concepts[0].spec
    alike = all(concept.spec == first and not concept.bases for concept in concepts)
    return first.linear_family == "shared" and alike


def _without_token(concept: Concept) -> Maps:
    return {family: a for family, a in concept.atoms.items() if not family.startswith("token")}


def _token(parts: Sequence[tuple[Concept, float]]) -> Maps:
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

    def layers(self) -> dict[str, Tensor]:
        """Family -> the cosine in each layer; 0 where one of the two does nothing."""
        return {
            family: both / (self.first[family] * self.second[family]).sqrt().clamp(min=1e-30)
            for family, both in self.both.items()
        }

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


def neighbours(
    concept: Contents, where: str | Path | Iterable[Path], count: int = 10
) -> list[tuple[Path, float]]:
    """The concept files most like this one, best first, with their similarity.

    `where` is a folder, of which every .safetensors file below it is read, or the files. Nothing is indexed:
    a file takes a fraction of a millisecond, so the answer is exact and never stale. Left out are files that
    are no concepts, or that cannot be compared with this one. Raises ConceptError if the folder is none.
    """
    if isinstance(where, str | Path):
        if not Path(where).is_dir():
            raise ConceptError(f"There is no folder {str(where)!r}: give one that holds concept files.")
        where = sorted(Path(where).rglob("*.safetensors"))
    likeness, found = _LikenessTo(concept), []
    for path in where:
        try:
            if path.stat().st_size <= MAX_DATA:
                found.append((path, likeness(card.concept_bytes(path))))
        except (ConceptError, OSError):
            continue
    return sorted((pair for pair in found if math.isfinite(pair[1])), key=lambda pair: -pair[1])[:count]


class _LikenessTo:
    """The similarity of a concept to many files: where one file could be compared, the next of the same base,
    spec and layers needs only its numbers, since atoms over the DCT are compared as they are, and pools of
    one form by how often their numbers stand in the maps."""

    def __init__(self, concept: Contents) -> None:
        self.concept = concept
        self.own = {key: np.asarray(maps) for key, maps in maps_of(concept).items()}
        self.uses: np.ndarray | None = None
        if concept.spec.linear_family == "shared":
            self.own["linear"] = np.asarray(concept.atoms["linear"])
            layers, _, numbers = self.own["linear"].shape
            self.uses = pool.uses(layers, concept.spec.linear_block, numbers).numpy()
        self.norm = math.sqrt(sum(self._product(key, own, own) for key, own in self.own.items()))
        self.known: dict[tuple[str | None, ...], bool] = {}

    def __call__(self, data: bytes) -> float:
        """Raises ConceptError for a file that is no concept or cannot be compared."""
        metadata, entries, start = parse_header(data)
        kind = tuple(metadata.get(key) for key in ("base", "spec", "layers"))
        if self.known.get(kind):
            shapes = safetensors_file.int4_shapes(metadata)
            return self._quick(quantization.decode(entries, memoryview(data)[start:], shapes)[1])
        said = safetensors_file.contents(data)
        found = similarity(self.concept, said)
        linear = [
            (s.linear_family == "shared", s.linear_block, s.shared_numbers)
            for s in (self.concept.spec, said.spec)
        ]
        plain = said.spec.is_map and said.spec.basis == "dct" and not said.trimmed
        self.known[kind] = plain and ("linear" not in self.own or linear[0] == linear[1])
        return found

    def _quick(self, atoms: Mapping[str, np.ndarray]) -> float:
        inner, square = 0.0, 0.0
        for key, values in atoms.items():
            if key in self.own:
                own = self.own[key][:, : values.shape[1]]
                if own.shape != values.shape:
                    raise ConceptError(f"The numbers {key!r} have the shape of another concept's.")
                inner += self._product(key, own, values)
            if not key.startswith("token"):
                square += self._product(key, values, values)
        return inner / ((self.norm * math.sqrt(square)) or 1.0)

    def _product(self, key: str, a: np.ndarray, b: np.ndarray) -> float:
        """The inner product of the maps of two arrays, over k²."""
        if key == "linear" and self.uses is not None:
            return float(np.vdot(a * self.uses, b)) / self.concept.spec.linear_block**2
        return float(np.vdot(a, b)) / a.shape[2]


# ------------------------------------------------------------------------------------------------ trim


def trim(concept: Concept, max_bytes: int, dtype: str = "fp16", unet: nn.Module | None = None) -> Concept:
    """The concept without the layers that matter least, so that its file in `dtype` has at most `max_bytes`.

    Layers are kept in the order of what they change for a byte: ‖ΔW‖/‖W‖ over how many numbers they take, on
    the weights of `unet` if given, else by the map alone (see the module), which is nearly as good. Not its
    square: layers that were trained together push the same way, so what their loss takes away adds up as
    sizes do. One layer of each family always stays. A concept that fits is given back as it is. Raises
    ConceptError if even those few do not fit.
    """
    if _size(concept, dtype) <= max_bytes:
        return concept
    if concept.spec.linear_family == "shared":
        coarser = "" if dtype == "int4" else "save it in int4, or "
        raise ConceptError(
            f"The concept {concept.title!r} takes {_size(concept, dtype):,} bytes in {dtype}, and its layers "
            f"share their numbers, so none can be left out: {coarser}train with a smaller --size."
        )
    drifts = relative_changes(concept, unet)
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


@torch.no_grad()
def relative_changes(concept: Concept, unet: nn.Module | None = None) -> dict[str, Tensor]:
    """Family -> ‖ΔW‖²/‖W‖² of each layer (L,): on the weights of `unet`, or what a W without preferred
    directions would have, ‖M‖²/k². Raises ConceptError if the model has other layers."""
    concept = unshared(concept)
    maps = maps_of(concept)
    if unet is None:
        return {key: M.square().sum((1, 2)) / M.shape[1] for key, M in maps.items()}
    places, start = {}, 0
    for family in maps:
        atoms = concept.atoms[family]
        places[family] = torch.arange(start, start + len(atoms))[:, None, None].expand(atoms.shape).float()
        start += len(atoms)
    found = torch.zeros(start)
    numbered = replace(concept, atoms=places).bind(unet)
    for layer, delta in concept.deltas(unet).items():
        weight = unet.get_submodule(layer).get_parameter("weight").detach().float()
        found[int(numbered[layer].flatten()[0])] = delta(weight).square().sum() / weight.square().sum()
    return dict(zip(places, found.split([len(place) for place in places.values()]), strict=True))


def _size(concept: Concept, dtype: str) -> int:
    return len(safetensors_file.to_bytes(concept, dtype))
