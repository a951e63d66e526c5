"""Putting atoms into a model and taking them out, and folding trained ones into its weights.

Works on any `nn.Module` that holds `nn.Conv2d` and `nn.Linear` layers. The model's own Parameter objects are
never written to: attaching wraps layers, folding swaps a Parameter for another, and both put back the very
same objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from atomdiff import subspace
from atomdiff.errors import AtomdiffError, ConceptError, SettingsError
from atomdiff.layers import FORMS, AtomConv2d, AtomLayer, AtomLinear
from atomdiff.selection import AtomSpec, Selection, layer_digest, select

__all__ = [
    "AtomSpec", "Attached", "DeltaOf", "Folded", "Selection",
    "attach", "basis_for", "delta_functions", "detach", "fold", "layer_digest", "select",
]  # fmt: skip

DeltaOf = Callable[[Tensor], Tensor]
"""From a layer's pristine weight to ΔW of the same shape, fp32."""

# --------------------------------------------------------------------------------- attach and detach


class Attached:
    """A model whose selected layers carry atoms; made by `attach`, undone by `detach`."""

    def __init__(self, model: nn.Module, spec: AtomSpec, layers: dict[str, AtomLayer]) -> None:
        self.model = model
        self.spec = spec
        self.layers = layers
        self._was_trainable: list[nn.Parameter] = []

    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters, fp32, in module order."""
        return [layer.atoms for layer in self.layers.values()]

    def named_atoms(self) -> dict[str, nn.Parameter]:
        """Layer name -> its trained parameter."""
        return {name: layer.atoms for name, layer in self.layers.items()}

    def read(self) -> dict[str, Tensor]:
        """Layer name -> a copy of its atoms, fp32 on the CPU."""
        return {name: atoms.detach().float().cpu().clone() for name, atoms in self.named_atoms().items()}

    @torch.no_grad()
    def write(self, atoms: Mapping[str, Tensor]) -> None:
        """Set every atom. Raises ConceptError unless names and shapes are exactly those of `read`; then
        nothing moved."""
        own = self.named_atoms()
        missing, unknown = own.keys() - atoms.keys(), atoms.keys() - own.keys()
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
        for layer in self.layers.values():
            layer.strength = _finite(strength)

    def detach(self) -> None:
        """Put the base layers back, with their old `requires_grad`. Doing it twice is harmless."""
        if getattr(self.model, _ATTACHED, None) is not self:
            return
        _replace(self.model, {id(layer): layer.base_layer for layer in self.layers.values()})
        for parameter in self._was_trainable:
            parameter.requires_grad_(True)
        delattr(self.model, _ATTACHED)


_ATTACHED = "_atomdiff_attached"
_FOLDED = "_atomdiff_folded"


def attach(model: nn.Module, spec: AtomSpec | None = None, form: str = "auto") -> Attached:
    """Give the selected layers atoms, in place, and freeze everything else of the model.

    `form` is how spatial convolutions compute ("auto", "map", "weight"; see `AtomConv2d`). Raises
    AtomdiffError if the model has atoms or folded concepts already, or nothing is selected, and then leaves
    the model as it was.
    """
    spec = AtomSpec() if spec is None else spec
    _refuse_if_busy(model)
    if form not in FORMS:
        raise SettingsError(f"form is one of {', '.join(FORMS)}, not {form!r}.")
    selection = select(model, spec)
    bases = {name: basis_for(conv, spec) for name, conv in selection.conv.items()}
    was_trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)

    made: dict[str, AtomLayer] = {}
    for name in (name for name, _ in model.named_modules()):  # one module order for both families
        if name in selection.conv:
            made[name] = AtomConv2d(selection.conv[name], bases[name], form)
        elif name in selection.linear:
            made[name] = AtomLinear(selection.linear[name], spec.linear_block)
    _replace(model, {id(layer.base_layer): layer for layer in made.values()})

    attached = Attached(model, spec, made)
    attached._was_trainable = was_trainable
    setattr(model, _ATTACHED, attached)
    return attached


def detach(model: nn.Module) -> None:
    """Take the atoms out: the very same base modules are back. A model without atoms is left alone."""
    attached = getattr(model, _ATTACHED, None)
    if attached is not None:
        attached.detach()


def basis_for(conv: nn.Conv2d, spec: AtomSpec) -> Tensor:
    """The basis (m, k2) that `spec` gives a convolution; m is at most the weights of its kernel."""
    kernel = (conv.kernel_size[0], conv.kernel_size[1])
    m = min(spec.num_atoms, kernel[0] * kernel[1])
    return subspace.dct_basis(kernel, m) if spec.basis == "dct" else subspace.svd_basis(conv.weight, m)


def _replace(model: nn.Module, new: dict[int, nn.Module]) -> None:
    """Swap child modules by identity, wherever they are held: diffusers holds some layers under two names."""
    for parent in list(model.modules()):
        if isinstance(parent, AtomLayer):
            continue
        for name, child in parent._modules.items():
            if id(child) in new:
                parent._modules[name] = new[id(child)]


def _refuse_if_busy(model: nn.Module) -> None:
    if getattr(model, _ATTACHED, None) is not None or any(isinstance(m, AtomLayer) for m in model.modules()):
        raise AtomdiffError("The model carries atoms already; call detach(model) first.")
    if getattr(model, _FOLDED, None) is not None:
        raise AtomdiffError("The model has concepts folded into its weights; call remove() on them first.")


def _finite(strength: float) -> float:
    strength = float(strength)
    if strength - strength != 0:  # NaN and both infinities
        raise SettingsError(f"A strength is a finite number, not {strength}.")
    return strength


# ------------------------------------------------------------------------------------------- folding


class Folded:
    """Concepts folded into a model's weights, until `remove()` or the end of a `with` block."""

    def __init__(self, model: nn.Module, pristine: dict[str, nn.Parameter]) -> None:
        self.model = model
        self._pristine = pristine

    def remove(self) -> None:
        """Put the pristine weights back: the same Parameter objects, bit for bit. Doing it twice is
        harmless."""
        for name, parameter in self._pristine.items():
            layer = self.model.get_submodule(name)
            now = layer._parameters["weight"]
            assert now is not None
            if (now.device, now.dtype) != (
                parameter.device,
                parameter.dtype,
            ):  # the model was moved meanwhile
                parameter.data = parameter.data.to(now.device, now.dtype)
            layer._parameters["weight"] = parameter
        self._pristine = {}
        if getattr(self.model, _FOLDED, None) is self:
            delattr(self.model, _FOLDED)

    def __enter__(self) -> Folded:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


@torch.no_grad()
def fold(model: nn.Module, deltas: Sequence[tuple[Mapping[str, DeltaOf | Tensor], float]]) -> Folded:
    """W' = W + Σ sᵢ ΔWᵢ for every named layer, summed in fp32 from the pristine W and rounded once to W's
    dtype.

    `deltas` pairs, for each concept, {layer name: ΔW or a function of the pristine weight} with a strength. A
    layer whose strengths are all 0 keeps its weight. Raises AtomdiffError if the model has atoms or folded
    concepts, ConceptError if a layer does not exist or a ΔW has the wrong shape; then no weight has changed.
    """
    _refuse_if_busy(model)
    terms: dict[str, list[tuple[DeltaOf | Tensor, float]]] = {}
    for layers, strength in deltas:
        if _finite(strength) != 0:
            for name, delta in layers.items():
                terms.setdefault(name, []).append((delta, float(strength)))
    modules = dict(model.named_modules())
    moved = {name: _moved_weight(name, modules.get(name), parts) for name, parts in terms.items()}
    pristine: dict[str, nn.Parameter] = {}
    for name, weight in moved.items():
        pristine[name] = modules[name]._parameters["weight"]
        modules[name]._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    folded = Folded(model, pristine)
    setattr(model, _FOLDED, folded)
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
    modules = dict(model.named_modules())
    functions: dict[str, DeltaOf] = {}
    for name, values in atoms.items():
        module = modules.get(name)
        if not isinstance(module, nn.Conv2d | nn.Linear):
            raise ConceptError(f"The concept changes a layer {name!r}, which this model does not have.")
        if isinstance(module, nn.Conv2d) and tuple(module.kernel_size) != (1, 1):
            basis = bases[name] if bases and name in bases else basis_for(module, spec)
            functions[name] = _spatial_delta(subspace.spatial_map(basis.cpu(), values.cpu()))
        else:
            functions[name] = _block_delta(values)
    return functions


def _spatial_delta(M: Tensor) -> DeltaOf:
    return lambda weight: subspace.apply_spatial_map(weight, M.to(weight.device))


def _block_delta(M: Tensor) -> DeltaOf:
    return lambda weight: subspace.apply_block_map(weight.flatten(1), M.to(weight.device)).view(weight.shape)
