"""Atom layers against the plain definition, W' = W + α ΔD built explicitly, through the library's layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from atomdiff.core import functional, subspace
from atomdiff.core.functional import choose_plan
from atomdiff.core.layers import AtomConv2d, AtomLayer, AtomLinear
from atomdiff.errors import SettingsError

FORMS = ("map", "weight", "auto")


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _conv(*args: Any, **kwargs: Any) -> nn.Conv2d:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Conv2d(*args, **kwargs)


def _conv_layer(base: nn.Conv2d, form: str = "auto", m: int = 0, scale: float = 0.1) -> AtomConv2d:
    kh, kw = base.kernel_size
    layer = AtomConv2d(base, subspace.dct_basis((kh, kw), m or kh * kw), form)
    with torch.no_grad():
        layer.atoms.copy_(scale * _normal(*layer.atoms.shape, seed=3))
    return layer


def _explicit_conv(layer: AtomConv2d, x: Tensor, atoms: Tensor) -> Tensor:
    """The layer with α and the moved D written out."""
    base, basis = layer.base_layer, layer.family.basis
    alpha = torch.einsum("ocij,mij->ocm", base.weight, basis.view(-1, *base.kernel_size))
    moved = torch.einsum("ocm,mt->oct", alpha, basis + atoms)
    residual = base.weight.flatten(2) - torch.einsum("ocm,mt->oct", alpha, basis)
    return base._conv_forward(x, (residual + moved).view(base.weight.shape), base.bias)


def _agree(layer: AtomLayer, explicit: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> None:
    """Output and both gradients of a layer are those of the explicit computation."""
    atoms = layer.atoms.detach().clone().requires_grad_()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = layer(ours), explicit(theirs, atoms)
    assert y.shape == expected.shape
    grad = _normal(*y.shape, seed=5)
    y.backward(grad)
    expected.backward(grad)
    for found, wanted in ((y, expected), (ours.grad, theirs.grad), (layer.atoms.grad, atoms.grad)):
        tolerance = 1e-5 * max(1.0, float(wanted.detach().abs().max()))
        torch.testing.assert_close(found, wanted, atol=tolerance, rtol=1e-4)


# -------------------------------------------------------------------------------------- convolutions


@given(data=st.data())
@settings(max_examples=40)
def test_conv_equals_explicit_atoms(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    groups, kernel = draw(1, 3), (draw(1, 4), draw(1, 4))
    base = _conv(
        groups * draw(1, 3), groups * draw(1, 3), kernel,
        stride=(draw(1, 3), draw(1, 3)), padding=(draw(0, 3), draw(0, 3)), dilation=(draw(1, 2), draw(1, 2)),
        groups=groups, bias=data.draw(st.booleans()),
    )  # fmt: skip
    layer = _conv_layer(base, data.draw(st.sampled_from(FORMS)), draw(1, kernel[0] * kernel[1]))
    x = _normal(draw(1, 3), base.in_channels, draw(7, 9), draw(7, 9))
    _agree(layer, lambda x, atoms: _explicit_conv(layer, x, atoms), x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_padding_modes(form: str, mode: str) -> None:
    layer = _conv_layer(_conv(2, 4, 3, padding=(1, 2), padding_mode=mode), form)
    _agree(layer, lambda x, atoms: _explicit_conv(layer, x, atoms), _normal(2, 2, 6, 5))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kernel", "padding"), [((3, 3), "same"), ((2, 4), "same"), ((3, 2), "valid")])
def test_named_paddings(form: str, kernel: tuple[int, int], padding: str) -> None:
    layer = _conv_layer(_conv(2, 4, kernel, padding=padding, dilation=(1, 2)), form)
    _agree(layer, lambda x, atoms: _explicit_conv(layer, x, atoms), _normal(2, 2, 8, 9))


@pytest.mark.parametrize("form", FORMS)
def test_one_picture_without_batch_and_channels_last(form: str) -> None:
    layer = _conv_layer(_conv(3, 4, 3, padding=1), form)
    x = _normal(2, 3, 6, 6)
    torch.testing.assert_close(layer(x[0]), layer(x)[0], atol=1e-5, rtol=1e-4)
    expected = layer(x)
    layer.base_layer.to(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), expected, atol=1e-5, rtol=1e-4)


def test_channels_are_mixed_in_parts_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = _conv_layer(_conv(8, 6, 3, padding=1, groups=2), "map")
    monkeypatch.setattr(
        functional, "_AT_ONCE", {True: 2 * 36 * 9 * 3, False: 1}
    )  # 1.5 channels of each group
    _agree(layer, lambda x, atoms: _explicit_conv(layer, x, atoms), _normal(2, 8, 6, 6))


def test_auto_plans_by_pixels_and_rows() -> None:
    few, some, many = (choose_plan(torch.float32, 320, pixels) for pixels in (16, 1024, 4096))
    assert (few.forward, few.backward) == ("map", "map")
    assert (some.forward, some.backward) == ("weight", "map")
    assert (many.forward, many.backward) == ("weight", "weight")
    assert choose_plan(torch.float32, 1, 49).backward == "weight"  # depthwise: z would be k2 times the weight


@pytest.mark.parametrize("form", ["map", "weight"])
def test_nothing_large_is_kept_for_backward(form: str) -> None:
    layer = _conv_layer(_conv(8, 8, 3, padding=1), form)
    x = _normal(2, 8, 16, 16).requires_grad_()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        layer(x)
    assert sum(kept) <= x.numel() + layer.base_layer.weight.numel() + 3 * 81


# ---------------------------------------------------------------------------- linear and 1×1 layers


def _explicit_blocks(weight: Tensor, atoms: Tensor) -> Tensor:
    """W with every kc × kc block moved: W'[Ii, Jj] = W[Ii, Jj] + Σ_{pq} W[Ip, Jq] ΔDc[pq, ij]."""
    kc = round(atoms.shape[0] ** 0.5)
    W = weight.reshape(weight.shape[0] // kc, kc, weight.shape[1] // kc, kc)
    moved = torch.einsum("IpJq,pqij->IiJj", W, atoms.view(kc, kc, kc, kc))
    return (W + moved).reshape(weight.shape)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.booleans())
@settings(max_examples=30)
def test_linear_equals_explicit_blocks(rows: int, columns: int, kc: int, ndim: int, bias: bool) -> None:
    base = nn.Linear(columns * kc, rows * kc, bias=bias)
    layer = AtomLinear(base, kc)
    layer.atoms.data = 0.1 * _normal(kc * kc, kc * kc, seed=3)
    x = _normal(*(2, 5)[: ndim - 1], columns * kc)
    _agree(
        layer, lambda x, atoms: nn.functional.linear(x, _explicit_blocks(base.weight, atoms), base.bias), x
    )


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"groups": 2, "bias": False}, {"padding": 1, "padding_mode": "reflect"}]
)
def test_pointwise_conv_equals_explicit_blocks(options: dict[str, Any]) -> None:
    base = _conv(8, 12, 1, **options)
    layer = AtomLinear(base, 2)
    layer.atoms.data = 0.1 * _normal(4, 4, seed=3)

    def explicit(x: Tensor, atoms: Tensor) -> Tensor:
        weight = _explicit_blocks(base.weight.flatten(1), atoms).view(base.weight.shape)
        return base._conv_forward(x, weight, base.bias)

    _agree(layer, explicit, _normal(2, 8, 5, 6))


# ------------------------------------------------------------------------------- what holds for both


def _layers() -> list[tuple[AtomLayer, Tensor]]:
    pairs: list[tuple[AtomLayer, Tensor]] = [
        (AtomConv2d(_conv(4, 8, 3, padding=1), subspace.dct_basis((3, 3), 9), form), _normal(2, 4, 6, 6))
        for form in FORMS
    ]
    pairs.append((AtomLinear(nn.Linear(8, 4), 4), _normal(3, 8)))
    pairs.append((AtomLinear(_conv(4, 8, 1), 2), _normal(2, 4, 5, 5)))
    return pairs


@pytest.fixture
def layer_and_input(request: pytest.FixtureRequest) -> tuple[AtomLayer, Tensor]:
    return copy.deepcopy(_layers()[request.param])


every_layer = pytest.mark.parametrize("layer_and_input", range(len(_layers())), indirect=True)


@every_layer
def test_untouched_or_strength_zero_is_the_base_bit_for_bit(
    layer_and_input: tuple[AtomLayer, Tensor],
) -> None:
    layer, x = layer_and_input
    base = layer.base_layer(x)
    with torch.no_grad():
        assert torch.equal(layer(x), base)
    layer.atoms.requires_grad_(False)
    assert torch.equal(layer(x), base)
    layer.atoms.requires_grad_(True)
    torch.testing.assert_close(layer(x), base, atol=1e-5, rtol=1e-5)
    layer.atoms.data += 0.1
    assert not torch.allclose(layer(x), base)
    layer.strength = 0.0
    assert torch.equal(layer(x), base)


@every_layer
def test_delta_weight_is_what_the_layer_does(layer_and_input: tuple[AtomLayer, Tensor]) -> None:
    layer, x = layer_and_input
    layer.atoms.data = 0.1 * _normal(*layer.atoms.shape)
    layer.strength = 0.7
    folded = copy.deepcopy(layer.base_layer)
    folded.weight.data += layer.delta_weight()
    assert layer.delta_weight().dtype == torch.float32
    torch.testing.assert_close(layer(x), folded(x), atol=1e-5, rtol=1e-4)


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_base_trains_fp32_atoms(layer_and_input: tuple[AtomLayer, Tensor], dtype: torch.dtype) -> None:
    layer, x = layer_and_input
    layer.atoms.data = 0.1 * _normal(*layer.atoms.shape)
    exact = copy.deepcopy(layer)
    exact(x).square().sum().backward()
    layer.to(dtype)
    assert layer.base_layer.weight.dtype == dtype and layer.atoms.dtype == torch.float32
    assert next(layer.parameters()).dtype == dtype  # what a model reports as its dtype
    y = layer(x.to(dtype))
    assert y.dtype == dtype
    y.float().square().sum().backward()
    assert layer.atoms.grad.dtype == torch.float32
    _close_in_direction(layer.atoms.grad, exact.atoms.grad)


@every_layer
def test_autocast_trains_fp32_atoms(layer_and_input: tuple[AtomLayer, Tensor]) -> None:
    layer, x = layer_and_input
    layer.atoms.data = 0.1 * _normal(*layer.atoms.shape)
    exact = copy.deepcopy(layer)
    exact(x).square().sum().backward()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert layer.atoms.grad.dtype == torch.float32 and x.grad.dtype == torch.float32
    _close_in_direction(layer.atoms.grad, exact.atoms.grad)


def _close_in_direction(found: Tensor, wanted: Tensor) -> None:
    assert (found - wanted).norm() <= 0.03 * wanted.norm()


@every_layer
def test_gradients_reach_the_atoms_only(layer_and_input: tuple[AtomLayer, Tensor]) -> None:
    layer, x = layer_and_input
    layer(x).square().sum().backward()
    assert layer.atoms.grad.abs().sum() > 0
    assert [name for name, p in layer.named_parameters() if p.grad is not None] == ["family.atoms"]


@every_layer
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(layer_and_input: tuple[AtomLayer, Tensor], use_reentrant: bool) -> None:
    layer, x = layer_and_input
    layer.atoms.data = 0.1 * _normal(*layer.atoms.shape)
    x = x.clone().requires_grad_()
    layer(x).square().sum().backward()
    plain = layer.atoms.grad.clone()
    layer.atoms.grad = None
    checkpoint(layer, x, use_reentrant=use_reentrant).square().sum().backward()
    assert torch.equal(layer.atoms.grad, plain)


def test_layers_answer_for_their_base() -> None:
    conv, linear = (
        AtomConv2d(_conv(4, 8, 3, stride=2), subspace.dct_basis((3, 3), 4)),
        AtomLinear(nn.Linear(8, 4), 2),
    )
    assert (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride) == (4, 8, (3, 3), (2, 2))
    assert conv.weight is conv.base_layer.weight and conv.bias is conv.base_layer.bias
    assert (linear.in_features, linear.out_features) == (8, 4)
    with pytest.raises(AttributeError, match="no attribute 'kernel'"):
        _ = conv.kernel
    assert torch.equal(conv(x := _normal(1, 4, 5, 5), 0.5, scale=2.0), conv(x))  # diffusers' LoRA scale


def test_refusals() -> None:
    with pytest.raises(SettingsError, match="form is one of auto, map, weight, not 'fast'"):
        AtomConv2d(_conv(2, 2, 3), subspace.dct_basis((3, 3), 9), "fast")
    with pytest.raises(
        SettingsError, match=r"3×3 convolution needs a basis of shape \(1 to 9, 9\), not \(2, 4\)"
    ):
        AtomConv2d(_conv(2, 2, 3), torch.zeros(2, 4))
    with pytest.raises(SettingsError, match="blocks of side 4 do not divide its 6 × 8 weight"):
        AtomLinear(nn.Linear(8, 6), 4)
    with pytest.raises(SettingsError, match="its kernel is 3×3, not 1×1"):
        AtomLinear(_conv(4, 4, 3), 2)
