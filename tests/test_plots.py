"""What was learned, to look at: the maps are the learned ones, and every figure can be drawn."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from atomdiff import cli
from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import BasePassport, passport_of
from atomdiff.core import inject
from atomdiff.core.inject import AtomSpec, basis_for
from atomdiff.core.subspace import spatial_map
from atomdiff.evaluation import map_sheet, plots
from atomdiff.evaluation.drift import drift
from atomdiff.evaluation.layer_maps import layer_maps
from atomdiff.files.safetensors_file import save_concept

BASE = BasePassport("sd1-1a2b3c4d", (0.0,) * 16, "sd15")


class Wide(nn.Module):
    """Enough channels for a unique map of every layer; a plain network, no UNet."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(8, 8, 3)
        self.last = nn.Conv2d(4, 8, 5)
        self.to_q = nn.Linear(32, 16)


def made_for(model, passport=BASE, name="Rex", **spec) -> Concept:
    made, rng = AtomSpec(**spec), torch.Generator().manual_seed(0)
    chosen = inject.select(model, made)
    atoms = {}
    for layer, conv in chosen.conv.items():
        k2 = conv.kernel_size[0] * conv.kernel_size[1]
        atoms[layer] = 0.1 * torch.randn(min(made.num_atoms, k2), k2, generator=rng)
    side = made.linear_block**2
    atoms |= {layer: 0.1 * torch.randn(side, side, generator=rng) for layer in chosen.linear}
    return Concept.of(model, made, atoms, passport, trigger="sks", name=name, training={"steps": 300})


@pytest.mark.parametrize("spec", [{}, {"num_atoms": 4}, {"num_atoms": 4, "basis": "svd"}])
def test_the_maps_are_those_that_were_learned(spec):
    model = Wide()
    concept = made_for(model, linear_atoms="all", linear_block=2, **spec)
    atoms = concept.bind(model)
    for layer in layer_maps(concept, model):
        assert layer.share == pytest.approx(1.0, abs=1e-5)
        assert layer.block == "other"
        if layer.before is None:
            assert torch.allclose(layer.map, atoms[layer.layer], atol=1e-4)
            assert layer.after is None
            continue
        basis = basis_for(model.get_submodule(layer.layer), concept.spec)
        assert torch.equal(layer.before, basis)
        assert torch.allclose(layer.map, spatial_map(basis, atoms[layer.layer]), atol=1e-4)
        assert torch.allclose(layer.after, basis + atoms[layer.layer], atol=1e-4)
        assert layer.kernel == tuple(model.get_submodule(layer.layer).kernel_size)


def test_the_atoms_before_are_those_that_the_concept_keeps():
    model = Wide()
    concept = made_for(model, linear_atoms="none", num_atoms=4, basis="svd")
    with torch.no_grad():
        model.first.weight.mul_(torch.rand(8, 8, 3, 3))  # fine-tuned: its own basis is another now
    for layer in layer_maps(concept, model):
        family = "conv.{}x{}".format(*layer.kernel)
        assert torch.equal(layer.before, concept.bases[family][0])


def test_names_are_short_and_fit_their_tiles():
    assert [map_sheet.short_name(layer) for layer in (
        "conv_in", "down_blocks.0.resnets.1.conv2", "up_blocks.2.upsamplers.0.conv",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
        "down_blocks.1.attentions.1.transformer_blocks.7.attn1.to_q", "layer1.0.conv1",
    )] == ["conv", "res 1.2", "upsample", "attn 0 out", "attn 1.7.1 q", "0.conv1"]  # fmt: skip


@pytest.mark.parametrize(
    "spec",
    [
        {"num_atoms": 6, "basis": "svd"},
        {"conv_layers": "mid_block", "linear_atoms": "none"},
        {"num_atoms": 0},
    ],
)
def test_every_kind_of_concept_can_be_drawn(spec):
    unet = tiny_models.unet("sd1")
    concept = made_for(unet, name="$x^{ an unfinished formula", **spec)
    layers, drifts = layer_maps(concept, unet), drift(concept, unet)
    figure = plots.learned_figure(concept, layers, drifts)
    picture = plots.picture(figure, dpi=20)
    assert picture.mode == "RGB" and picture.width == 20 * plots.WIDTH
    assert np.asarray(picture).std() > 5


def test_another_network_than_a_unet_can_be_drawn():
    model = Wide()
    concept = made_for(model, linear_atoms="all", linear_block=2)
    figure = plots.learned_figure(concept, layer_maps(concept, model), drift(concept, model))
    assert plots.picture(figure, dpi=20).height > 50


def test_an_untrained_concept_can_be_drawn():
    model = Wide()
    made = made_for(model, linear_atoms="none")
    from dataclasses import replace

    nothing = replace(made, atoms={key: torch.zeros_like(tensor) for key, tensor in made.atoms.items()})
    layers = layer_maps(nothing, model)
    assert all(not layer.map.any() and layer.share == 1.0 for layer in layers)
    plots.picture(plots.learned_figure(nothing, layers, drift(nothing, model)), dpi=20)


def test_drawing_leaves_no_global_state():
    model = Wide()
    concept = made_for(model, linear_atoms="none")
    plots.picture(plots.drift_figure(drift(concept, model)), dpi=20)
    plots.picture(plots.maps_figure(layer_maps(concept, model)), dpi=20)
    assert "matplotlib.pyplot" not in sys.modules


def test_the_command_draws(tiny_folder, tmp_path):
    unet = tiny_models.pipeline("sd1").unet
    concept = made_for(
        unet, passport_of(unet, "sd1", "tiny-sd1"), conv_layers="mid_block", linear_atoms="none"
    )
    file = save_concept(concept, tmp_path / "rex.safetensors")
    arguments = ["plot", file, "--base", tiny_folder("sd1"), "--out", tmp_path / "learned.png"]
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "learned.png") as picture:
        assert picture.width == plots.WIDTH * plots.DPI
