"""Every family against its equation written out, on single layers and on a whole UNet, and in the file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import BasePassport
from atomdiff.core import inject, subspace
from atomdiff.core.families import (
    BlockAtoms,
    Coefficients,
    RecursiveAtoms,
    SparseAtoms,
)
from atomdiff.core.inject import AtomSpec
from atomdiff.core.layers import AtomConv2d, AtomLayer, AtomLinear
from atomdiff.errors import ConceptError, SettingsError
from atomdiff.files.safetensors_file import from_bytes, size_report, to_bytes

PASSPORT = BasePassport("sd1-1a2b3c4d", (0.5,) * 16, "sd15")
SPECS = {
    "blocks": AtomSpec(num_atoms=0, linear_atoms="all", linear_block=2),
    "recursive": AtomSpec(conv_family="recursive", second_atoms=2, linear_atoms="none"),
    "recursive groups": AtomSpec(num_atoms=4, conv_family="recursive", channel_groups=3, linear_atoms="none"),
    "recursive channels": AtomSpec(conv_family="recursive", channel_groups=0, linear_atoms="none"),
    "coefficients": AtomSpec(num_atoms=6, coef_block=2, linear_atoms="none"),
    "sparse": AtomSpec(num_atoms=6, conv_family="sparse", linear_atoms="none"),
    "overcomplete": AtomSpec(num_atoms=12, conv_family="sparse", sparsity=0.1, linear_atoms="none"),
    "everything": AtomSpec(conv_family="recursive", channel_groups=2, coef_block=4, linear_atoms="all"),
}
every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _conv(*args: Any, **kwargs: Any) -> nn.Conv2d:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Conv2d(*args, **kwargs)


def _move(layer: AtomLayer, scale: float = 0.1) -> None:
    """Random numbers for everything that is trained."""
    with torch.no_grad():
        for i, parameter in enumerate(layer.family.trained().values()):
            parameter.copy_(scale * _normal(*parameter.shape, seed=3 + i))


def _agree(layer: AtomLayer, explicit: Callable[..., Tensor], x: Tensor) -> None:
    """Output and every gradient of a layer are those of `explicit(x, *parameters)`."""
    trained = layer.family.trained().values()
    copies = [p.detach().clone().requires_grad_() for p in trained]
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = layer(ours), explicit(theirs, *copies)
    grad = _normal(*y.shape, seed=5)
    y.backward(grad)
    expected.backward(grad)
    pairs = [(y, expected), (ours.grad, theirs.grad)]
    for found, wanted in pairs + [(p.grad, c.grad) for p, c in zip(trained, copies, strict=True)]:
        torch.testing.assert_close(
            found, wanted, atol=1e-5 * max(1.0, float(wanted.detach().abs().max())), rtol=1e-4
        )


# ------------------------------------------------------------------------------- one layer, by hand


@given(st.data())
@settings(max_examples=15)
def test_recursive(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    groups, kernel, c_in = draw(1, 2), (draw(1, 3), draw(2, 3)), draw(1, 5)
    base = _conv(groups * c_in, groups * 2, kernel, stride=draw(1, 2), padding=draw(0, 2), groups=groups)
    basis = subspace.dct_basis(kernel, draw(1, kernel[0] * kernel[1]))
    G, m, m1 = draw(1, c_in), len(basis), draw(1, 3)
    layer = AtomConv2d(base, RecursiveAtoms(basis, G, m1, torch.Generator().manual_seed(0)))
    _move(layer, 0.3)

    def explicit(x: Tensor, atoms: Tensor, beta: Tensor) -> Tensor:
        alpha = torch.einsum("ocs,ms->ocm", base.weight.flatten(2), basis)
        own = beta[[c * G // c_in for c in range(c_in)]]  # (c_in, m, m1)
        delta = torch.einsum("cij,ijs->cis", own, atoms.view(m, m1, -1))
        moved = torch.einsum("ocm,cms->ocs", alpha, delta)
        return base._conv_forward(x, base.weight + moved.view(base.weight.shape), base.bias)

    _agree(layer, explicit, _normal(2, base.in_channels, 6, 5))


@pytest.mark.parametrize("m", [4, 9])
def test_coefficients_of_a_convolution(m: int) -> None:
    base, basis, kc = _conv(4, 6, 3, padding=1), subspace.dct_basis((3, 3), m), 2
    inner = AtomConv2d(base, basis).family
    layer = AtomConv2d(base, Coefficients(inner, kc))  # type: ignore[arg-type]
    _move(layer)

    def explicit(x: Tensor, atoms: Tensor, coef: Tensor) -> Tensor:
        alpha = torch.einsum("ocs,ms->ocm", base.weight.flatten(2), basis)
        blocks = alpha.view(3, kc, 2, kc, m)
        moved = alpha + torch.einsum("apbqm,pqxy->axbym", blocks, coef.view(kc, kc, kc, kc)).reshape(6, 4, m)
        change = moved @ (basis + atoms) - alpha @ basis
        return base._conv_forward(x, base.weight + change.view(base.weight.shape), base.bias)

    _agree(layer, explicit, _normal(2, 4, 5, 5))


def test_channel_groups_cover_all_channels() -> None:
    for c_in in range(1, 12):
        for groups in range(1, c_in + 1):
            owners = [
                g for g, part in enumerate(subspace.channel_groups(c_in, groups)) for _ in range(c_in)[part]
            ]
            assert owners == [c * groups // c_in for c in range(c_in)]


# ----------------------------------------------------------------------------- what holds for all


def _layers() -> dict[str, tuple[AtomLayer, Tensor]]:
    conv, basis = _conv(4, 8, 3, padding=1), subspace.dct_basis((3, 3), 9)
    x, seeded = _normal(2, 4, 6, 6), torch.Generator().manual_seed(0)
    return {
        "blocks": (AtomLinear(nn.Linear(8, 4), BlockAtoms(2)), _normal(3, 8)),
        "blocks conv": (AtomLinear(_conv(4, 8, 1), BlockAtoms(4)), x),
        "recursive 1": (AtomConv2d(conv, RecursiveAtoms(basis, 1, 3, seeded)), x),
        "recursive 4": (AtomConv2d(conv, RecursiveAtoms(basis, 4, 3, seeded)), x),
        "coefficients": (AtomConv2d(conv, Coefficients(RecursiveAtoms(basis, 2, 1, seeded), 2)), x),
        "sparse": (AtomConv2d(conv, SparseAtoms(_normal(12, 9), 0.1)), x),
    }


@pytest.fixture
def layer_and_input(request: pytest.FixtureRequest) -> tuple[AtomLayer, Tensor]:
    return copy.deepcopy(_layers()[request.param])


every_layer = pytest.mark.parametrize("layer_and_input", list(_layers()), indirect=True)


@every_layer
def test_untouched_or_strength_zero_is_the_base(layer_and_input: tuple[AtomLayer, Tensor]) -> None:
    layer, x = layer_and_input
    base = layer.base_layer(x)
    with torch.no_grad():
        assert torch.equal(layer(x), base)
    torch.testing.assert_close(layer(x), base, atol=1e-5, rtol=1e-5)
    _move(layer)
    assert not torch.allclose(layer(x), base)
    layer.strength = 0.7
    folded = copy.deepcopy(layer.base_layer)
    folded.weight.data += layer.delta_weight()
    torch.testing.assert_close(layer(x), folded(x), atol=1e-5, rtol=1e-4)
    layer.strength = 0.0
    assert torch.equal(layer(x), base)


@every_layer
def test_half_base_and_autocast_train_fp32_numbers(layer_and_input: tuple[AtomLayer, Tensor]) -> None:
    layer, x = layer_and_input
    _move(layer)
    layer(x).square().sum().backward()
    exact = [p.grad.clone() for p in layer.family.trained().values()]
    for half in (True, False):
        layer.zero_grad()
        if half:
            made = copy.deepcopy(layer).to(torch.bfloat16)
            y = made(x.bfloat16())
        else:
            made = layer
            with torch.autocast("cpu", torch.bfloat16):
                y = made(x)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        for parameter, wanted in zip(made.family.trained().values(), exact, strict=True):
            assert parameter.dtype == parameter.grad.dtype == torch.float32
            assert (parameter.grad - wanted).norm() <= 0.05 * wanted.norm()


@every_layer
def test_gradients_reach_what_is_trained_only(layer_and_input: tuple[AtomLayer, Tensor]) -> None:
    layer, x = layer_and_input
    _move(layer)
    layer(x).square().sum().backward()
    plain = [p.grad.clone() for p in layer.family.trained().values()]
    assert all(grad.abs().sum() > 0 for grad in plain)
    assert sum(p.grad is not None for p in layer.parameters()) == len(plain)
    for reentrant in (True, False):
        layer.zero_grad()
        checkpoint(layer, x.clone().requires_grad_(), use_reentrant=reentrant).square().sum().backward()
        assert all(
            torch.equal(p.grad, wanted)
            for p, wanted in zip(layer.family.trained().values(), plain, strict=True)
        )


def test_the_family_starts_where_it_can_learn() -> None:
    for layer, x in _layers().values():
        layer(x).square().sum().backward()
        assert layer.atoms.grad is not None and layer.atoms.grad.abs().sum() > 0


# ------------------------------------------------------------------------------ whole model and file


def _net(width: int = 8) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, width, 3), nn.SiLU(), nn.Conv2d(width, width, 3, stride=2), nn.SiLU(),
            nn.Conv2d(width, 4, 1), nn.Flatten(2), nn.Linear(4, 8),
        ).requires_grad_(False)  # fmt: skip


def _run(net: nn.Module) -> Tensor:
    with torch.no_grad():
        return net(_normal(2, 3, 7, 7))


def _trained(net: nn.Module, spec: AtomSpec) -> tuple[inject.Attached, dict[str, Tensor]]:
    attached = inject.attach(net, spec, seed=3)
    for layer in attached.layers.values():
        _move(layer)
    return attached, attached.read()


@every_spec
def test_train_pack_save_load_fold(spec: AtomSpec) -> None:
    net = _net()
    base, weights = _run(net), dict(net.named_parameters())
    attached, tensors = _trained(net, spec)
    moved = _run(net)
    assert not torch.allclose(moved, base)
    concept = Concept.of(net, spec, tensors, PASSPORT, trigger="sks")
    attached.detach()
    assert torch.equal(_run(net), base)

    data = to_bytes(concept, "fp32")
    again = from_bytes(data)
    assert again.spec == spec and to_bytes(again, "fp32") == data
    with inject.fold(net, [(again.deltas(net), 1.0)]):
        torch.testing.assert_close(_run(net), moved, atol=1e-4 * float(moved.abs().max()), rtol=1e-3)
    assert torch.equal(_run(net), base)
    assert all(p is weights[name] for name, p in net.named_parameters())

    attached.reattach()
    assert torch.equal(_run(net), moved)
    attached.write(tensors)
    assert torch.equal(_run(net), moved)
    inject.detach(net)
    with pytest.raises(ConceptError, match="this model has others"):
        again.deltas(_net(12))


@every_spec
@pytest.mark.parametrize("dtype", ["fp16", "int8", "int4"])
def test_every_precision_and_the_sizes_of_parts(spec: AtomSpec, dtype: str) -> None:
    net = _net()
    attached, tensors = _trained(net, spec)
    attached.detach()
    concept = Concept.of(net, spec, tensors, PASSPORT)
    data = to_bytes(concept, dtype)
    assert to_bytes(from_bytes(data), dtype) == data
    assert sum(size_report(data).values()) == len(data)
    bound = from_bytes(data).bind(net)
    limit = {"fp16": 1e-3, "int8": 0.02, "int4": 0.3}[dtype]
    for name, values in tensors.items():
        if not name.endswith("#basis"):
            assert (bound[name] - values).norm() <= limit * values.norm() + 1e-6


def test_a_written_dictionary_is_coded_over_anew() -> None:
    net, spec = _net(), SPECS["sparse"]
    attached, tensors = _trained(net, spec)
    before = _run(net)
    attached.write({name: values.flip(0) for name, values in tensors.items()})  # atoms and dictionary alike
    torch.testing.assert_close(_run(net), before, atol=1e-5, rtol=1e-4)
    attached.write({name: values for name, values in tensors.items() if "#basis" not in name})
    assert not torch.allclose(_run(net), before, atol=1e-4)
    attached.detach()
    with pytest.raises(ConceptError, match="contradicts"):
        Concept.of(net, spec, {name: t for name, t in tensors.items() if "#basis" not in name}, PASSPORT)


def test_kernels_of_several_sizes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 5, groups=8), nn.Conv2d(8, 6, (1, 3)))
    for spec in (
        AtomSpec(num_atoms=5, conv_family="recursive", channel_groups=0, coef_block=2, linear_atoms="none"),
        AtomSpec(num_atoms=12, conv_family="sparse", linear_atoms="none"),
    ):
        attached, tensors = _trained(model, spec)
        attached.detach()
        concept = Concept.of(model, spec, tensors, PASSPORT)
        bound = from_bytes(to_bytes(concept, "fp32")).bind(model)
        assert all(
            torch.equal(bound[name], values) for name, values in tensors.items() if "#basis" not in name
        )
        assert ("coef" in concept.atoms) == bool(spec.coef_block)


def test_older_specs_are_written_as_before() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    spec = AtomSpec(linear_atoms="none")
    data = to_bytes(Concept.of(model, spec, {"0": torch.ones(9, 9)}, PASSPORT))
    assert b'"spec":"num_atoms=9&basis=dct&linear_atoms=none&linear_block=4"' in data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_family": "wavelet"}, "conv_family is one of atoms, recursive, sparse, not 'wavelet'"),
        ({"channel_groups": 4}, "channel_groups means something for conv_family 'recursive' only"),
        ({"conv_family": "recursive", "channel_groups": -1}, "whole number from 0 up, not -1"),
        ({"conv_family": "recursive", "second_atoms": 0}, "second_atoms is a whole number from 1 up"),
        ({"conv_family": "sparse", "sparsity": 0.0}, "sparsity is a number above 0"),
        ({"conv_family": "recursive", "basis": "svd"}, "has the basis 'dct', not 'svd'"),
        ({"num_atoms": 0, "coef_block": 2}, "there are no convolutions"),
    ],
)
def test_spec_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        AtomSpec(**change)


def test_contradictions_in_a_concept_are_refused() -> None:
    spec = AtomSpec(num_atoms=4, conv_family="recursive", linear_atoms="none")
    sound = {"conv": torch.ones(2, 12, 9), "beta": torch.ones(3, 4, 3)}
    values = {"layers": "0badcafe", "spec": spec, "base": PASSPORT}
    Concept(atoms=sound, **values)
    for change in (
        {"beta": torch.ones(3, 4, 2)},
        {"conv": torch.ones(2, 4, 9)},
        {"coef": torch.ones(1, 4, 4)},
    ):
        with pytest.raises(ConceptError, match="contradicts"):
            Concept(atoms=sound | change, **values)
    with pytest.raises(ConceptError, match="contradicts"):
        Concept(atoms={"conv": sound["conv"]}, **values)
    with pytest.raises(ConceptError, match="contradicts"):  # a sparse concept without its dictionary
        sparse = AtomSpec(num_atoms=4, conv_family="sparse", linear_atoms="none")
        Concept(atoms={"conv": torch.ones(2, 4, 9)}, **(values | {"spec": sparse}))
    with pytest.raises(ConceptError, match="number of layers"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
        digest = inject.select(model, spec).digest()
        Concept(atoms=sound, **(values | {"layers": digest})).bind(model)


def test_a_spec_without_layers_is_a_word_alone() -> None:
    """Textual inversion: nothing of the model is changed, and the file holds the word."""
    net, spec = _net(), AtomSpec(num_atoms=0, linear_atoms="none")
    attached = inject.attach(net, spec)
    assert not attached.layers and not attached.read() and not spec.has_layers
    attached.detach()
    word = {"token": _normal(2, 1, 8)}
    concept = Concept.of(net, spec, {}, PASSPORT, token=word, trigger="sks")
    loaded = from_bytes(to_bytes(concept, "fp32"))
    assert torch.equal(loaded.token["token"], word["token"]) and loaded.deltas(net) == {}
    with pytest.raises(ConceptError, match="contradicts"):
        Concept.of(net, spec, {}, PASSPORT)  # not even a word
    with pytest.raises(ConceptError, match="contradicts"):
        replace(concept, spec=AtomSpec(num_atoms=9, linear_atoms="none"))
