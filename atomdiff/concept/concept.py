"""A trained concept: the few thousand numbers that make a base model draw one thing, and what they mean.

Atoms are kept packed, one tensor a family, in the order in which `inject.select` finds the layers:

    "conv"     (L, m, k2)       ΔD of every spatial convolution; "conv.3x3", "conv.5x5", ... where
                                kernels differ
    "linear"   (L, kc², kc²)    ΔDc of every linear or 1×1 layer
    "token"    (n, 1, d)        what is added to the embeddings of the trigger's tokens; "token2" for a
                                second text encoder

(docs/format.md has the shapes of the other families, and "beta" and "coef", which some have beside these.)

Layer names are not kept: the spec and the base's UNet give them again, and a digest over names and shapes
makes sure that they are the ones the concept was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from atomdiff.concept import algebra, passport
from atomdiff.concept.contents import Contents
from atomdiff.concept.passport import BasePassport
from atomdiff.core import inject, subspace
from atomdiff.core.building import layer_maps, packed_entries
from atomdiff.core.inject import AtomSpec, DeltaOf, Selection
from atomdiff.errors import AtomdiffError, ConceptError


@dataclass(frozen=True, eq=False)
class Concept(Contents[Tensor]):
    """What a trained concept is; made by `Concept.of` after training or by `load_concept` from a file.

    Its fields are those of `Contents`, with fp32 tensors on the CPU. Raises ConceptError if the parts
    contradict each other or a number is not finite.
    """

    def __post_init__(self) -> None:
        for kind in ("atoms", "bases"):
            tensors = {
                key: value.detach().to("cpu", torch.float32).contiguous()
                for key, value in sorted(getattr(self, kind).items())
            }
            object.__setattr__(self, kind, tensors)
        super().__post_init__()

    @classmethod
    def of(
        cls,
        model: nn.Module,
        spec: AtomSpec,
        atoms: Mapping[str, Tensor],
        base: BasePassport,
        *,
        trigger: str = "",
        class_word: str = "",
        name: str = "",
        training: Mapping[str, str | int | float] | None = None,
        token: Mapping[str, Tensor] | None = None,
    ) -> Concept:
        """Packs the atoms that were trained on `model` (attached or not), by layer name as `Attached.read`
        gives them, and the trained `token` if there is one, as `TriggerToken.read` gives it.

        A full-rank svd basis spans what the DCT spans, so its atoms are re-expressed over the DCT and
        nothing else needs to be kept. Raises ConceptError if names or shapes are not those that `spec`
        selects.
        """
        selection = inject.select(model, spec)
        wanted = {*selection.conv, *selection.linear}
        if wanted != {name.partition("#")[0] for name in atoms}:
            odd = min(wanted ^ {name.partition("#")[0] for name in atoms})
            raise ConceptError(
                f"The spec selects {len(wanted)} layers but atoms of {len(atoms)} were given (see {odd!r}); "
                "pack with the spec that was trained."
            )
        bases: dict[str, Tensor] = {}
        if spec.basis == "svd":
            bases = {layer: inject.basis_for(conv, spec) for layer, conv in selection.conv.items()}
            if all(basis.shape[0] == basis.shape[1] for basis in bases.values()):
                atoms = {**atoms, **_over_dct(selection, bases, atoms)}
                spec, bases = replace(spec, basis="dct"), {}
        elif spec.conv_family == "sparse":
            stored = {layer: atoms.get(inject.entry(layer, "basis")) for layer in selection.conv}
            bases = {layer: basis for layer, basis in stored.items() if basis is not None}
        return cls(
            atoms=_pack(selection, spec, atoms) | dict(token or {}),
            layers=selection.digest(),
            spec=spec,
            base=base,
            trigger=trigger,
            class_word=class_word,
            name=name,
            training=dict(training or {}),
            bases=_pack(selection, spec, bases),
        )

    def bind(self, model: nn.Module) -> dict[str, Tensor]:
        """Layer name -> its atoms, for a model with the layers that the concept was trained on.

        Raises ConceptError if the model's layers are others.
        """
        return _unpack(self._selection(model), self.spec, self.atoms)

    def deltas(self, model: nn.Module) -> dict[str, DeltaOf]:
        """Layer name -> the function from its pristine weight to ΔW, as `inject.fold` takes them."""
        selection = self._selection(model)
        bases, atoms = (_unpack(selection, self.spec, packed) for packed in (self.bases, self.atoms))
        return inject.delta_functions(model, self.spec, atoms, bases)

    def layer_maps(self, model: nn.Module) -> dict[str, Tensor]:
        """Layer name -> its map (G, n, n), as `mixing.Mixing` takes them. Raises ConceptError where the
        change is not a map of the weight."""
        selection = self._selection(model)
        bases, atoms = (_unpack(selection, self.spec, packed) for packed in (self.bases, self.atoms))
        return layer_maps(model, self.spec, atoms, bases)

    def check_base(self, base: BasePassport) -> str:
        """ "" if the concept was trained on this very base, a warning if on a relative of it.

        Raises ConceptError, naming both, if the base has another architecture.
        """
        match = self.base.compare(base)
        if match.kind == "same":
            return ""
        made, given = _describe(self.base), _describe(base)
        if match.kind == "other":
            raise ConceptError(
                f"The concept {self.title!r} was made for {made} and cannot be used on {given}, which has "
                "other layers: give the base it was made for."
            )
        if match.distance > passport.APART:
            return (
                f"The concept {self.title!r} was made for {made}; {given} has the same layers but is hardly "
                f"a fine-tune of it, its weights about {match.distance:.0%} away: likeness may suffer badly."
            )
        return (
            f"The concept {self.title!r} was made for {made}; {given} is a fine-tune of it, its weights "
            f"about {match.distance:.1%} away: it works there, but likeness may suffer."
        )

    def __add__(self, other: Concept) -> Concept:
        """Both at once, as one concept; likewise `a - b`, `-a` and `0.7 * a`. See `algebra.mix`."""
        return algebra.mix([(self, 1.0), (other, 1.0)])

    def __sub__(self, other: Concept) -> Concept:
        return algebra.mix([(self, 1.0), (other, -1.0)])

    def __mul__(self, weight: float) -> Concept:
        return algebra.mix([(self, weight)])

    __rmul__ = __mul__

    def __neg__(self) -> Concept:
        return algebra.mix([(self, -1.0)])

    def similarity(self, other: Concept) -> float:
        """The cosine between what the two do to the weights, -1 to 1. See `algebra.Comparison`."""
        return algebra.similarity(self, other)

    def _selection(self, model: nn.Module) -> Selection:
        try:
            selection = inject.select(model, self.spec)
        except AtomdiffError:
            selection = Selection({}, {}, {})
        if selection.digest() != self.layers:
            count = sum(len(tensor) for key, tensor in self.atoms.items() if key[:4] in ("conv", "line"))
            raise ConceptError(
                f"The concept {self.title!r} belongs to {count} layers of {_describe(self.base)}, and this "
                f"model has others ({len(selection.conv) + len(selection.linear)} match its spec): use the "
                "base it was made for."
            )
        return selection


def _pack(selection: Selection, spec: AtomSpec, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One tensor a family; families that `named` has nothing of are left out."""
    packed = {}
    for key, entries in packed_entries(selection, spec).items():
        tensors = [named[name].detach().float().cpu() for name in entries if name in named]
        tensors = [tensor if tensor.ndim == 3 else tensor[None] for tensor in tensors]
        if len({tensor.shape[1:] for tensor in tensors}) > 1:
            raise ConceptError(
                f"The atoms of {key!r} have different shapes, so they were not trained with one spec."
            )
        if tensors:
            packed[key] = torch.cat(tensors)
    return packed


def _unpack(selection: Selection, spec: AtomSpec, packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    families = {key: entries for key, entries in packed_entries(selection, spec).items() if key in packed}
    counts = {key: len(tensor) for key, tensor in packed.items() if not key.startswith("token")}
    if counts != {key: sum(entries.values()) for key, entries in families.items()}:
        raise ConceptError(
            "The concept holds atoms for another number of layers than it says: it is damaged."
        )
    found: dict[str, Tensor] = {}
    for key, entries in families.items():
        parts = packed[key].split(list(entries.values()))
        several = key.startswith("beta")
        found |= {name: part if several else part[0] for name, part in zip(entries, parts, strict=True)}
    return found


def _over_dct(
    selection: Selection, bases: Mapping[str, Tensor], atoms: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The same maps over the full-rank DCT D': D⁺ ΔD = D'⁺ ΔD' gives ΔD' = D' D⁺ ΔD."""
    moved = {}
    for layer, conv in selection.conv.items():
        kernel = (conv.kernel_size[0], conv.kernel_size[1])
        dct = subspace.dct_basis(kernel, kernel[0] * kernel[1])
        moved[layer] = dct @ subspace.spatial_map(bases[layer].cpu(), atoms[layer].cpu())
    return moved


def _describe(base: BasePassport) -> str:
    return f"{base.name!r} ({base.architecture})" if base.name else base.architecture
