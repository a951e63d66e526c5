"""Our families against the paper's definitions, written plainly with explicit α and einsum.

Every family is put on convolutions of many kernel sizes, strides, dilations, paddings and groups up to
depthwise (or on linear and 1×1 layers), with random numbers for what it trains. Output, gradient of the input
and gradients of what is trained are compared with those that autograd finds through the plain definition,
relative to their size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from atomdiff.core import sparse, subspace
from atomdiff.core.families import (
    Coefficients,
    RecursiveAtoms,
    SparseAtoms,
    SpatialAtoms,
)
from atomdiff.core.layers import AtomConv2d, AtomLayer, AtomLinear

Definition = Callable[..., Tensor]
"""From what is trained to ΔW, by the definition."""
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)
LIMIT = 1e-5
KERNELS = [(1, 3), (2, 2), (3, 3), (5, 5), (7, 7)]
LAYOUTS: list[dict[str, Any]] = [  # of a convolution of 8 by 16 channels
    {},
    {"stride": 2, "padding": 1},
    {"stride": 2, "groups": 2},
    {"padding": 1, "groups": 2},
    {"padding": 2, "dilation": 2},
    {"padding": "same", "groups": 8, "padding_mode": "circular"},
]


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_family_of_convolutions_is_its_definition(kernel: tuple[int, int]) -> None:
    for layout in LAYOUTS:
        for name, layer, definition, x in _convolutions(kernel, layout):
            assert max(_differences(layer, definition, x)) < LIMIT, (name, layout)


def test_blocks_of_linear_layers_are_their_definition() -> None:
    for kc, groups in itertools.product((1, 2, 4), (0, 1, 2)):
        assert max(_differences(*_linear(kc, groups))) < LIMIT, (kc, groups)


def _convolutions(
    kernel: tuple[int, int], layout: dict[str, Any]
) -> Iterator[tuple[str, AtomLayer, Definition, Tensor]]:
    seeded, k2 = torch.Generator().manual_seed(0), kernel[0] * kernel[1]
    conv = _frozen(nn.Conv2d(8, 16, kernel, **layout))
    c_in, x = 8 // conv.groups, torch.randn(2, 8, 14, 13, generator=seeded)
    for m in sorted({1, k2 // 2 + 1, k2}):
        basis = subspace.dct_basis(kernel, m)
        for form in ("map", "weight"):
            yield "atoms", AtomConv2d(conv, SpatialAtoms(basis), form), _closed(conv, basis), x
        for G in sorted({1, min(3, c_in), c_in}):
            recursive = RecursiveAtoms(basis, G, 3, seeded)
            yield "recursive atoms", AtomConv2d(conv, recursive), _recursive(conv, basis, G), x
        if c_in % 2 == 0:
            both = Coefficients(SpatialAtoms(basis), 2)
            yield "atoms and coefficients", AtomConv2d(conv, both), _coefficients(conv, basis), x
    for m in (k2, 2 * k2):
        D = torch.nn.functional.normalize(torch.randn(m, k2, generator=seeded))
        yield "sparse-coded atoms", AtomConv2d(conv, SparseAtoms(D, 0.1)), _sparse(conv, D), x


def _linear(kc: int, groups: int) -> tuple[AtomLayer, Definition, Tensor]:
    """A linear layer, or with groups a 1×1 convolution."""
    seeded = torch.Generator().manual_seed(1)
    base: nn.Linear | nn.Conv2d = _frozen(nn.Linear(16, 8))
    x = torch.randn(2, 5, 16, generator=seeded)
    if groups:
        base, x = _frozen(nn.Conv2d(16, 8, 1, groups=groups)), torch.randn(2, 16, 4, 3, generator=seeded)
    return AtomLinear(base, kc), _blocks(base, kc), x


# ----------------------------------------------------------------------------------- the definitions


def _closed(conv: nn.Conv2d, D: Tensor) -> Definition:
    """α = W D⁺, ΔW = α ΔD."""
    alpha = torch.einsum("ocs,sm->ocm", conv.weight.flatten(2), torch.linalg.pinv(D))
    return lambda change: torch.einsum("ocm,ms->ocs", alpha, change)


def _recursive(conv: nn.Conv2d, D: Tensor, G: int) -> Definition:
    """ΔW[o, c] = Σᵢ α[o, c, i] Σⱼ β[g(c), i, j] D1[i, j]."""
    alpha = torch.einsum("ocs,sm->ocm", conv.weight.flatten(2), torch.linalg.pinv(D))
    c_in, m = alpha.shape[1], len(D)
    owner = [c * G // c_in for c in range(c_in)]
    return lambda D1, beta: torch.einsum("oci,cij,ijs->ocs", alpha, beta[owner], D1.view(m, -1, D.shape[1]))


def _coefficients(conv: nn.Conv2d, D: Tensor, kc: int = 2) -> Definition:
    """ΔW = (α + Δα)(D + ΔD) − α D, each kc × kc block of α[:, :, i] moved by Dc."""
    alpha = torch.einsum("ocs,sm->ocm", conv.weight.flatten(2), torch.linalg.pinv(D))
    c_out, c_in, m = alpha.shape

    def delta(change: Tensor, Dc: Tensor) -> Tensor:
        blocks = alpha.view(c_out // kc, kc, c_in // kc, kc, m)
        moved = torch.einsum("OpIqm,pqxy->OxIym", blocks, Dc.view(kc, kc, kc, kc)).reshape(alpha.shape)
        return torch.einsum("ocm,ms->ocs", alpha + moved, D + change) - torch.einsum("ocm,ms->ocs", alpha, D)

    return delta


def _sparse(conv: nn.Conv2d, D: Tensor) -> Definition:
    """ΔW = α ΔD, α by plain proximal gradient steps on the lasso with its ridge, in double precision."""
    W, D = conv.weight.flatten(2).bfloat16().double(), D.double()  # so that bases of both dtypes agree
    scale = W.square().mean().sqrt()
    hessian = D @ D.T + sparse.RIDGE * torch.eye(len(D))
    rate = 1 / torch.linalg.eigvalsh(hessian)[-1]
    code = torch.zeros(*W.shape[:2], len(D), dtype=torch.float64)
    for _ in range(3000):
        moved = code - rate * (code @ hessian - W / scale @ D.T)
        code = moved.sign() * (moved.abs() - rate * 0.1).clamp(min=0)
    alpha = (scale * code).float()
    return lambda change: torch.einsum("ocm,ms->ocs", alpha, change)


def _blocks(base: nn.Linear | nn.Conv2d, kc: int) -> Definition:
    """ΔW[Ii, Jj] = Σ W[Ip, Jq] ΔDc[pq, ij]."""
    weight = base.weight.flatten(1)
    W = weight.view(weight.shape[0] // kc, kc, weight.shape[1] // kc, kc)
    return lambda Dc: torch.einsum("IpJq,pqij->IiJj", W, Dc.view(kc, kc, kc, kc)).reshape(weight.shape)


# ----------------------------------------------------------------------------------------- comparing


def _differences(layer: AtomLayer, definition: Definition, x: Tensor) -> list[float]:
    """Output, gradient of the input, gradients of what is trained: ours against the definition's."""
    trained = list(layer.family.trained().values())
    generator = torch.Generator().manual_seed(2)
    for parameter in trained:
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    copies = [parameter.detach().clone().requires_grad_() for parameter in trained]
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    base = layer.base_layer
    weight = base.weight + definition(*copies).view(base.weight.shape)
    plain = torch.func.functional_call(base, {"weight": weight, "bias": base.bias}, (theirs,))
    y = layer(ours)
    grad = torch.randn(y.shape, generator=generator)
    y.backward(grad)
    plain.backward(grad)
    gradients = [_relative(p.grad, copy.grad) for p, copy in zip(trained, copies, strict=True)]
    return [_relative(y, plain), _relative(ours.grad, theirs.grad), max(gradients)]


def _relative(found: Tensor | None, wanted: Tensor | None) -> float:
    assert found is not None and wanted is not None
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))


def _frozen(layer: Layer) -> Layer:
    """The layer with weights of its own, the same on every run."""
    generator = torch.Generator().manual_seed(3)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
    return layer.requires_grad_(False)
