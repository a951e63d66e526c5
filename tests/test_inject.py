"""Attaching, detaching and folding on whole models: UNets, a ResNet and a ConvNeXt."""

from __future__ import annotations

import copy
import gc
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atomdiff.core.inject import (
    AtomSpec,
    Attached,
    attach,
    delta_functions,
    detach,
    fold,
    layer_digest,
    select,
)
from atomdiff.core.layers import AtomConv2d, AtomLayer, AtomLinear
from atomdiff.errors import AtomdiffError, ConceptError, SettingsError

Run = Callable[[], Tensor]


def _unet() -> tuple[nn.Module, Run]:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=4, sample_size=8,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    x, prompt = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8)
    return unet, lambda: unet(x.to(unet.dtype), torch.tensor([3, 70]), prompt.to(unet.dtype)).sample


def _resnet() -> tuple[nn.Module, Run]:
    from transformers import ResNetConfig, ResNetModel

    model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2])).eval()
    x = torch.randn(2, 3, 32, 32)
    return model, lambda: model(x.to(model.dtype)).last_hidden_state


def _convnext() -> tuple[nn.Module, Run]:
    from transformers import ConvNextConfig, ConvNextModel

    model = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2)).eval()
    x = torch.randn(2, 3, 32, 32)
    return model, lambda: model(x.to(model.dtype)).last_hidden_state


MODELS = {"unet": _unet, "resnet": _resnet, "convnext": _convnext}


@pytest.fixture(params=MODELS)
def model_and_run(request: pytest.FixtureRequest) -> tuple[nn.Module, Run]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[request.param]()


@pytest.fixture
def unet_and_run() -> tuple[Any, Run]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _unet()


def _train(attached: Attached, run: Run, steps: int = 1) -> None:
    optimizer = torch.optim.SGD(attached.parameters(), lr=0.05, momentum=0)
    for _ in range(steps):
        run().square().mean().backward()
        for parameter in attached.parameters():
            parameter.grad = torch.sign(parameter.grad)
        optimizer.step()
        optimizer.zero_grad()


def _output(run: Run) -> Tensor:
    with torch.no_grad():
        return run()


# ------------------------------------------------------------------------------------ any model


def test_attach_train_detach(model_and_run: tuple[nn.Module, Run]) -> None:
    model, run = model_and_run
    before, base = copy.deepcopy(model.state_dict()), _output(run)
    objects = dict(model.named_parameters())
    attached = attach(model)
    assert torch.equal(_output(run), base)  # untouched: the base, bit for bit
    torch.testing.assert_close(run(), base, atol=1e-5 * float(base.abs().max()), rtol=1e-4)
    _train(attached, run)
    assert [p for p in model.parameters() if p.requires_grad] == attached.parameters()
    moved = _output(run)
    assert not torch.allclose(moved, base)
    attached.set_strength(0)
    assert torch.equal(_output(run), base)

    atoms = attached.read()
    assert all(bool(values.any()) for values in atoms.values())
    attached.detach()
    attached.detach()  # harmless
    assert torch.equal(_output(run), base)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: id(p) for name, p in model.named_parameters()} == {n: id(p) for n, p in objects.items()}
    assert all(p.requires_grad for p in model.parameters())

    again = attach(model)
    again.write(atoms)
    torch.testing.assert_close(_output(run), moved)
    detach(model)
    with fold(model, [(delta_functions(model, AtomSpec(), atoms), 1.0)]):
        torch.testing.assert_close(_output(run), moved, atol=1e-4 * float(moved.abs().max()), rtol=1e-3)
    assert torch.equal(_output(run), base)


def test_hundred_rounds_leave_no_trace() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.LazyLinear(4)
    )
    x = torch.randn(2, 2, 6, 6)
    model(x)
    model[0].weight.requires_grad_(False)
    before, base = copy.deepcopy(model.state_dict()), _output(lambda: model(x))
    objects = [(id(m), id(p)) for m in model.modules() for p in m.parameters(recurse=False)]
    for _ in range(100):
        _train(attach(model, AtomSpec(linear_atoms="all", linear_block=2)), lambda: model(x))
        detach(model)
    assert torch.equal(_output(lambda: model(x)), base)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [(id(m), id(p)) for m in model.modules() for p in m.parameters(recurse=False)] == objects
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_model(model_and_run: tuple[nn.Module, Run], dtype: torch.dtype) -> None:
    model, run = model_and_run
    model = nn.Module.to(model, dtype)
    attached = attach(model)
    assert model.dtype == dtype  # as diffusers and transformers ask for it
    _train(attached, run)
    assert all(p.dtype == torch.float32 for p in attached.parameters())
    assert _output(run).dtype == dtype and _output(run).isfinite().all()
    nn.Module.to(model, torch.float32)
    atoms = attached.read()
    nn.Module.to(model, dtype)
    assert all(torch.equal(values, atoms[name]) for name, values in attached.read().items())


# ---------------------------------------------------------------------------------------- UNets


def test_default_selection_of_a_unet(unet_and_run: tuple[Any, Run]) -> None:
    unet, _ = unet_and_run
    selection = select(unet, AtomSpec())
    modules = dict(unet.named_modules())
    spatial = [n for n, m in modules.items() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert list(selection.conv) == spatial
    assert all(re.search(r"attn2\.to_(q|k|v|out\.0)$", name) for name in selection.linear)
    assert len(selection.linear) == 4 * sum(name.endswith("attn2") for name in modules)
    assert selection.skipped == {} and selection.clipped == {}

    attached = attach(unet)
    assert list(attached.read()) == [n for n in modules if n in selection.conv or n in selection.linear]
    assert select(unet, AtomSpec()).digest() == selection.digest()  # the same answer while attached
    assert {type(layer) for layer in attached.layers.values()} == {AtomConv2d, AtomLinear}


@pytest.mark.parametrize(
    ("spec", "convs", "linears"),
    [
        (AtomSpec(linear_atoms="none"), 20, 0),
        (AtomSpec(num_atoms=0), 0, 16),
        (AtomSpec(num_atoms=0, linear_atoms="attn2_kv"), 0, 8),
        (AtomSpec(num_atoms=0, linear_atoms="attn"), 0, 32),
        (AtomSpec(conv_layers=r"conv_in|conv_out", linear_atoms="none"), 2, 0),
        (AtomSpec(num_atoms=0, linear_atoms=r"time_emb_proj"), 0, 8),
    ],
)
def test_patterns(unet_and_run: tuple[Any, Run], spec: AtomSpec, convs: int, linears: int) -> None:
    selection = select(unet_and_run[0], spec)
    assert (len(selection.conv), len(selection.linear)) == (convs, linears)


def test_gradient_checkpointing_gives_the_same_gradients(unet_and_run: tuple[Any, Run]) -> None:
    unet, run = unet_and_run
    unet.train()
    attached = attach(unet)
    _train(attached, run)

    def gradients() -> list[Tensor]:
        unet.zero_grad()
        run().square().mean().backward()
        return [p.grad.clone() for p in attached.parameters()]

    plain = gradients()
    unet.enable_gradient_checkpointing()
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(), strict=True))


def test_autocast_gives_fp32_gradients(unet_and_run: tuple[Any, Run]) -> None:
    unet, run = unet_and_run
    attached = attach(unet)
    with torch.autocast("cpu", torch.bfloat16):
        loss = run().float().square().mean()
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in attached.parameters())
    assert all(p.grad is None for p in unet.parameters() if not p.requires_grad)


@pytest.mark.parametrize(
    "spec", [AtomSpec(num_atoms=4), AtomSpec(basis="svd"), AtomSpec(num_atoms=4, basis="svd")]
)
def test_every_basis_trains_and_folds(unet_and_run: tuple[Any, Run], spec: AtomSpec) -> None:
    unet, run = unet_and_run
    attached = attach(unet, spec)
    _train(attached, run)
    moved, atoms = _output(run), attached.read()
    bases = {n: layer.family.basis for n, layer in attached.layers.items() if isinstance(layer, AtomConv2d)}
    attached.detach()
    with fold(unet, [(delta_functions(unet, spec, atoms, bases), 1.0)]):
        torch.testing.assert_close(_output(run), moved, atol=1e-4, rtol=1e-3)


# ------------------------------------------------------------------------------------ selection


def test_select_reports_what_it_leaves() -> None:
    class OwnWay(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = nn.ModuleDict(
        {
            "a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(4, 4, 2), "c": nn.Linear(6, 8), "d": nn.Linear(8, 8),
            "e": OwnWay(8, 8), "f": nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
        }
    )  # fmt: skip
    selection = select(model, AtomSpec(linear_atoms="all"))
    assert list(selection.conv) == ["a", "b"] and selection.clipped == {"b": 4}
    assert list(selection.linear) == ["d"]
    assert selection.skipped["c"] == "blocks of side 4 do not divide its 8 × 6 weight"
    assert selection.skipped["e"] == "OwnWay computes in its own way"
    assert "f" in selection.skipped


def test_one_layer_under_two_names_gets_one_set_of_atoms() -> None:
    model = nn.Module()
    model.first = model.second = nn.Conv2d(2, 2, 3)
    model.both = nn.Sequential(model.first)
    attached = attach(model)
    assert len(attached.parameters()) == 1
    assert isinstance(model.first, AtomConv2d) and model.first is model.second is model.both[0]
    detach(model)
    assert not any(isinstance(m, AtomLayer) for m in model.modules()) and model.both[0] is model.first


def test_digest_is_fixed() -> None:
    """The digest is stored in concept files, so it may never change."""
    assert layer_digest([("conv_in", (320, 4, 3, 3)), ("mid.conv", torch.Size((2, 2, 1, 1)))]) == "7de1cb63"
    assert layer_digest([]) != layer_digest([("a", (1,))])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_atoms": -1}, r"num_atoms is a whole number from 0 \(no conv atoms\) up, not -1"),
        ({"num_atoms": 2.0}, "not 2.0"),
        ({"linear_block": 0}, "linear_block is a whole number from 1 up, not 0"),
        ({"basis": "wavelet"}, "basis is 'dct' or 'svd', not 'wavelet'"),
        ({"conv_layers": "("}, r"conv_layers must be a regular expression, but '\(' is not one"),
        ({"linear_atoms": "["}, "linear_atoms must be a regular expression"),
        ({"linear_atoms": ""}, "linear_atoms is empty; write 'none'"),
    ],
)
def test_spec_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        AtomSpec(**values)


def test_select_refuses() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4))
    with pytest.raises(
        SettingsError, match=r"conv_layers 'up' matches none of the model's 1 spatial convolution"
    ):
        select(model, AtomSpec(conv_layers="up"))
    with pytest.raises(SettingsError, match=r"linear_atoms 'atn2' matches none of .* 1 linear or 1×1 layer"):
        select(model, AtomSpec(linear_atoms="atn2"))
    with pytest.raises(
        SettingsError, match="num_atoms is 12, but no selected kernel has more than 9 weights"
    ):
        select(model, AtomSpec(num_atoms=12))
    with pytest.raises(
        AtomdiffError, match=r"0 spatial convolutions and 1 linear or 1×1 layer \(such as '0'\)"
    ):
        select(nn.Sequential(nn.Linear(4, 4)), AtomSpec())
    with pytest.raises(AtomdiffError, match="Nothing to train"):
        select(nn.Conv2d(3, 4, 3), AtomSpec())  # nowhere to put a layer in its place


# ------------------------------------------------------------------------- attach, read and write


def _pair() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 3))


def test_attach_refuses_twice_and_leaves_the_model_alone() -> None:
    model = _pair()
    with pytest.raises(SettingsError, match="form is one of"):
        attach(model, form="fast")
    assert all(p.requires_grad for p in model.parameters())
    attach(model)
    with pytest.raises(AtomdiffError, match=r"carries atoms already; call detach\(model\) first"):
        attach(model)
    with pytest.raises(AtomdiffError, match="carries atoms already"):
        fold(model, [])
    detach(model)
    detach(model)  # harmless
    with fold(model, []), pytest.raises(AtomdiffError, match=r"folded into its weights; call remove\(\)"):
        attach(model)


def test_write_checks_everything_first() -> None:
    attached = attach(_pair())
    atoms = {name: torch.ones(9, 9) for name in attached.read()}
    with pytest.raises(ConceptError, match=r"1 of 2 are missing, 1 are unknown \(such as '1'\)"):
        attached.write({"0": atoms["0"], "9": atoms["1"]})
    with pytest.raises(ConceptError, match=r"'1' have shape \(4, 9\), but the layer needs \(9, 9\)"):
        attached.write({"0": atoms["0"], "1": torch.ones(4, 9)})
    assert not any(values.any() for values in attached.read().values())
    attached.write(atoms)
    assert all(torch.equal(values, atoms[name]) for name, values in attached.read().items())
    with pytest.raises(SettingsError, match="A strength is a finite number, not nan"):
        attached.set_strength(float("nan"))


def test_a_detached_model_is_not_kept_alive() -> None:
    import weakref

    model = _pair()
    attach(model).detach()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# --------------------------------------------------------------------------------------- folding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_fold_adds_concepts_in_fp32_and_rounds_once(dtype: torch.dtype) -> None:
    model = _pair().to(dtype)
    pristine = dict(model.named_parameters())
    bits = {name: p.clone() for name, p in pristine.items()}
    spec = AtomSpec()
    first, second = ({name: 0.1 * torch.randn(9, 9) for name in ("0", "1")} for _ in range(2))
    folded = fold(
        model,
        [(delta_functions(model, spec, first), 0.8), (delta_functions(model, spec, second), -0.3)],
    )
    exact = {
        name: bits[f"{name}.weight"].float()
        + sum(
            s * delta_functions(model, spec, atoms)[name](bits[f"{name}.weight"].float())
            for atoms, s in ((first, 0.8), (second, -0.3))
        )
        for name in ("0", "1")
    }
    for name, wanted in exact.items():
        torch.testing.assert_close(model.get_submodule(name).weight.detach(), wanted.to(dtype))
    folded.remove()
    folded.remove()  # harmless
    assert all(p is pristine[name] and torch.equal(p, bits[name]) for name, p in model.named_parameters())


def test_fold_at_strength_zero_touches_nothing() -> None:
    model = _pair()
    pristine = dict(model.named_parameters())
    with fold(model, [({"0": torch.ones(4, 2, 3, 3)}, 0.0)]):
        assert all(p is pristine[name] for name, p in model.named_parameters())


def test_a_model_that_is_spent_is_moved_in_its_place_and_takes_nothing_more() -> None:
    model, other = _pair(), _pair()
    other.load_state_dict(model.state_dict())
    held = {name: (weight, weight.data_ptr()) for name, weight in model.named_parameters()}
    deltas = [({"0": torch.ones(4, 2, 3, 3)}, 0.5)]
    with fold(model, deltas, keep=False), fold(other, deltas):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert {name: (weight, weight.data_ptr()) for name, weight in model.named_parameters()} == held
    assert torch.equal(model[0].weight, other[0].weight + 0.5)
    with pytest.raises(AtomdiffError, match="drawn with for good"):
        fold(model, deltas)


def test_folded_weights_come_back_where_the_model_went() -> None:
    model = _pair()
    weight = model[0].weight
    with fold(model, [({"0": torch.ones(4, 2, 3, 3)}, 1.0)]):
        torch.testing.assert_close(model[0].weight.detach(), weight.detach() + 1)
        model.double()
    assert model[0].weight is weight and weight.dtype == torch.float64


def test_fold_refuses_before_it_changes_anything() -> None:
    model = _pair()
    weight = model[0].weight
    good = {"0": torch.ones(4, 2, 3, 3)}
    with pytest.raises(ConceptError, match="a layer '7', which this model does not have"):
        fold(model, [(good, 1.0), ({"7": torch.ones(1)}, 1.0)])
    with pytest.raises(ConceptError, match=r"shape \(2, 4, 1, 1\), but this model's has \(2, 4, 3, 3\)"):
        fold(model, [(good, 1.0), ({"1": torch.ones(2, 4, 1, 1)}, 1.0)])
    with pytest.raises(SettingsError, match="A strength is a finite number, not inf"):
        fold(model, [(good, float("inf"))])
    with pytest.raises(ConceptError, match="a layer 'x', which this model does not have"):
        delta_functions(model, AtomSpec(), {"x": torch.ones(9, 9)})
    assert model[0].weight is weight
    with fold(model, [(good, 1.0)]), pytest.raises(AtomdiffError, match="folded into its weights"):
        fold(model, [(good, 1.0)])
