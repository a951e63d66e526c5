"""Bases, maps and their adjoints against the plain definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import conv2d, unfold

from atomdiff.core import subspace
from atomdiff.core.subspace import Window
from atomdiff.errors import SettingsError

kernels = st.tuples(st.integers(1, 5), st.integers(1, 5))


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(kernels)
@settings(max_examples=25)
def test_dct_basis_is_orthonormal_and_nested(kernel: tuple[int, int]) -> None:
    k2 = kernel[0] * kernel[1]
    full = subspace.dct_basis(kernel, k2)
    assert full.dtype == torch.float32
    torch.testing.assert_close(full @ full.T, torch.eye(k2), atol=1e-6, rtol=0)
    for m in range(1, k2):
        assert torch.equal(subspace.dct_basis(kernel, m), full[:m])


def test_dct_order_is_fixed() -> None:
    """The first atom is flat; the next ones vary along the columns, then along the rows, then along both."""
    basis = subspace.dct_basis((3, 3), 9).view(9, 3, 3)
    torch.testing.assert_close(basis[0], torch.full((3, 3), 1 / 3))
    frequencies = [
        (int(_changes(atom.mean(1))), int(_changes(atom.mean(0)))) for atom in basis[[0, 1, 2, 4, 5]]
    ]
    assert frequencies == [(0, 0), (0, 1), (1, 0), (0, 2), (2, 0)]


def _changes(line: torch.Tensor) -> int:
    signs = line[line.abs() > 1e-6].sign()
    return int((signs[1:] != signs[:-1]).sum())


@pytest.mark.parametrize("m", [1, 4, 9])
def test_svd_basis_spans_the_best_subspace(m: int) -> None:
    weight = _normal(8, 6, 3, 3)
    basis = subspace.svd_basis(weight, m)
    _, values, vectors = torch.linalg.svd(weight.reshape(-1, 9), full_matrices=False)
    torch.testing.assert_close(basis.T @ basis, vectors[:m].T @ vectors[:m], atol=1e-5, rtol=0)
    residual = weight.reshape(-1, 9) - weight.reshape(-1, 9) @ basis.T @ basis
    torch.testing.assert_close(residual.norm(), values[m:].norm(), atol=1e-4, rtol=1e-4)
    assert (basis.gather(1, basis.abs().argmax(1, keepdim=True)) > 0).all()
    assert torch.equal(basis, subspace.svd_basis(weight.clone(), m))


def test_bases_refuse_what_cannot_be() -> None:
    with pytest.raises(SettingsError, match="A kernel of 9 weights can have 1 to 9 atoms, not 10"):
        subspace.dct_basis((3, 3), 10)
    with pytest.raises(SettingsError, match="not 0"):
        subspace.svd_basis(_normal(2, 2, 3, 3), 0)
    with pytest.raises(SettingsError, match="holds NaN or infinite"):
        subspace.svd_basis(torch.full((2, 2, 3, 3), float("nan")), 3)


@given(kernels, st.integers(1, 25), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
@settings(max_examples=25)
def test_map_view_equals_coefficients_times_atoms(
    kernel: tuple[int, int], m: int, dtype: torch.dtype
) -> None:
    """ΔW = α ΔD, whether through α or through M."""
    m = min(m, kernel[0] * kernel[1])
    weight, basis = _normal(5, 3, *kernel).to(dtype), subspace.dct_basis(kernel, m)
    moved = _normal(m, kernel[0] * kernel[1], seed=1)
    alpha = subspace.coefficients(weight, basis)
    plain = torch.einsum("ocm,mt->oct", alpha, moved).view(weight.shape)
    through_map = subspace.apply_spatial_map(weight, subspace.spatial_map(basis, moved))
    assert through_map.dtype == torch.float32
    torch.testing.assert_close(through_map, plain, atol=1e-4, rtol=1e-4)


def test_full_basis_writes_the_weight_exactly() -> None:
    weight = _normal(4, 3, 3, 3)
    for basis in (subspace.dct_basis((3, 3), 9), subspace.svd_basis(weight, 9)):
        alpha = subspace.coefficients(weight, basis)
        torch.testing.assert_close((alpha @ basis).view(weight.shape), weight)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=20)
def test_blocks_there_and_back(rows: int, columns: int, kc: int) -> None:
    weight = _normal(rows * kc, columns * kc)
    blocks = subspace.to_blocks(weight, kc)
    assert blocks.shape == (rows, columns, kc * kc)
    assert torch.equal(blocks[-1, 0].view(kc, kc), weight[-kc:, :kc])
    assert torch.equal(subspace.from_blocks(blocks, kc), weight)


def test_block_map_is_the_map_of_every_block() -> None:
    weight, M = _normal(6, 4), _normal(4, 4, seed=1)
    moved = subspace.apply_block_map(weight, M)
    for i in range(3):
        for j in range(2):
            block = slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2)
            torch.testing.assert_close(moved[block].flatten(), weight[block].flatten() @ M)
    with pytest.raises(SettingsError, match="A 6 × 4 matrix cannot be cut into blocks of side 4"):
        subspace.to_blocks(weight, 4)


def test_a_maps_gradient_is_its_adjoint() -> None:
    """⟨G, W M⟩ = ⟨grad(W, G), M⟩."""
    weight, grad, M = _normal(4, 3, 3, 3), _normal(4, 3, 3, 3, seed=1), _normal(9, 9, seed=2)
    left = (grad * subspace.apply_spatial_map(weight, M)).sum()
    torch.testing.assert_close((subspace.spatial_map_grad(weight, grad) * M).sum(), left)


@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
@settings(max_examples=40)
def test_mixed_shifts_and_their_adjoints(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> None:
    window = Window(kernel, stride, padding, dilation)
    c, b, height, width, k2 = 2, 3, 8, 9, kernel[0] * kernel[1]
    oh, ow = window.output_size(height, width)
    x, M = _normal(c, b, height, width), _normal(k2, k2, seed=1)
    plain = unfold(x.transpose(0, 1), kernel, dilation, padding, stride).view(b, c, k2, oh, ow)
    plain = torch.einsum("st,bctij->csbij", torch.eye(k2) + M, plain)
    z = subspace.mix_shifts(x, M, window)
    torch.testing.assert_close(z, plain, atol=1e-5, rtol=1e-4)

    u = _normal(*z.shape, seed=2)
    grad_x = subspace.mix_shifts_input_grad(u, M, window, height, width)
    torch.testing.assert_close((grad_x * x).sum(), (u * z).sum(), atol=1e-3, rtol=1e-4)
    grad_M = subspace.mix_shifts_map_grad(u, x, window)
    change = z - subspace.mix_shifts(x, torch.zeros_like(M), window)
    torch.testing.assert_close((grad_M * M).sum(), (u * change).sum(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_a_small_map(dtype: torch.dtype) -> None:
    """A change of the diagonal below the dtype's step at 1 is not rounded away."""
    window = Window((3, 3), (1, 1), (1, 1), (1, 1))
    x, M = _normal(4, 1, 8, 8), torch.full((9, 9), 2e-3)
    exact = subspace.mix_shifts(x, M, window) - subspace.mix_shifts(x, 0 * M, window)
    half = subspace.mix_shifts(x.to(dtype), M, window).float() - subspace.mix_shifts(
        x.to(dtype), 0 * M, window
    )
    assert (half.flatten() @ exact.flatten()) / exact.square().sum() == pytest.approx(1, abs=0.2)
    grad = subspace.mix_shifts_map_grad(
        torch.full((4, 9, 1, 8, 8), 300.0, dtype=dtype), x.to(dtype) + 10, window
    )
    assert grad.dtype == torch.float32 and torch.isfinite(grad).all()


def test_map_view_is_the_convolution() -> None:
    """W z, with z the mixed shifts, is the convolution with W + W M."""
    window = Window((3, 3), (1, 1), (1, 1), (1, 1))
    x, weight, M = _normal(1, 3, 6, 6), _normal(5, 3, 3, 3, seed=1), _normal(9, 9, seed=2)
    z = subspace.mix_shifts(x.transpose(0, 1).contiguous(), M, window)
    y = weight.view(5, -1) @ z.view(27, -1)
    expected = conv2d(x, weight + subspace.apply_spatial_map(weight, M), padding=1)
    torch.testing.assert_close(y.view(1, 5, 6, 6), expected, atol=1e-4, rtol=1e-4)
