"""Likeness, drift and variety of pictures, by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import normalize

from atomdiff.evaluation.likeness import agreement, diversity, drift, likeness, right, spread
from atomdiff.evaluation.pocket_figures import overall


def vectors(count: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)), dim=1)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_likeness_is_over_all_pairs_and_agreement_over_each(n, m, seed):
    one, other = vectors(n, seed), vectors(m, seed + 1)
    pairs = [float(a @ b) for a in one for b in other]
    assert likeness(one, other) == pytest.approx(np.mean(pairs), abs=1e-6)
    other = vectors(n, seed + 1)
    each = np.mean([float(a @ b) for a, b in zip(one, other, strict=True)])
    assert agreement(one, other) == pytest.approx(each, abs=1e-6)
    assert drift(one, other) == pytest.approx(1 - each, abs=1e-6)
    assert drift(one, one) == pytest.approx(0, abs=1e-6)


def test_spread_is_the_mean_distance_over_pairs_of_different_contexts():
    some = vectors(6)
    pairs = [(i, j) for i in range(6) for j in range(6) if i // 2 != j // 2]
    wanted = 1 - np.mean([float(some[i] @ some[j]) for i, j in pairs])
    assert spread(some, 2) == pytest.approx(wanted, abs=1e-6)
    assert spread(torch.ones(4, 1), 1) == pytest.approx(0.0)


def test_answers_are_held_against_what_their_prompt_wants():
    answers, wanted = torch.tensor([1, 1, 2, 0, 3, 3]), torch.tensor([1, 2, 3])
    assert right(answers, wanted, 2) == pytest.approx(5 / 6)


def test_diversity_is_the_difference_within_a_prompt():
    black, white = (Image.new("RGB", (8, 8), value) for value in ("black", "white"))
    assert diversity([black, white], 2) == pytest.approx(1.0)
    assert diversity([black, black, white, white], 2) == 0.0
    assert diversity([black, white], 1) == 0.0


def test_likeness_leaves_out_what_a_plain_coat_hides():
    assert overall({"colour": 1.0, "pattern": 0.5, "identity": 0.0, "class": 1.0}) == 0.5
    assert overall({"colour": 1.0, "pattern": 0.5, "identity": 0.0, "class": 0.5}) == 0.25
    assert overall({"style": 0.25, "class": 1.0}) == 0.25
