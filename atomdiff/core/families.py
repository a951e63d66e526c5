"""The families: what is trained in a layer, and how its weight follows from that.

A family is a small module. Its parameters are what is trained, zeros (or a zero factor) meaning no change;
`tensors` is what a concept must keep of it; `delta` is ΔW for the pristine weight. Where ΔW is one small map
M applied to W, calling the family gives M, and the layer may compute on the activations instead.

    SpatialAtoms      ΔW = α ΔD, α = W D⁺           convolutions; the closed form (arXiv 2403.00269, eq. 4)
    RecursiveAtoms    ΔD⁽ᵍ⁾ᵢ = Σⱼ β⁽ᵍ⁾ᵢⱼ D1ᵢⱼ           β shared by groups g of input channels (eq. 6)
    SparseAtoms       ΔW = α ΔD, α from the lasso    over a learned dictionary D
    Coefficients      Δα = blocks(α) Dc             beside any of these three (section 3.3)
    BlockAtoms        ΔW = blocks(W) ΔDc            linear and 1×1 layers
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from atomdiff.core import sparse, subspace


class Family(nn.Module):
    """What is trained in a layer. Subclasses hold `atoms` and say how the weight follows.

    Its numbers stay in the dtype they were made in, fp32, when the model around them is cast to half
    precision.
    """

    atoms: nn.Parameter

    def forward(self) -> Tensor | None:
        """The map M, fp32, differentiable in the parameters; None where ΔW is not one map of W."""
        return None

    def delta(self, weight: Tensor) -> Tensor:
        """ΔW for a weight of the layer's shape, fp32, differentiable in the parameters."""
        raise NotImplementedError

    def is_zero(self) -> bool:
        """Whether the layer is exactly its base."""
        return not bool(self.atoms.any())

    def trained(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name; the main one is called ""."""
        return {"": self.atoms}

    def tensors(self) -> dict[str, Tensor]:
        """Everything that ΔW depends on beside the weight and the spec."""
        return dict(self.trained())

    def _apply(self, fn: Any, recurse: bool = True) -> Family:
        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move_only, recurse)


# ------------------------------------------------------------------------------ spatial convolutions


class SpatialFamily(Family):
    """A convolution's weight over atoms: W ≈ α D, D (m, k2) fixed, ΔD what is trained.

    Subclasses say what α is and what ΔD follows from.
    """

    basis: Tensor

    def __init__(self, basis: Tensor, device: torch.device | None = None) -> None:
        super().__init__()
        self.register_buffer("basis", basis.detach().float().cpu().to(device), persistent=False)

    def coefficients(self, weight: Tensor) -> Tensor:
        """α: (c_out, c_in, kh, kw) -> (c_out, c_in, m) fp32."""
        raise NotImplementedError

    def change(self) -> Tensor:
        """ΔD, (m, k2) for all input channels or (G, m, k2) for groups of them."""
        return self.atoms

    def delta(self, weight: Tensor) -> Tensor:
        return subspace.combine(self.coefficients(weight), self.change()).view(weight.shape)


class ClosedForm(SpatialFamily):
    """α = W D⁺, linear in W."""

    inverse: Tensor

    def __init__(self, basis: Tensor, device: torch.device | None = None) -> None:
        super().__init__(basis, device)
        inverse = torch.linalg.pinv(basis.detach().float().cpu())
        self.register_buffer("inverse", inverse.to(device), persistent=False)

    def coefficients(self, weight: Tensor) -> Tensor:
        return weight.float().flatten(2) @ self.inverse


class SpatialAtoms(ClosedForm):
    """ΔW = W D⁺ ΔD: the atoms ΔD (m, k2) of a convolution, over the fixed basis D (m, k2)."""

    def __init__(self, basis: Tensor, device: torch.device | None = None) -> None:
        super().__init__(basis, device)
        self.atoms = nn.Parameter(torch.zeros_like(self.basis))

    def forward(self) -> Tensor | None:
        return self.inverse @ self.atoms

    def delta(self, weight: Tensor) -> Tensor:
        return subspace.apply_spatial_map(weight, self.inverse @ self.atoms)


class RecursiveAtoms(ClosedForm):
    """ΔD⁽ᵍ⁾ᵢ = Σⱼ β⁽ᵍ⁾ᵢⱼ D1ᵢⱼ: atoms of second-level atoms, over the fixed basis D (m, k2).

    `atoms` is D1 (m*m1, k2), zeros at first; `beta` (G, m, m1) starts at random. Input channel c of the
    weight's c_in belongs to group ⌊c G / c_in⌋; G = 1 is one map for the layer, G = c_in the paper's form.
    """

    def __init__(
        self,
        basis: Tensor,
        groups: int,
        second: int,
        generator: Generator,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(basis, device)
        m, k2 = self.basis.shape
        self.atoms = nn.Parameter(torch.zeros(m * second, k2, device=device))
        beta = torch.randn(groups, m, second, generator=generator) / second**0.5
        self.beta = nn.Parameter(beta.to(device))

    def forward(self) -> Tensor | None:
        return self.inverse @ self.change()[0] if len(self.beta) == 1 else None

    def change(self) -> Tensor:
        D1 = self.atoms.unflatten(0, self.beta.shape[1:])
        return torch.einsum("gij,ijs->gis", self.beta, D1)

    def is_zero(self) -> bool:
        return not bool(self.atoms.any() and self.beta.any())

    def trained(self) -> dict[str, nn.Parameter]:
        return {"": self.atoms, "beta": self.beta}


class SparseAtoms(SpatialFamily):
    """ΔW = α ΔD with the sparse code α of W over a learned dictionary D (m, k2), see `sparse`.

    α is not linear in W, so D is kept with what is trained and α is solved for where it is first needed.
    """

    def __init__(self, dictionary: Tensor, sparsity: float, device: torch.device | None = None) -> None:
        super().__init__(dictionary, device)
        self.sparsity = sparsity
        self.atoms = nn.Parameter(torch.zeros_like(self.basis))
        self._known: tuple[Tensor, int, Tensor] | None = None  # weight, version of the dictionary, α

    def coefficients(self, weight: Tensor) -> Tensor:
        known, version = self._known, self.basis._version
        if (
            known is not None
            and known[0] is weight
            and known[1] == version
            and known[2].device == weight.device
        ):
            return known[2]
        alpha = sparse.encode(weight, self.basis.to(weight.device), self.sparsity)
        if isinstance(
            weight, nn.Parameter
        ):  # a layer's own, which is asked for in every step; no copy of one
            self._known = weight, version, alpha
        return alpha

    def tensors(self) -> dict[str, Tensor]:
        return {"": self.atoms, "basis": self.basis}


class Coefficients(Family):
    """Dc on the coefficients of a convolution, beside the atoms of `inner`:

        ΔW = α ΔD + Δα (D + ΔD),    Δα[:, :, i] = blocks(α[:, :, i]) Dc

    `coef` is Dc (kc², kc²), zeros at first; the blocks are kc × kc of output and input channels.
    """

    def __init__(self, inner: SpatialFamily, block: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.coef = nn.Parameter(torch.zeros(block**2, block**2, device=device))

    @property
    def atoms(self) -> nn.Parameter:  # type: ignore[override]
        """The atoms of `inner`."""
        return self.inner.atoms

    @property
    def basis(self) -> Tensor:
        """The basis of `inner`."""
        return self.inner.basis

    def delta(self, weight: Tensor) -> Tensor:
        alpha, change = self.inner.coefficients(weight), self.inner.change()
        moved = subspace.apply_coefficient_map(alpha, self.coef)
        return (subspace.combine(alpha + moved, change) + moved @ self.basis).view(weight.shape)

    def is_zero(self) -> bool:
        return self.inner.is_zero() and not bool(self.coef.any())

    def trained(self) -> dict[str, nn.Parameter]:
        return self.inner.trained() | {"coef": self.coef}

    def tensors(self) -> dict[str, Tensor]:
        return self.inner.tensors() | {"coef": self.coef}


# ------------------------------------------------------------------------------ linear and 1×1 layers


class BlockAtoms(Family):
    """ΔW = blocks(W) ΔDc: the closed-form atoms (kc², kc²) of a linear or 1×1 layer, over the identity
    basis."""

    def __init__(self, block: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.block = block
        self.atoms = nn.Parameter(torch.zeros(block**2, block**2, device=device))

    def forward(self) -> Tensor:
        return self.atoms

    def delta(self, weight: Tensor) -> Tensor:
        return subspace.apply_block_map(weight.flatten(1), self()).view(weight.shape)
