"""The concept files of a folder that are most like a concept (see `concept.algebra`), without an index."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from atomdiff.concept.algebra import similarity
from atomdiff.concept.contents import Contents
from atomdiff.concept.maps import maps_of
from atomdiff.errors import ConceptError
from atomdiff.files import card, quantization, safetensors_file
from atomdiff.files.header import MAX_DATA, parse_header


def most_similar(
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
    spec and layers needs only its numbers, since atoms over the DCT are compared as they are."""

    def __init__(self, concept: Contents) -> None:
        self.concept = concept
        self.own = {key: np.asarray(maps) for key, maps in maps_of(concept).items()}
        self.norm = math.sqrt(sum(_product(own, own) for own in self.own.values()))
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
        plain = said.spec.is_map and said.spec.basis == "dct"
        same = self.concept.spec.linear_block == said.spec.linear_block
        self.known[kind] = plain and ("linear" not in self.own or same)
        return found

    def _quick(self, atoms: Mapping[str, np.ndarray]) -> float:
        inner, square = 0.0, 0.0
        for key, values in atoms.items():
            if key in self.own:
                own = self.own[key][:, : values.shape[1]]
                if own.shape != values.shape:
                    raise ConceptError(f"The numbers {key!r} have the shape of another concept's.")
                inner += _product(own, values)
            if not key.startswith("token"):
                square += _product(values, values)
        return inner / ((self.norm * math.sqrt(square)) or 1.0)


def _product(a: np.ndarray, b: np.ndarray) -> float:
    """The inner product of the maps of two arrays (L, r, k²), over k²."""
    return float(np.vdot(a, b)) / a.shape[2]
