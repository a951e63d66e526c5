"""Sparse coding: the solution is the lasso's, the same wherever it is computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import BasePassport
from atomdiff.core import inject, sparse
from atomdiff.core.families import SparseAtoms
from atomdiff.core.spec import AtomSpec
from atomdiff.errors import SettingsError
from atomdiff.files.safetensors_file import from_bytes, to_bytes


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
    weight, sparsity = _weight().bfloat16().float(), 0.1  # as it is coded
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
    assert torch.equal(sparse.encode(weight.bfloat16(), D, 0.1), exact)
    halved = sparse.encode(weight.half(), D, 0.1)  # one number in sixteen ends on its neighbour in bf16
    assert float((halved - exact).norm()) < 2**-8 * float(exact.norm())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize("m", [6, 14])
def test_dictionaries_travel_as_they_are(precision: str, m: int) -> None:
    """So α, solved for anew from a file, is the one that was trained over."""
    weight = torch.nn.Conv2d(16, 32, 3).weight
    model = torch.nn.Sequential(torch.nn.Conv2d(16, 32, 3))
    model[0].weight = weight
    spec = AtomSpec(conv_family="sparse", num_atoms=m, linear_atoms="none")
    attached = inject.attach(model, spec)
    trained_over = attached.layers["0"].family.coefficients(weight)
    concept = Concept.of(model, spec, attached.read(), BasePassport("sd1-00000000", (0.5,) * 16))
    read = from_bytes(to_bytes(concept, precision)).bases["conv"][0]
    again = SparseAtoms(read, spec.sparsity).coefficients(weight.bfloat16())
    assert float((again - trained_over).abs().max()) <= 1e-4


def test_dictionaries_are_seeded_and_learned() -> None:
    weight = _weight()
    first, again = _dictionary(weight, 6), _dictionary(weight, 6)
    assert torch.equal(first, again)
    start = sparse.learn_dictionary(weight, 6, 0.1, torch.Generator().manual_seed(1), steps=0)
    missed = [sparse.quality(weight, sparse.encode(weight, D, 0.1), D)[0] for D in (start, first)]
    assert missed[1] < 0.9 * missed[0]
    other = sparse.learn_dictionary(weight, 14, 0.1, torch.Generator().manual_seed(2))
    assert other.shape == (14, 9) and not torch.equal(other, _dictionary(weight, 14))


def test_a_broken_weight_is_refused() -> None:
    with pytest.raises(SettingsError, match="NaN or infinite numbers, so it cannot be coded"):
        sparse.encode(torch.full((2, 2, 3, 3), float("nan")), torch.eye(9), 0.1)
