"""Rows of a batch with maps of their own: equal to each alone, in value and in gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv2d, linear

from atomdiff.core import subspace
from atomdiff.core.functional import Plan
from atomdiff.core.inject import AtomSpec, attach
from atomdiff.core.mixed import RowMaps, mixed_conv2d, mixed_linear
from atomdiff.core.mixing import mixing
from atomdiff.core.subspace import Window
from atomdiff.errors import ConceptError

SAME = {"rtol": 1e-5, "atol": 1e-5}


def _same(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal within 1e-5 of the whole's norm: single numbers near zero are sums that cancel."""
    assert got.shape == wanted.shape
    assert (got - wanted).norm() <= 1e-5 * wanted.norm()


FORMS = ("map", "weight")


def _alone(x, own, weight, bias, window, groups):
    rows = []
    for row, number in enumerate(own.index * (len(x) // len(own.index))):
        moved = weight
        if number >= 0:
            W = weight.flatten(2)
            moved = (W + subspace.combine(W, own.maps[number])).view(weight.shape)
        slide = (window.stride, window.padding, window.dilation, groups)
        rows.append(conv2d(x[row : row + 1], moved, bias, *slide))
    return torch.cat(rows)


@settings(max_examples=40)
@given(
    index=st.lists(st.integers(-1, 2), min_size=1, max_size=4),
    repeat=st.integers(1, 2),
    kernel=st.sampled_from([(3, 3), (1, 3), (2, 2)]),
    stride=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    parts=st.sampled_from([1, 2, 4]),
    form=st.sampled_from(FORMS),
    seed=st.integers(0, 2**31),
)
def test_every_row_of_a_convolution_is_as_if_alone(
    index, repeat, kernel, stride, groups, parts, form, seed
) -> None:
    g = torch.Generator().manual_seed(seed)
    k2 = kernel[0] * kernel[1]
    own = RowMaps(0.3 * torch.randn(3, parts, k2, k2, generator=g), tuple(index))
    x = torch.randn(len(index) * repeat, 4 * groups, 6, 5, generator=g)
    weight = torch.randn(6, 4, *kernel, generator=g)
    bias = torch.randn(6, generator=g)
    window = Window(kernel, (stride, 1), (1, 0), (1, 1))
    with torch.no_grad():
        got = mixed_conv2d(x, own, weight, bias, window, groups, Plan(form, form))
        _same(got, _alone(x, own, weight, bias, window, groups))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("index", [(0, 1), (1, -1, 0, 1), (0, 0), (-1, -1)])
def test_gradients_of_a_convolution_are_those_of_each_alone(form, index) -> None:
    g = torch.Generator().manual_seed(0)
    maps = (0.3 * torch.randn(2, 1, 9, 9, generator=g)).requires_grad_()
    x = torch.randn(len(index), 4, 5, 5, generator=g, requires_grad=True)
    weight, window = torch.randn(6, 4, 3, 3, generator=g), Window((3, 3), (1, 1), (1, 1), (1, 1))
    given_back = torch.randn(len(index), 6, 5, 5, generator=g)
    own = RowMaps(maps, index)
    wanted = torch.autograd.grad(
        _alone(x, own, weight, None, window, 1), (x, maps), given_back, allow_unused=True
    )
    got = torch.autograd.grad(
        mixed_conv2d(x, own, weight, None, window, 1, Plan(form, form)), (x, maps), given_back
    )
    _same(got[0], wanted[0])
    _same(got[1], torch.zeros_like(maps) if wanted[1] is None else wanted[1])


@settings(max_examples=20)
@given(index=st.lists(st.integers(-1, 1), min_size=1, max_size=4), seed=st.integers(0, 2**31))
def test_every_row_of_a_linear_layer_is_as_if_alone(index, seed) -> None:
    g = torch.Generator().manual_seed(seed)
    own = RowMaps((0.3 * torch.randn(2, 1, 16, 16, generator=g)).requires_grad_(), tuple(index))
    x = torch.randn(len(index), 3, 8, generator=g, requires_grad=True)
    weight, bias = torch.randn(12, 8, generator=g), torch.randn(12, generator=g)
    moved = [weight + subspace.apply_block_map(weight, own.maps[n, 0]) if n >= 0 else weight for n in index]
    wanted = torch.stack([linear(x[b], moved[b], bias) for b in range(len(index))])
    got = mixed_linear(x, own, weight, bias)
    _same(got, wanted)
    if max(index) >= 0:
        grads = [torch.autograd.grad(y.sum(), (x, own.maps)) for y in (got.sin(), wanted.sin())]
        for a, b in zip(*grads, strict=True):
            _same(a, b)


def test_half_precision_keeps_small_maps() -> None:
    """1 + M would round a small M away in bf16."""
    g = torch.Generator().manual_seed(0)
    own = RowMaps(1e-3 * torch.randn(2, 4, 9, 9, generator=g), (0, 1))
    weight = torch.zeros(1, 4, 3, 3)
    weight[:, :, 1, 1] = 1
    x, window = torch.ones(2, 4, 5, 5), Window((3, 3), (1, 1), (1, 1), (1, 1))
    exact = mixed_conv2d(x, own, weight, None, window, 1, Plan("map", "map"))
    for form in FORMS:
        half = mixed_conv2d(x.bfloat16(), own, weight.bfloat16(), None, window, 1, Plan(form, form))
        torch.testing.assert_close(half.float(), exact, rtol=0.008, atol=0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1, padding_mode="circular")
        self.point = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 8)

    def forward(self, x):
        return self.head(self.point(self.down(self.conv(x).relu())).mean((2, 3)))


SPEC = AtomSpec(linear_atoms="all", linear_block=2)


def _maps(net, seed):
    from atomdiff.core.building import layer_maps

    attached = attach(net, SPEC)
    g = torch.Generator().manual_seed(seed)
    atoms = {name: 0.2 * torch.randn(a.shape, generator=g) for name, a in attached.read().items()}
    attached.detach()
    return layer_maps(net, SPEC, atoms), atoms


def test_a_model_mixed_is_the_model_with_each_attached() -> None:
    torch.manual_seed(0)
    net = Net().requires_grad_(False)
    x = torch.randn(6, 4, 8, 8)
    both = [_maps(net, seed) for seed in (1, 2)]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        plain = net(x)
        wanted = plain.clone()
        for (_, atoms), rows in zip(both, ([0, 3], [2, 5]), strict=True):
            attached = attach(net, SPEC)
            attached.write(atoms)
            wanted[rows] = net(x[rows])
            attached.detach()
        with mixing(net) as mixed:
            assert torch.equal(net(x), plain)
            mixed.rows([both[0][0], {}, both[1][0]])
            torch.testing.assert_close(net(x), wanted, **SAME)
            mixed.rows([{}])
            assert torch.equal(net(x), plain)
        assert torch.equal(net(x), plain)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_what_is_asked_again_is_remembered_until_rows_or_input_change() -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    maps = [{"0": 0.5 * torch.randn(1, 4, 4)} for _ in range(2)]
    x = torch.randn(1, 3, 4)
    with torch.no_grad(), mixing(net, lambda name: True) as mixed:
        mixed.rows(maps[:1])
        first = net(x)
        assert net(x) is first
        x[:] = 1  # the same tensor with other numbers
        assert not torch.equal(net(x), first)
        mixed.rows(maps[1:])
        assert not torch.equal(net(x), first)


def test_refusals() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(1, 1, 1, stride=2))
    own = {"0": torch.zeros(1, 4, 4)}
    with mixing(net) as mixed:
        mixed.rows([own, {}])
        with pytest.raises(ConceptError, match="3 rows cannot repeat the 2 rows"):
            net[0](torch.zeros(3, 1, 4))
        with pytest.raises(ConceptError, match="does not have"):
            mixed.rows([{"1.2": torch.zeros(1, 4, 4)}])
        with pytest.raises(ConceptError, match="stride"):
            mixed.rows([{"1": torch.zeros(1, 1, 1)}])
        with pytest.raises(ConceptError, match="groups of channels"):
            mixed.rows([{"0": torch.zeros(2, 4, 4)}, {"0": torch.zeros(4, 4, 4)}])


def test_blocks_of_two_sizes_share_a_batch() -> None:
    net = nn.Sequential(nn.Linear(8, 8, bias=False))
    maps = [{"0": 0.3 * torch.randn(1, 4, 4)}, {"0": 0.3 * torch.randn(1, 16, 16)}]
    x = torch.randn(2, 3, 8)
    with torch.no_grad(), mixing(net) as mixed:
        mixed.rows(maps)
        both = net(x)
        for row, own in enumerate(maps):
            mixed.rows([own])
            torch.testing.assert_close(net(x[row : row + 1]), both[row : row + 1], **SAME)
