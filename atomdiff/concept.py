"""A trained concept: the few thousand numbers that make a base model draw one thing, and what they mean.

Atoms are kept packed, one tensor a family, in the order in which `inject.select` finds the layers:

    "conv"    (L, m, k2)      ΔD of every spatial convolution; "conv.3x3", "conv.5x5", ... where kernels
    differ "linear"  (L, kc², kc²)   ΔDc of every linear or 1×1 layer

Layer names are not kept: the spec and the base's UNet give them again, and a digest over names and shapes
makes sure that they are the ones the concept was trained on.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from atomdiff import inject, subspace
from atomdiff.errors import AtomdiffError, ConceptError
from atomdiff.inject import AtomSpec, DeltaOf, Selection
from atomdiff.passport import BasePassport

MAX_TEXT = 1000  # characters of any one text field: a concept is read by people and shown in lists


@dataclass(frozen=True, eq=False)
class Concept:
    """What a trained concept is; made by `Concept.of` after training or by `Concept.load` from a file.

    `layers` is the digest of the layers that the atoms belong to. `bases` holds, packed like the atoms, the
    basis of every convolution where it follows from the weights and spans a subspace (svd with fewer atoms
    than weights in the kernel); everything else follows from `spec`. `extra` keeps metadata that this
    version does not know. Raises ConceptError if the parts contradict each other or a number is not finite.
    """

    atoms: Mapping[str, Tensor]
    layers: str
    spec: AtomSpec
    base: BasePassport
    trigger: str = ""
    class_word: str = ""
    name: str = ""
    training: Mapping[str, str | int | float] = field(default_factory=dict)
    bases: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind in ("atoms", "bases"):
            tensors = {
                key: value.detach().to("cpu", torch.float32).contiguous()
                for key, value in sorted(getattr(self, kind).items())
            }
            object.__setattr__(self, kind, tensors)
        self._check_texts()
        self._check_tensors()

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
    ) -> Concept:
        """Packs the atoms that were trained on `model` (attached or not), by layer name as `Attached.read`
        gives them.

        A full-rank svd basis spans what the DCT spans, so its atoms are re-expressed over the DCT and
        nothing else needs to be kept. Raises ConceptError if names or shapes are not those that `spec`
        selects.
        """
        selection = inject.select(model, spec)
        wanted = {*selection.conv, *selection.linear}
        if wanted != set(atoms):
            odd = min(wanted ^ set(atoms))
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
        return cls(
            atoms=_pack(selection, atoms),
            layers=selection.digest(),
            spec=spec,
            base=base,
            trigger=trigger,
            class_word=class_word,
            name=name,
            training=dict(training or {}),
            bases=_pack(selection, bases),
        )

    def bind(self, model: nn.Module) -> dict[str, Tensor]:
        """Layer name -> its atoms, for a model with the layers that the concept was trained on.

        Raises ConceptError if the model's layers are others.
        """
        return _unpack(self._selection(model), self.atoms)

    def deltas(self, model: nn.Module) -> dict[str, DeltaOf]:
        """Layer name -> the function from its pristine weight to ΔW, as `inject.fold` takes them."""
        selection = self._selection(model)
        bases = _unpack(selection, self.bases)
        return inject.delta_functions(model, self.spec, _unpack(selection, self.atoms), bases)

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
        return (
            f"The concept {self.title!r} was made for {made}; the weights of {given} are about "
            f"{match.distance:.1%} away from it, so likeness may suffer."
        )

    @property
    def title(self) -> str:
        """What to call the concept: its name, else its trigger."""
        return self.name or self.trigger or "unnamed"

    def num_parameters(self) -> int:
        """How many numbers were trained."""
        return sum(tensor.numel() for tensor in self.atoms.values())

    def size_report(self, dtype: str = "fp16") -> dict[str, int]:
        """Bytes of each part of the file: conv atoms, linear atoms, bases, scales, header with the texts."""
        from atomdiff.formats import safetensors_file  # formats is built on this module

        kinds = {"conv": "conv atoms", "linear": "linear atoms", "basis": "bases"}
        report = dict.fromkeys([*kinds.values(), "scales"], 0)
        for part in safetensors_file.to_parts(self, dtype):
            kind = "scales" if part.name.endswith(".scale") else kinds[part.name.split(".")[0]]
            report[kind] += len(part.data)
        report["header"] = len(safetensors_file.to_bytes(self, dtype)) - sum(report.values())
        return report

    def sha256(self) -> str:
        """The checksum of the file that `save` writes by default (in fp32 where fp16 cannot hold it)."""
        from atomdiff.formats import safetensors_file

        try:
            data = safetensors_file.to_bytes(self, "fp16")
        except ConceptError:
            data = safetensors_file.to_bytes(self, "fp32")
        return hashlib.sha256(data).hexdigest()

    def save(self, path: str | Path, dtype: str = "fp16", max_bytes: int | None = None) -> Path:
        """Writes the concept as safetensors, whole or not at all; equal concepts give equal bytes.

        `dtype` is "fp32", "fp16", "int8" or "int4"; with `max_bytes` it is the best of these, from `dtype`
        down, with which the file is no larger. Raises ConceptError if it cannot be written or nothing fits.
        """
        from atomdiff.formats import safetensors_file

        return safetensors_file.write(self, Path(path), dtype, max_bytes)

    @classmethod
    def load(cls, path: str | Path) -> Concept:
        """Reads a concept file. Raises ConceptError if it is missing, broken, foreign or hostile."""
        from atomdiff.formats import safetensors_file

        return safetensors_file.read(Path(path))

    def _selection(self, model: nn.Module) -> Selection:
        try:
            selection = inject.select(model, self.spec)
        except AtomdiffError:
            selection = Selection({}, {}, {})
        if selection.digest() != self.layers:
            count = sum(len(tensor) for tensor in self.atoms.values())
            raise ConceptError(
                f"The concept {self.title!r} belongs to {count} layers of {_describe(self.base)}, and this "
                f"model has others ({len(selection.conv) + len(selection.linear)} match its spec): use the "
                "base it was made for."
            )
        return selection

    def _check_texts(self) -> None:
        texts = {
            "name": self.name,
            "trigger": self.trigger,
            "class word": self.class_word,
            "base name": self.base.name,
        }
        texts |= {f"training {key}": value for key, value in self.training.items() if isinstance(value, str)}
        for what, text in texts.items():
            _check_text(what, text)
        for what, text in self.extra.items():
            _check_text("metadata key", what)
            _check_text(what, text, limit=len(text))
        for key, value in self.training.items():
            _check_text("training summary", key)
            known = isinstance(value, (str, int, float)) and not isinstance(value, bool)
            if not known or (isinstance(value, float) and not math.isfinite(value)):
                raise ConceptError(
                    f"A training summary holds texts and finite numbers, not {key} = {value!r}."
                )

    def _check_tensors(self) -> None:
        for key, tensor in [*self.atoms.items(), *self.bases.items()]:
            if tensor.ndim != 3 or not tensor.numel():
                raise ConceptError(f"A packed tensor has three dimensions; {key!r} is {tuple(tensor.shape)}.")
            if not torch.isfinite(tensor).all():
                raise ConceptError(f"The numbers {key!r} of the concept {self.title!r} hold NaN or infinity.")
        spec = self.spec
        shapes = {key: tuple(tensor.shape) for key, tensor in self.atoms.items()}
        spatial = {key: shape for key, shape in shapes.items() if key != "linear"}
        side = spec.linear_block**2
        sound = bool(shapes) and all(m == min(spec.num_atoms, k2) > 0 for _, m, k2 in spatial.values())
        if "linear" in shapes:
            sound = sound and spec.linear_atoms != "none" and shapes["linear"][1:] == (side, side)
        bases = {key: tuple(tensor.shape) for key, tensor in self.bases.items()}
        if not sound or bases != (spatial if spec.basis == "svd" else {}):
            raise ConceptError(
                f"The concept {self.title!r} holds atoms {shapes} and bases {bases}, which contradicts its "
                f"{spec}."
            )


def _families(selection: Selection) -> dict[str, list[str]]:
    """Packed tensor name -> the layers in it, in order."""
    by_kernel: dict[tuple[int, ...], list[str]] = {}
    for layer, conv in selection.conv.items():
        by_kernel.setdefault(tuple(conv.kernel_size), []).append(layer)
    if len(by_kernel) == 1:
        families = {"conv": list(selection.conv)}
    else:
        families = {f"conv.{kh}x{kw}": layers for (kh, kw), layers in by_kernel.items()}
    return {**families, "linear": list(selection.linear)} if selection.linear else families


def _pack(selection: Selection, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One tensor a family; families that `named` has nothing of are left out."""
    packed = {}
    for key, layers in _families(selection).items():
        tensors = [named[layer].detach().float().cpu() for layer in layers if layer in named]
        if len({tensor.shape for tensor in tensors}) > 1:
            raise ConceptError(
                f"The atoms of {key!r} have different shapes, so they were not trained with one spec."
            )
        if tensors:
            packed[key] = torch.stack(tensors)
    return packed


def _unpack(selection: Selection, packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    families = {key: layers for key, layers in _families(selection).items() if key in packed}
    if any(len(families.get(key, ())) != len(tensor) for key, tensor in packed.items()):
        raise ConceptError(
            "The concept holds atoms for another number of layers than it says: it is damaged."
        )
    return {layer: packed[key][i] for key, layers in families.items() for i, layer in enumerate(layers)}


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


def _check_text(what: str, text: str, limit: int = MAX_TEXT) -> None:
    """Texts are shown in terminals and pages: no control characters, no lone surrogates, no endless ones."""
    if len(text) > limit:
        raise ConceptError(
            f"The {what[:60]!r} of a concept is {len(text)} characters long; at most {limit} fit."
        )
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        raise ConceptError(f"The {what[:60]!r} of a concept holds control characters: {text[:60]!r}.")
