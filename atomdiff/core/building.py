"""From a spec to the family of a layer, and from stored numbers to the ΔW that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from atomdiff.core import sparse, subspace
from atomdiff.core.families import (
    BlockAtoms,
    Coefficients,
    Family,
    RecursiveAtoms,
    SparseAtoms,
    SpatialAtoms,
    SpatialFamily,
)
from atomdiff.core.layers import why_not_channel_blocks
from atomdiff.core.selection import Selection
from atomdiff.core.spec import PARTS, AtomSpec
from atomdiff.errors import ConceptError

DeltaOf = Callable[[Tensor], Tensor]
"""From a layer's pristine weight to ΔW of the same shape, fp32."""


def conv_family(
    conv: nn.Conv2d, spec: AtomSpec, generator: torch.Generator, basis: Tensor | None = None
) -> SpatialFamily | Coefficients:
    """What `spec` trains in a convolution; `basis` is one that was stored. A dictionary that is not given is
    learned and the layer coded over it, here and now."""
    device, family = conv.weight.device, spec.conv_family
    made: SpatialFamily
    if family == "sparse":
        if basis is None:
            m = spec.atoms_of(conv.kernel_size[0] * conv.kernel_size[1])
            made = SparseAtoms(
                sparse.learn_dictionary(conv.weight, m, spec.sparsity, generator), spec.sparsity, device
            )
            made.coefficients(conv.weight)
        else:
            made = SparseAtoms(basis, spec.sparsity, device)
    else:
        basis = basis_for(conv, spec) if basis is None else basis
        if family == "recursive":
            groups = spec.groups_of(conv.weight.shape[1])
            made = RecursiveAtoms(basis, groups, spec.second_atoms, generator, device)
        else:
            made = SpatialAtoms(basis, device)
    if has_coefficients(conv, spec):
        return Coefficients(made, spec.coef_block, device)
    return made


def linear_family(layer: nn.Linear | nn.Conv2d, spec: AtomSpec) -> BlockAtoms:
    """What `spec` trains in a linear or 1×1 layer."""
    return BlockAtoms(spec.linear_block, layer.weight.device)


def has_coefficients(conv: nn.Conv2d, spec: AtomSpec) -> bool:
    """Whether the blocks of `coef_block` fit the channels of a convolution; elsewhere they are left out."""
    return bool(spec.coef_block) and not why_not_channel_blocks(conv, spec.coef_block)


def entry(layer: str, part: str) -> str:
    """How a part of a layer's family is named in `Attached.read`: the layer itself, or `LAYER#PART`."""
    return f"{layer}#{part}" if part else layer


def packed_entries(selection: Selection, spec: AtomSpec) -> dict[str, dict[str, int]]:
    """Packed tensor name -> what `Attached.read` calls the numbers in it, in order, each with the
    matrices it has: one, or of β one for each group of channels."""
    by_kernel: dict[tuple[int, ...], list[str]] = {}
    for layer, conv in selection.conv.items():
        by_kernel.setdefault(tuple(conv.kernel_size), []).append(layer)
    families: dict[str, dict[str, int]] = {}
    for (kh, kw), layers in by_kernel.items():
        suffix = "" if len(by_kernel) == 1 else f".{kh}x{kw}"
        families["conv" + suffix] = dict.fromkeys(layers, 1)
        if spec.conv_family == "recursive":
            groups = {layer: spec.groups_of(selection.conv[layer].weight.shape[1]) for layer in layers}
            families["beta" + suffix] = {entry(layer, "beta"): n for layer, n in groups.items()}
    cut = [layer for layer, conv in selection.conv.items() if has_coefficients(conv, spec)]
    families["coef"] = {entry(layer, "coef"): 1 for layer in cut}
    families["linear"] = dict.fromkeys(selection.linear, 1)
    return {key: entries for key, entries in families.items() if entries}


def basis_for(conv: nn.Conv2d, spec: AtomSpec) -> Tensor:
    """The basis (m, k2) that `spec` gives a convolution; m is at most the weights of its kernel."""
    kernel = (conv.kernel_size[0], conv.kernel_size[1])
    m = spec.atoms_of(kernel[0] * kernel[1])
    return subspace.dct_basis(kernel, m) if spec.basis == "dct" else subspace.svd_basis(conv.weight, m)


def delta_functions(
    model: nn.Module,
    spec: AtomSpec,
    atoms: Mapping[str, Tensor],
    bases: Mapping[str, Tensor] | None = None,
) -> dict[str, DeltaOf]:
    """For each layer named in `atoms`, the function from its pristine weight to ΔW, as `fold` takes them.

    `bases` gives the stored basis of a layer; the others follow from `spec`. Raises ConceptError for a layer
    that the model does not have.
    """
    return {name: _delta(family) for name, family in _stored_families(model, spec, atoms, bases)}


@torch.no_grad()
def layer_maps(
    model: nn.Module,
    spec: AtomSpec,
    atoms: Mapping[str, Tensor],
    bases: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """For each layer named in `atoms` its map M (G, n, n) fp32 on the CPU, ΔW = W M for each of G groups of
    input channels (see `mixed`). Raises ConceptError as `delta_functions` does, and for families whose change
    is not a map."""
    maps: dict[str, Tensor] = {}
    for name, stored in _stored_families(model, spec, atoms, bases):
        family = stored.cpu()
        M = family.inverse @ family.change() if isinstance(family, RecursiveAtoms) else family()
        if M is None:
            raise ConceptError(
                f"The change of {name!r} ({spec.conv_family}, coef_block {spec.coef_block}) is not a map of "
                "its weight, so the concept cannot share a batch with others: draw it alone."
            )
        maps[name] = M if M.ndim == 3 else M[None]
    return maps


def _stored_families(
    model: nn.Module, spec: AtomSpec, atoms: Mapping[str, Tensor], bases: Mapping[str, Tensor] | None
) -> Iterator[tuple[str, Family]]:
    """Every layer named in `atoms`, with its family. Raises ConceptError as above."""
    modules = dict(model.named_modules())
    for name in dict.fromkeys(key.partition("#")[0] for key in atoms):
        module = modules.get(name)
        if not isinstance(module, nn.Conv2d | nn.Linear):
            raise ConceptError(f"The concept changes a layer {name!r}, which this model does not have.")
        own = {part: atoms[entry(name, part)] for part in PARTS if entry(name, part) in atoms}
        yield name, _stored_family(name, module, spec, own, (bases or {}).get(name))


@torch.no_grad()
def _stored_family(
    name: str, module: nn.Conv2d | nn.Linear, spec: AtomSpec, tensors: dict[str, Tensor], basis: Tensor | None
) -> Family:
    """The family of a layer with the numbers of a concept."""
    family: Family
    if isinstance(module, nn.Conv2d) and tuple(module.kernel_size) != (1, 1):
        if spec.conv_family == "sparse" and basis is None:
            raise ConceptError(f"The concept lacks the dictionary of {name!r}: it is damaged.")
        family = conv_family(module, spec, torch.Generator(), basis)
    else:
        family = linear_family(module, spec)
    trained = family.trained()
    shapes, given = ({part: tuple(t.shape) for part, t in d.items()} for d in (trained, tensors))
    if shapes != given:
        raise ConceptError(f"The concept's numbers for {name!r} are {given}, but its spec means {shapes}.")
    for part, parameter in trained.items():
        parameter.copy_(tensors[part])
    return family


def _delta(family: Family) -> DeltaOf:
    @torch.no_grad()
    def delta(weight: Tensor) -> Tensor:
        return family.to(weight.device).delta(weight)

    return delta
