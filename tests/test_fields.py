"""Maps that differ over the picture: equal to a blend of the layers of each region."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv2d, linear

from atomdiff.core import subspace
from atomdiff.core.fields import FieldMaps, Masks
from atomdiff.core.layers import sliding_window
from atomdiff.errors import ConceptError


def _masks(regions, height, width, g):
    made = torch.rand(regions, height, width, generator=g)
    return Masks(made / made.sum(0))


@settings(max_examples=25)
@given(
    regions=st.integers(1, 3),
    stride=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    parts=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**31),
)
def test_a_convolution_is_the_blend_of_those_of_each_region(regions, stride, groups, parts, seed) -> None:
    g = torch.Generator().manual_seed(seed)
    conv = nn.Conv2d(4 * groups, 6, 3, stride=stride, padding=1, groups=groups)
    own = FieldMaps(0.3 * torch.randn(regions, parts, 9, 9, generator=g), _masks(regions, 6, 8, g))
    x = torch.randn(2, 4 * groups, 6, 8, generator=g)
    with torch.no_grad():
        W = conv.weight.flatten(2)
        moved = [(W + subspace.combine(W, M)).view(conv.weight.shape) for M in own.maps]
        each = [conv2d(x, w, conv.bias, stride, 1, 1, groups) for w in moved]
        where = own.masks.at(*each[0].shape[2:])
        wanted = sum(m * y for m, y in zip(where, each, strict=True))
        torch.testing.assert_close(own.conv(x, conv, sliding_window(conv)[0]), wanted, rtol=1e-5, atol=1e-5)


def test_a_linear_layer_of_tokens_is_the_blend_of_those_of_each_region() -> None:
    g = torch.Generator().manual_seed(0)
    own = FieldMaps(0.3 * torch.randn(2, 1, 16, 16, generator=g), _masks(2, 4, 6, g))
    weight, bias = torch.randn(8, 12, generator=g), torch.randn(8, generator=g)
    x = torch.randn(3, 6, 12, generator=g)  # 2 × 3 tokens: half the latents
    where = own.masks.at(2, 3).flatten(1)
    wanted = sum(
        where[r][:, None] * linear(x, weight + subspace.apply_block_map(weight, own.maps[r, 0]), bias)
        for r in range(2)
    )
    torch.testing.assert_close(own.linear(x, weight, bias), wanted, rtol=1e-5, atol=1e-5)


@settings(max_examples=25)
@given(height=st.integers(2, 17), width=st.integers(2, 17), down=st.integers(0, 3))
def test_masks_sum_to_one_at_every_size(height, width, down) -> None:
    masks = _masks(3, height, width, torch.Generator().manual_seed(0))
    h, w = height, width
    for _ in range(down):
        h, w = -(-h // 2), -(-w // 2)
    found = masks.of_tokens(h * w)
    assert found.shape == (3, h * w)
    torch.testing.assert_close(found.sum(0), torch.ones(h * w))


def test_tokens_of_no_size_are_refused() -> None:
    with pytest.raises(ConceptError, match="7 tokens"):
        Masks(torch.ones(1, 4, 4)).of_tokens(7)
