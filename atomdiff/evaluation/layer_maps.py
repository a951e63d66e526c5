"""What a concept learned, layer by layer, to look at: the map of each layer, its atoms before and after.

Whatever was trained, M is the one map that explains a layer's change best, argmin ‖W M − ΔW‖: for atoms in
the closed form and for maps of blocks it is the learned map itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atomdiff.concept.concept import Concept
from atomdiff.core import inject, subspace
from atomdiff.core.blocks import block_of, in_flow_order, level_of


@dataclass(frozen=True, eq=False)
class LayerMap:
    """One layer. `map` is M, (k2, k2) of a convolution, (kc², kc²) of a linear layer's blocks; it explains
    `share` of ‖ΔW‖². Of a convolution `before` is its basis D (m, k2), the atoms that it starts from."""

    layer: str
    map: Tensor
    share: float
    before: Tensor | None = None
    kernel: tuple[int, int] = (1, 1)

    @property
    def block(self) -> str:
        """down, mid or up."""
        return block_of(self.layer)

    @property
    def level(self) -> str:
        """in, down 0, ..., mid, ..., out."""
        return level_of(self.layer)

    @property
    def after(self) -> Tensor | None:
        """The atoms that it arrived at, D + ΔD = D (I + M)."""
        return None if self.before is None else self.before + self.before @ self.map


@torch.no_grad()
def layer_maps(concept: Concept, model: nn.Module) -> list[LayerMap]:
    """Every layer of the concept, in the order in which a picture meets them.

    Raises ConceptError if `model` is not of the architecture that the concept was trained on.
    """
    found, bases = [], _bases(concept, model)
    for layer, delta in in_flow_order(concept.deltas(model)).items():
        module = model.get_submodule(layer)
        weight = model.get_parameter(f"{layer}.weight").detach().float()
        change = delta(weight)
        if isinstance(module, nn.Conv2d) and tuple(module.kernel_size) != (1, 1):
            M, share = _map(weight.flatten(2).flatten(0, 1), change.flatten(2).flatten(0, 1))
            kernel = (module.kernel_size[0], module.kernel_size[1])
            found.append(LayerMap(layer, M, share, bases[layer], kernel))
        else:
            kc = concept.spec.linear_block
            blocks = [subspace.to_blocks(matrix.flatten(1), kc).flatten(0, 1) for matrix in (weight, change)]
            found.append(LayerMap(layer, *_map(*blocks)))
    return found


def _bases(concept: Concept, model: nn.Module) -> dict[str, Tensor]:
    """Spatial convolution -> its basis D (m, k2): the one that the concept keeps, else that of its spec."""
    stored = {key: iter(packed) for key, packed in concept.bases.items()}
    found = {}
    for layer in concept.bind(model):  # within a family in the order in which the numbers are packed
        module = model.get_submodule(layer) if "#" not in layer else None
        if isinstance(module, nn.Conv2d) and tuple(module.kernel_size) != (1, 1):
            family = "conv" if "conv" in stored else "conv.{}x{}".format(*module.kernel_size)
            basis = next(stored[family]) if stored else inject.basis_for(module, concept.spec)
            found[layer] = basis.cpu()
    return found


def _map(rows: Tensor, changes: Tensor) -> tuple[Tensor, float]:
    """argmin ‖rows M − changes‖ by the normal equations, and the share of ‖changes‖² that it explains."""
    gram, target = (rows.T @ rows).double().cpu(), (rows.T @ changes).double().cpu()
    M = torch.linalg.pinv(gram, rcond=1e-9, hermitian=True) @ target
    whole = float(changes.square().sum(dtype=torch.float64))
    explained = float((M * target).sum())  # ‖rows M‖², by orthogonality of what is left
    return M.float(), min(1.0, explained / whole) if whole else 1.0
