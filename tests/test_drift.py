"""Drift, the blocks of a UNet and a strength for each, against dense arithmetic."""

from __future__ import annotations

import json

import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from atomdiff import cli
from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import BasePassport, passport_of
from atomdiff.core import inject
from atomdiff.core.blocks import (
    BLOCKS,
    block_of,
    by_strength,
    in_flow_order,
    level_of,
    of_words,
    one_number,
    parse_strength,
    strength_text,
)  # fmt: skip
from atomdiff.core.inject import AtomSpec
from atomdiff.errors import ConceptError, SettingsError
from atomdiff.evaluation.drift import LayerDrift, by_block, drift, total
from atomdiff.files.safetensors_file import save_concept
from atomdiff.sampling import draw

BASE = BasePassport("sd1-1a2b3c4d", (0.0,) * 16, "sd15")


@pytest.fixture(scope="module")
def unet():
    return tiny_models.unet("sd1")


@pytest.fixture(scope="module")
def concept(unet) -> Concept:
    return made_for(unet)


def made_for(unet, passport=BASE, **spec) -> Concept:
    chosen, rng = inject.select(unet, AtomSpec(**spec)), torch.Generator().manual_seed(0)
    atoms = {layer: 0.1 * torch.randn(9, 9, generator=rng) for layer in chosen.conv}
    atoms |= {layer: 0.1 * torch.randn(16, 16, generator=rng) for layer in chosen.linear}
    return Concept.of(unet, AtomSpec(**spec), atoms, passport, trigger="sks", name="Rex")


# --------------------------------------------------------------------------------------------- blocks


def test_every_layer_has_its_block_in_the_order_of_the_flow(unet, concept):
    layers = list(in_flow_order(concept.deltas(unet)))
    assert layers[0] == "conv_in" and layers[-1] == "conv_out"
    blocks = [block_of(layer) for layer in layers]
    assert blocks == sorted(blocks, key=BLOCKS.index)
    first = [layer for layer in layers if level_of(layer) == "down 0"]
    assert first[0] == "down_blocks.0.resnets.0.conv1"
    assert first[-1] == "down_blocks.0.downsamplers.0.conv"
    assert list(dict.fromkeys(map(level_of, layers))) == [
        "in", "down 0", "down 1", "down 2", "down 3", "mid", "up 0", "up 1", "up 2", "up 3", "out",
    ]  # fmt: skip
    assert (block_of("layer1.0.conv1"), level_of("layer1.0.conv1")) == ("other", "other")


@given(st.dictionaries(st.sampled_from(BLOCKS), st.floats(-9, 9).map(lambda x: round(x, 3)), min_size=1))
def test_strengths_round_trip_as_text(strength):
    again = parse_strength(strength_text(strength))
    assert again == {block: pytest.approx(strength.get(block, 1.0)) for block in BLOCKS}
    assert parse_strength(strength_text(strength).replace(" ", ",")) == again


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "not ''"),
        ("loud", "not 'loud'"),
        ("down=0.5,up", "not 'down=0.5,up'"),
        ("down=0.5,down=1", "not 'down=0.5,down=1'"),
        ("down=x", "not 'down=x'"),
        ("dawn=1", "down, mid, up, not 'dawn'"),
        ("up=nan", "finite number, not nan"),
        ("inf", "finite number, not inf"),
    ],
)
def test_strengths_that_cannot_work(text, sentence):
    with pytest.raises(SettingsError, match=sentence):
        parse_strength(text)


def test_strengths_by_block():
    deltas = {"conv_in": 1, "down_blocks.0.a": 2, "mid_block.a": 3, "up_blocks.1.a": 4, "head": 5}
    assert by_strength(deltas, 0.5) == [(deltas, 0.5)]
    assert by_strength(deltas, 0.0) == []
    assert by_strength(deltas, {"down": 0.5, "mid": 0}) == [
        ({"conv_in": 1, "down_blocks.0.a": 2}, 0.5),
        ({"up_blocks.1.a": 4, "head": 5}, 1.0),
    ]
    assert (of_words(0.3), of_words({"down": 0.3})) == (0.3, 1.0)
    with pytest.raises(SettingsError, match="one strength, not one a block"):
        one_number({"up": 1.0})


def test_folding_by_block_scales_each_change_exactly(unet, concept):
    strength = {"down": 0.5, "mid": 0.0, "up": -1.0}
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    deltas = concept.deltas(unet)
    with inject.fold(unet, by_strength(deltas, strength)):
        for layer, delta in deltas.items():
            weight = before[f"{layer}.weight"]
            wanted = weight + strength[block_of(layer)] * delta(weight)
            assert torch.allclose(unet.get_submodule(layer).weight, wanted, atol=1e-6)
    assert all(torch.equal(unet.state_dict()[name], weight) for name, weight in before.items())


def test_drawing_with_a_strength_a_block(tiny_base):
    base = tiny_base("sd1")
    own = made_for(base.unet, base.passport)

    def pixels(*concepts):
        drawn = draw.draw(base, "a sks dog", concepts=concepts, steps=2)[0]
        return drawn.tobytes(), drawn.info["parameters"]

    plain, _ = pixels()
    off, text = pixels((own, {"down": 0, "mid": 0, "up": 0}))
    assert off == plain
    assert "Rex:down=0 mid=0 up=0:" in text
    assert pixels((own, {"up": 1.0}))[0] == pixels(own)[0]
    assert pixels((own, {"up": 0.2}))[0] != pixels(own)[0]
    with pytest.raises(SettingsError, match="not 'sideways'"):
        pixels((own, {"sideways": 1.0}))


# ---------------------------------------------------------------------------------------------- drift


def test_drift_is_the_ratio_of_norms(unet, concept):
    found = drift(concept, unet)
    deltas = concept.deltas(unet)
    assert {item.layer for item in found} == set(deltas)
    for item in found:
        weight = unet.get_submodule(item.layer).weight
        assert item.ratio == pytest.approx(float(deltas[item.layer](weight).norm() / weight.norm()), rel=1e-5)
        assert item.spatial == (weight.ndim == 4 and weight.shape[-1] > 1)
    assert total(found) == pytest.approx(
        sum(i.change**2 for i in found) ** 0.5 / sum(i.weight**2 for i in found) ** 0.5
    )
    assert list(by_block(found)) == ["down", "mid", "up"]


def test_drift_grows_with_the_atoms(unet, concept):
    from dataclasses import replace

    doubled = replace(concept, atoms={key: 2 * tensor for key, tensor in concept.atoms.items()})
    assert total(drift(doubled, unet)) == pytest.approx(2 * total(drift(concept, unet)), rel=1e-5)


def test_a_layer_of_zeros_does_not_drift():
    assert LayerDrift("a", "down", True, 0.0, 0.0).ratio == 0.0
    assert total([]) == 0.0
    assert by_block([]) == {}


def test_another_architecture_is_refused(concept):
    with pytest.raises(ConceptError, match="use the base it was made for"):
        drift(concept, tiny_models.unet("sdxl"))


# --------------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def concept_file(tiny_folder, tmp_path_factory):
    unet = tiny_models.pipeline("sd1").unet
    own = made_for(unet, passport_of(unet, "sd1", "tiny-sd1"))
    return save_concept(own, tmp_path_factory.mktemp("concepts") / "rex.safetensors")


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_inspect_tells_the_drift(concept_file, tiny_folder, tmp_path):
    where = ["--base", tiny_folder("sd1")]
    done = run("inspect", concept_file, "--drift", *where, "--out", tmp_path / "drift.png")
    assert done.exit_code == 0, done.output
    assert "weights moved by" in done.stdout and "down: all" in done.stdout and "█" in done.stdout
    with Image.open(tmp_path / "drift.png") as picture:
        assert picture.width > 1000
    told = json.loads(run("inspect", concept_file, "--drift", "--json", *where).stdout)
    assert list(told["drift"]["blocks"]) == ["down", "mid", "up"]
    assert "mid_block.resnets.0.conv1" in told["drift"]["layers"]
    assert "drift" not in json.loads(run("inspect", concept_file, "--json").stdout)


def test_without_the_base_inspect_says_how_to_get_it(concept_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lost = run("inspect", concept_file, "--drift")
    assert lost.exit_code == 2
    assert "--base says where it lies" in lost.stderr
    odd = run("inspect", concept_file, "--out", "drift.png")
    assert odd.exit_code == 2 and "--out and --base belong to --drift" in odd.stderr


def test_generate_takes_a_strength_a_block(concept_file, tiny_folder, tmp_path):
    where = ["--base", tiny_folder("sd1"), "--steps", 1, "--device", "cpu", "--out", tmp_path / "a.png"]
    done = run("generate", "a sks dog", "--concept", f"{concept_file}:down=0.5,up=0", *where)
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "a.png") as picture:
        assert "Rex:down=0.5 mid=1 up=0:" in picture.info["parameters"]
    wrong = run("generate", "a sks dog", "--concept", f"{concept_file}:dawn=0.5", *where)
    assert wrong.exit_code == 2 and "down, mid, up, not 'dawn'" in wrong.stderr
