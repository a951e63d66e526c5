"""The layers of a model that an `AtomSpec` means."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from atomdiff.core.layers import AtomLayer, why_not_blocks
from atomdiff.core.spec import AtomSpec
from atomdiff.errors import AtomdiffError, SettingsError

LINEAR_PATTERNS = {
    "attn2": r"(^|\.)attn2\.to_(q|k|v|out\.0)$",  # cross-attention in diffusers' UNets: where words come in
    "attn2_kvo": r"(^|\.)attn2\.to_(k|v|out\.0)$",
    "attn2_kv": r"(^|\.)attn2\.to_(k|v)$",
    "attn": r"(^|\.)attn\d*\.to_(q|k|v|out\.0)$",
    "all": r"",
}


# ----------------------------------------------------------------------------------------- selection


@dataclass(frozen=True)
class Selection:
    """The layers that a spec picks from a model, each in module order.

    `skipped` holds what the patterns matched but atoms cannot be given to, with the reason. `clipped` holds
    the convolutions whose kernel has fewer weights than `num_atoms`, with the atoms they get.
    """

    conv: dict[str, nn.Conv2d]
    linear: dict[str, nn.Conv2d | nn.Linear]
    skipped: dict[str, str]
    clipped: dict[str, int] = field(default_factory=dict)

    def digest(self) -> str:
        """`layer_digest` over the selected convolutions, then the linear layers."""
        layers = [*self.conv.items(), *self.linear.items()]
        return layer_digest((name, module.weight.shape) for name, module in layers)


def select(model: nn.Module, spec: AtomSpec) -> Selection:
    """The layers of `model` that `spec` means. An attached model answers with its base layers, under the old
    names.

    Raises SettingsError if a pattern given by the user matches nothing, or every selected kernel is too small
    for `num_atoms`; AtomdiffError if a spec that has layers selects none at all.
    """
    spatial, pointwise = _candidates(model)
    skipped: dict[str, str] = {}
    conv = _matching(spatial, spec.conv_layers, skipped) if spec.num_atoms else {}
    if spec.num_atoms and spec.conv_layers and not conv:
        raise SettingsError(_no_match("conv_layers", spec.conv_layers, "spatial convolution", spatial))
    linear = _select_linear(pointwise, spec, skipped)
    if spec.has_layers and not conv and not linear:
        raise AtomdiffError(
            f"Nothing to train: the model has {_count(spatial, 'spatial convolution')} and "
            f"{_count(pointwise, 'linear or 1×1 layer')}, and none is selected by {spec}."
        )
    sizes = {name: module.kernel_size[0] * module.kernel_size[1] for name, module in conv.items()}
    if sizes and spec.num_atoms > max(map(spec.atoms_of, sizes.values())):
        most = "that many" if spec.conv_family != "sparse" else "four times as many"
        raise SettingsError(
            f"num_atoms is {spec.num_atoms}, but no selected kernel has more than "
            f"{max(sizes.values())} weights; choose at most {most}."
        )
    clipped = {name: spec.atoms_of(k2) for name, k2 in sizes.items() if spec.atoms_of(k2) < spec.num_atoms}
    return Selection(conv, linear, skipped, clipped)


def layer_digest(names_and_shapes: Iterable[tuple[str, Sequence[int]]]) -> str:
    """8 hex digits over the ordered layer names and weight shapes: the same layers or not."""
    lines = [f"{name}:{'x'.join(str(side) for side in shape)}" for name, shape in names_and_shapes]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def _candidates(model: nn.Module) -> tuple[dict[str, nn.Conv2d], dict[str, nn.Conv2d | nn.Linear]]:
    """Every spatial convolution, and every linear or 1×1 layer, by its name in the unattached model."""
    spatial: dict[str, nn.Conv2d] = {}
    pointwise: dict[str, nn.Conv2d | nn.Linear] = {}
    for name, module in model.named_modules():
        name = re.sub(r"(^|\.)base_layer$", "", name) if _inside_atoms(model, name) else name
        if isinstance(module, nn.Conv2d) and tuple(module.kernel_size) != (1, 1):
            spatial[name] = module
        elif isinstance(module, nn.Conv2d | nn.Linear):
            pointwise[name] = module
    return spatial, pointwise


def _inside_atoms(model: nn.Module, name: str) -> bool:
    parent, _, child = name.rpartition(".")
    return child == "base_layer" and isinstance(model.get_submodule(parent), AtomLayer)


def _select_linear(
    pointwise: dict[str, nn.Conv2d | nn.Linear], spec: AtomSpec, skipped: dict[str, str]
) -> dict[str, nn.Conv2d | nn.Linear]:
    if spec.linear_atoms == "none":
        return {}
    matched = _matching(pointwise, LINEAR_PATTERNS.get(spec.linear_atoms, spec.linear_atoms), skipped)
    if not matched and spec.linear_atoms not in LINEAR_PATTERNS:
        raise SettingsError(_no_match("linear_atoms", spec.linear_atoms, "linear or 1×1 layer", pointwise))
    chosen = {}
    for name, module in matched.items():
        reason = why_not_blocks(module, spec.linear_block)
        if reason:
            skipped[name] = reason
        else:
            chosen[name] = module
    return chosen


def _matching(modules: Mapping[str, Any], pattern: str, skipped: dict[str, str]) -> dict[str, Any]:
    chosen = {}
    for name, module in modules.items():
        if not re.search(pattern, name):
            continue
        reason = _unsuitable(name, module)
        if reason:
            skipped[name] = reason
        else:
            chosen[name] = module
    return chosen


def _unsuitable(name: str, module: nn.Module) -> str:
    if not name:
        return "it is the model itself, which has no place to be replaced in"
    if type(module).forward not in (nn.Conv2d.forward, nn.Linear.forward):
        return f"{type(module).__name__} computes in its own way"
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is not a plain parameter"
    if not weight.is_floating_point() or weight.dtype.itemsize < 2:
        return f"its weight is stored as {weight.dtype}"
    return ""


def _no_match(setting: str, pattern: str, kind: str, modules: Mapping[str, Any]) -> str:
    return f"{setting} {pattern!r} matches none of the model's {_count(modules, kind)}."


def _count(modules: Mapping[str, Any], kind: str) -> str:
    names = ", ".join(repr(name) for name in list(modules)[:3])
    plural = "" if len(modules) == 1 else "s"
    return f"{len(modules)} {kind}{plural}" + (f" (such as {names})" if names else "")
