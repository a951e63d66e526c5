"""Concepts as stacks of maps, whatever they were trained over, so that they can be added and compared.

A layer's change is linear in its map, ΔW = W M. The maps of several concepts are written over what any of
them can be written over exactly: the full DCT D for a convolution (D M; D is orthonormal, so norms and inner
products are those of M, and atoms over its first m are there already, with zeros below), and for linear
layers the coarsest blocks of any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from atomdiff.concept.contents import Contents
from atomdiff.core import subspace
from atomdiff.core.selection import LINEAR_PATTERNS
from atomdiff.core.spec import AtomSpec
from atomdiff.errors import ConceptError

Maps = dict[str, Tensor]
"""Family -> the maps of its layers (L, k2, k2); of a convolution's map M it is D M, D the full DCT."""


def maps_of(concept: Contents) -> Maps:
    """The concept's maps, over the full DCT. Raises ConceptError for families whose change is not a map."""
    spec, found = concept.spec, {}
    for family, values in concept.atoms.items():
        atoms = torch.as_tensor(values)
        if family.startswith("token"):
            continue  # changes what a word means, no weight
        if family == "linear":
            found[family] = atoms
        elif family.split(".")[0] == "conv" and spec.is_map:
            found[family] = _over_dct(family, atoms, concept.bases)
        else:
            raise ConceptError(
                f"The concept {concept.title!r} has a family ({spec.conv_family}, {family!r}) that is not "
                "one map a layer, so it cannot be added to others or compared: give both when drawing."
            )
    return found


def _over_dct(family: str, atoms: Tensor, bases: Mapping[str, object]) -> Tensor:
    """Atoms (L, m, k2) over the first m of the DCT, or over a basis of their own, over the full DCT."""
    if family not in bases:
        missing = atoms.shape[2] - atoms.shape[1]
        return nn.functional.pad(atoms, (0, 0, 0, missing)) if missing else atoms
    kernel = _kernel(family, atoms.shape[2])
    dct = subspace.dct_basis(kernel, kernel[0] * kernel[1])
    pairs = zip(torch.as_tensor(bases[family]), atoms, strict=True)
    return torch.stack([dct @ subspace.spatial_map(D, own) for D, own in pairs])


def _kernel(family: str, k2: int) -> tuple[int, int]:
    """The kernel size that a family's name tells, else the square one."""
    _, _, size = family.partition(".")
    kh, kw = map(int, size.split("x")) if size else (math.isqrt(k2), math.isqrt(k2))
    if kh * kw != k2:
        raise ConceptError(
            f"The kernels of {family!r}, of {k2} weights, are not square: their form is unknown."
        )
    return kh, kw


def aligned(concepts: Sequence[Contents]) -> tuple[AtomSpec, str, list[Maps]]:
    """A spec that all fit, the digest of its layers ("" if no concept has all of them), and the maps of each
    under it. Raises ConceptError where the layers cannot be told to be the same."""
    maps = [maps_of(concept) for concept in concepts]
    spec = _as_map(concepts[0])
    for other in concepts[1:]:
        spec = _common_spec(spec, concepts[0], other)
    counts: dict[str, int] = {}
    whole: dict[str, Contents] = {}
    for concept, own in zip(concepts, maps, strict=True):
        if "linear" in own and concept.spec.linear_block != spec.linear_block:
            own["linear"] = subspace.coarser_block_map(own["linear"], spec.linear_block)
        if any(counts.setdefault(family, len(M)) != len(M) for family, M in own.items()):
            raise _different(concepts[0], concept)
    for concept, own in zip(concepts, maps, strict=True):
        if own.keys() == counts.keys():
            whole.setdefault(concept.layers, concept)
    if len(whole) > 1:
        raise _different(*list(whole.values())[:2])
    return spec, next(iter(whole), ""), maps


def _common_spec(spec: AtomSpec, first: Contents, other: Contents) -> AtomSpec:
    """The smallest spec under which `other` can be written as well as all before it."""
    if _architecture(first) != _architecture(other):
        raise ConceptError(
            f"The concepts {first.title!r} ({first.base.architecture}) and {other.title!r} "
            f"({other.base.architecture}) were made for bases with other layers: take concepts of one base."
        )
    a, b = spec, _as_map(other)
    if a == b:
        return a
    changes: dict[str, Any] = {}
    if b.num_atoms:
        if a.num_atoms and a.conv_layers != b.conv_layers:
            raise _different(first, other)
        changes |= {"num_atoms": max(a.num_atoms, b.num_atoms), "conv_layers": b.conv_layers}
    if b.linear_atoms != "none":
        kc = sorted((a.linear_block, b.linear_block)) if a.linear_atoms != "none" else [b.linear_block] * 2
        if kc[1] % kc[0] or (a.linear_atoms != "none" and _pattern(a) != _pattern(b)):
            raise _different(first, other)
        changes |= {"linear_atoms": b.linear_atoms, "linear_block": kc[1]}
    return replace(spec, **changes)


def _as_map(concept: Contents) -> AtomSpec:
    """The spec under which the concept's maps are atoms: over the DCT, and of no more of it than needed."""
    spec = concept.spec
    if spec.basis != "dct":
        kernels = [atoms.shape[2] for family, atoms in concept.atoms.items() if family != "linear"]
        spec = replace(spec, basis="dct", num_atoms=max(kernels, default=0))
    return spec


def _architecture(concept: Contents) -> str:
    return concept.base.architecture.rpartition("-")[2]


def _pattern(spec: AtomSpec) -> str:
    return LINEAR_PATTERNS.get(spec.linear_atoms, spec.linear_atoms)


def _different(first: Contents, other: Contents) -> ConceptError:
    return ConceptError(
        f"The concepts {first.title!r} ({first.spec.conv_layers!r}, {first.spec.linear_atoms!r}) and "
        f"{other.title!r} ({other.spec.conv_layers!r}, {other.spec.linear_atoms!r}) change different layers, "
        "which their files do not name, so they cannot be added or compared: train both on the same layers."
    )
