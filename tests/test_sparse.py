"""Sparse coding: the solution is the lasso's, the same wherever it is computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atomdiff.core import sparse
from atomdiff.errors import SettingsError


def _weight(seed: int = 0) -> Tensor:
    """A weight of the usual size whose kernels are smooth, as trained ones are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(9, 9, generator=generator)
    return 0.02 * (torch.randn(32, 16, 9, generator=generator) @ mixing / 3).view(32, 16, 3, 3)


def _dictionary(weight: Tensor, m: int, sparsity: float = 0.1) -> Tensor:
    return sparse.learn_dictionary(weight, m, sparsity, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("m", [6, 9, 14])
def test_codes_meet_the_conditions_of_the_optimum(m: int) -> None:
    """∇f(α) = -λ sign(α) where α is not zero, and at most λ where it is."""
    weight, sparsity = _weight(), 0.1
    D = _dictionary(weight, m)
    alpha = sparse.encode(weight, D, sparsity).flatten(0, 1)
    X = weight.flatten(2).flatten(0, 1)
    scale = X.square().mean().sqrt()
    alpha, X = alpha / scale, X / scale
    slope = (alpha @ D - X) @ D.T + sparse.RIDGE * alpha
    used = alpha != 0
    assert 0.05 < used.float().mean() < 1
    assert float((slope + sparsity * alpha.sign())[used].abs().max()) < 1e-4
    assert float(slope[~used].abs().max()) < sparsity + 1e-4


@pytest.mark.parametrize("m", [9, 14])
def test_codes_agree_across_dtypes_and_threads(m: int) -> None:
    weight = _weight()
    D = _dictionary(weight, m)
    exact = sparse.encode(weight, D, 0.1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        assert float((sparse.encode(weight, D, 0.1) - exact).abs().max()) < 1e-6
    finally:
        torch.set_num_threads(threads)
    rounded = weight.bfloat16()
    change = float((rounded.float() - weight).abs().max())
    assert float((sparse.encode(rounded, D, 0.1) - exact).abs().max()) < max(1e-4, 5 * change)
    assert torch.equal(sparse.encode(rounded, D, 0.1), sparse.encode(rounded.float(), D, 0.1))


def test_dictionaries_are_seeded_learned_and_travel_in_fp16() -> None:
    weight = _weight()
    first, again = _dictionary(weight, 6), _dictionary(weight, 6)
    assert torch.equal(first, again) and torch.equal(first.half().float(), first)
    start = sparse.learn_dictionary(weight, 6, 0.1, torch.Generator().manual_seed(1), steps=0)
    missed = [sparse.quality(weight, sparse.encode(weight, D, 0.1), D)[0] for D in (start, first)]
    assert missed[1] < 0.9 * missed[0]
    other = sparse.learn_dictionary(weight, 14, 0.1, torch.Generator().manual_seed(2))
    assert other.shape == (14, 9) and not torch.equal(other, _dictionary(weight, 14))


def test_a_broken_weight_is_refused() -> None:
    with pytest.raises(SettingsError, match="NaN or infinite numbers, so it cannot be coded"):
        sparse.encode(torch.full((2, 2, 3, 3), float("nan")), torch.eye(9), 0.1)
