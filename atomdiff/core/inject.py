"""Putting atoms into a model and taking them out, and folding trained ones into its weights.

Works on any `nn.Module` that holds `nn.Conv2d` and `nn.Linear` layers. The model's own Parameter objects are
not written to, unless it is to be spent: attaching wraps layers, folding swaps a Parameter for another, and
both put back the very same objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atomdiff.core.blocks import check_strength
from atomdiff.core.building import (
    DeltaOf,
    basis_for,
    conv_family,
    delta_functions,
    entry,
    has_coefficients,
    linear_family,
)
from atomdiff.core.families import Family
from atomdiff.core.layers import FORMS, AtomConv2d, AtomLayer, AtomLinear
from atomdiff.core.selection import AtomSpec, Selection, layer_digest, select
from atomdiff.errors import AtomdiffError, ConceptError, SettingsError

__all__ = [
    "AtomSpec", "Attached", "DeltaOf", "Folded", "Selection",
    "attach", "attached_to", "basis_for", "delta_functions", "detach", "entry", "fold", "folded_into",
    "has_coefficients", "layer_digest", "mark_folded", "put_back", "refuse_if_busy", "select",
]  # fmt: skip


class Attached:
    """A model whose selected layers carry atoms; made by `attach`, undone by `detach`."""

    def __init__(self, model: nn.Module, spec: AtomSpec, layers: dict[str, AtomLayer]) -> None:
        self.model = model
        self.spec = spec
        self.layers = layers
        self._was_trainable: list[nn.Parameter] = []

    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters, fp32, in module order."""
        return list(self.named_atoms().values())

    def named_atoms(self) -> dict[str, nn.Parameter]:
        """Layer name -> its trained atoms; what is trained beside them is `LAYER#beta` or `LAYER#coef`."""
        return {
            entry(name, part): tensor
            for name, layer in self.layers.items()
            for part, tensor in layer.family.trained().items()
        }

    def read(self) -> dict[str, Tensor]:
        """The same, copied to the CPU in fp32, and learned dictionaries as `LAYER#basis`: all that a concept
        must keep."""
        return {name: tensor.detach().float().cpu().clone() for name, tensor in self._tensors().items()}

    def _tensors(self) -> dict[str, Tensor]:
        return {
            entry(name, part): tensor
            for name, layer in self.layers.items()
            for part, tensor in layer.family.tensors().items()
        }

    @torch.no_grad()
    def write(self, atoms: Mapping[str, Tensor]) -> None:
        """Set every atom. Raises ConceptError unless names and shapes are exactly those of `read`, of which
        dictionaries may be missing; then nothing moved."""
        own = self._tensors()
        missing, unknown = self.named_atoms().keys() - atoms.keys(), atoms.keys() - own.keys()
        if missing or unknown:
            raise ConceptError(
                f"The atoms are for other layers: {len(missing)} of {len(own)} are missing, "
                f"{len(unknown)} are unknown"
                f"{''.join(f' (such as {name!r})' for name in sorted(missing | unknown)[:1])}; "
                "attach with the spec that they were trained with."
            )
        for name, values in atoms.items():
            if values.shape != own[name].shape:
                raise ConceptError(
                    f"The atoms of {name!r} have shape {tuple(values.shape)}, but the layer needs "
                    f"{tuple(own[name].shape)}; attach with the spec that they were trained with."
                )
        for name, values in atoms.items():
            own[name].copy_(values)

    def set_strength(self, strength: float) -> None:
        """Scale every layer's change; 0 is the base model, bit for bit."""
        check_strength(strength)
        for layer in self.layers.values():
            layer.strength = float(strength)

    def reattach(self) -> None:
        """After `detach`: the same layers with the same numbers are in the model again. Raises AtomdiffError
        if others are in it meanwhile."""
        refuse_if_busy(self.model)
        self._was_trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.model.requires_grad_(False)
        _replace(self.model, {id(layer.base_layer): layer for layer in self.layers.values()})
        setattr(self.model, _ATTACHED, self)

    def detach(self) -> None:
        """Put the base layers back, with their old `requires_grad`. Doing it twice is harmless."""
        if attached_to(self.model) is not self:
            return
        _replace(self.model, {id(layer): layer.base_layer for layer in self.layers.values()})
        for parameter in self._was_trainable:
            parameter.requires_grad_(True)
        delattr(self.model, _ATTACHED)


_ATTACHED = "_atomdiff_attached"
_FOLDED = "_atomdiff_folded"


def attached_to(model: nn.Module) -> Attached | None:
    """The atoms in a model."""
    return getattr(model, _ATTACHED, None)


def folded_into(model: nn.Module) -> Any:
    """Whatever changes a model's weights: a `Folded`, or what `mark_folded` was given."""
    return getattr(model, _FOLDED, None)


def mark_folded(model: nn.Module, by: object | None) -> None:
    """Note that `by` changes a model's weights, so that nothing else is attached or folded; None: nothing
    does any more."""
    if by is not None:
        setattr(model, _FOLDED, by)
    elif hasattr(model, _FOLDED):
        delattr(model, _FOLDED)


def attach(
    model: nn.Module,
    spec: AtomSpec | None = None,
    form: str = "auto",
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Attached:
    """Give the selected layers atoms, in place, and freeze everything else of the model.

    `form` is how spatial convolutions compute ("auto", "map", "weight"; see `AtomConv2d`). `seed` is that of
    random first values and of learned dictionaries, and `progress(done, total)` is told of each layer that is
    decomposed. Raises AtomdiffError if the model has atoms or folded concepts already, or nothing is
    selected, and then leaves the model as it was.
    """
    spec = AtomSpec() if spec is None else spec
    refuse_if_busy(model)
    if form not in FORMS:
        raise SettingsError(f"form is one of {', '.join(FORMS)}, not {form!r}.")
    selection = select(model, spec)
    generator = torch.Generator().manual_seed(seed)
    families: dict[str, Family] = {}
    for name, conv in selection.conv.items():
        families[name] = conv_family(conv, spec, generator)
        progress(len(families), len(selection.conv))
    families |= {name: linear_family(layer, spec) for name, layer in selection.linear.items()}

    was_trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    made: dict[str, AtomLayer] = {}
    for name in (name for name, _ in model.named_modules()):  # one module order for both kinds
        if name in selection.conv:
            made[name] = AtomConv2d(selection.conv[name], families[name], form)  # type: ignore[arg-type]
        elif name in selection.linear:
            made[name] = AtomLinear(selection.linear[name], families[name])  # type: ignore[arg-type]
    attached = Attached(model, spec, made)
    attached.reattach()
    attached._was_trainable = was_trainable
    return attached


def detach(model: nn.Module) -> None:
    """Take the atoms out: the very same base modules are back. A model without atoms is left alone."""
    if attached := attached_to(model):
        attached.detach()


def _replace(model: nn.Module, new: dict[int, nn.Module]) -> None:
    """Swap child modules by identity, wherever they are held: diffusers holds some layers under two names."""
    for parent in list(model.modules()):
        if isinstance(parent, AtomLayer):
            continue
        for name, child in parent._modules.items():
            if id(child) in new:
                parent._modules[name] = new[id(child)]


def refuse_if_busy(model: nn.Module) -> None:
    """Raises AtomdiffError for a model with atoms or folded concepts."""
    if attached_to(model) is not None or any(isinstance(m, AtomLayer) for m in model.modules()):
        raise AtomdiffError("The model carries atoms already; call detach(model) first.")
    if (folded := folded_into(model)) is not None:
        if not getattr(folded, "kept", True):
            raise AtomdiffError("The model was drawn with for good, to save memory; load it again.")
        raise AtomdiffError(
            "The model has concepts folded into its weights; call remove() on them first, or "
            "atomdiff.unload(pipe) if they were loaded into a pipeline."
        )


# ------------------------------------------------------------------------------------------- folding


class Folded:
    """Concepts folded into a model's weights, until `remove()` or the end of a `with` block; for good if the
    pristine weights were not kept."""

    def __init__(self, model: nn.Module, kept: bool = True) -> None:
        self.model, self.kept = model, kept
        self._pristine: dict[str, nn.Parameter] = {}

    def _move(self, name: str, layer: nn.Module, weight: Tensor) -> None:
        pristine = layer._parameters["weight"]
        assert pristine is not None
        if self.kept:
            self._pristine[name] = pristine
            layer._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
        else:
            pristine.copy_(weight)  # in its place: memory that is freed in pieces does not all come back

    def remove(self) -> None:
        """Put the pristine weights back, if they were kept: the same Parameter objects, bit for bit. Doing it
        twice is harmless."""
        if not self.kept:
            return
        for name, parameter in self._pristine.items():
            put_back(self.model.get_submodule(name), parameter)
        self._pristine = {}
        if folded_into(self.model) is self:
            mark_folded(self.model, None)

    def __enter__(self) -> Folded:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


def put_back(layer: nn.Module, pristine: nn.Parameter) -> None:
    """Gives a layer the very weight again that it had; the model may have been moved meanwhile."""
    now = layer._parameters["weight"]
    assert now is not None
    if (now.device, now.dtype) != (pristine.device, pristine.dtype):
        pristine.data = pristine.data.to(now.device, now.dtype)
    layer._parameters["weight"] = pristine


@torch.no_grad()
def fold(
    model: nn.Module, deltas: Sequence[tuple[Mapping[str, DeltaOf | Tensor], float]], keep: bool = True
) -> Folded:
    """W' = W + Σ sᵢ ΔWᵢ for every named layer, summed in fp32 from the pristine W and rounded once to W's
    dtype.

    `deltas` pairs, for each concept, {layer name: ΔW or a function of the pristine weight} with a strength. A
    layer whose strengths are all 0 keeps its weight. Raises AtomdiffError if the model has atoms or folded
    concepts, ConceptError if a layer does not exist or a ΔW has the wrong shape; then no weight has changed.

    Without `keep` the pristine weights are overwritten, a layer at a time, so that no second copy is held;
    the model is spent then (and is at an error), and must be loaded again for anything else.
    """
    refuse_if_busy(model)
    terms: dict[str, list[tuple[DeltaOf | Tensor, float]]] = {}
    for layers, strength in deltas:
        if check_strength(strength) != 0:
            for name, delta in layers.items():
                terms.setdefault(name, []).append((delta, float(strength)))
    modules = dict(model.named_modules())
    each = ((name, _moved_weight(name, modules.get(name), parts)) for name, parts in terms.items())
    folded = Folded(model, keep)
    for name, weight in list(each) if keep else each:  # all, before the first is moved
        folded._move(name, modules[name], weight)
    mark_folded(model, folded)
    return folded


def _moved_weight(name: str, module: nn.Module | None, parts: list[tuple[DeltaOf | Tensor, float]]) -> Tensor:
    weight = module._parameters.get("weight") if module is not None else None
    if weight is None:
        raise ConceptError(f"The concept changes a layer {name!r}, which this model does not have.")
    exact = weight.detach().float()
    total = exact.clone()
    for delta, strength in parts:
        change = delta if isinstance(delta, Tensor) else delta(exact)
        if change.shape != weight.shape:
            raise ConceptError(
                f"The concept changes {name!r} by a weight of shape {tuple(change.shape)}, "
                f"but this model's has {tuple(weight.shape)}."
            )
        total.add_(change.to(total), alpha=strength)
    return total.to(weight.dtype)
