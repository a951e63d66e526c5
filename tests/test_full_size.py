"""The benchmark of full sizes, with models of the same kinds and a few channels: every form is the same
base."""

import json
import pathlib
from dataclasses import replace

import pytest
import torch

from atomdiff.base.stable_diffusion import encode_prompts, load_base
from benchmarks.full_size import __main__ as full_size
from benchmarks.full_size import building
from benchmarks.full_size.building import KINDS, Kind
from benchmarks.shapes import TOY_SD15, TOY_SDXL

SMALL = {"intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
VAE = {
    "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 16,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
}  # fmt: skip


def small(name: str) -> Kind:
    """A kind of the benchmark with everything as it is but its size."""
    kind, widths = KINDS[name], (32, 48)
    texts = tuple(
        ({"hidden_size": width} | SMALL, 16 * bool(projection), activation)
        for (_, projection, activation), width in zip(kind.texts, widths, strict=False)
    )
    seen = {"cross_attention_dim": sum(widths[: len(texts)]), "sample_size": 8}
    unet = TOY_SDXL | seen | {"projection_class_embeddings_input_dim": 6 * 256 + 16}
    if len(texts) == 1:
        unet = TOY_SD15 | seen | {"use_linear_projection": kind.unet.get("use_linear_projection", False)}
    return replace(kind, unet=unet, texts=texts, vae=kind.vae | VAE)


@pytest.mark.parametrize(("name", "family"), [("sd15", "sd1"), ("sd21", "sd2"), ("sdxl", "sdxl")])
def test_every_form_of_a_model_is_the_same_base(name, family, tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, name, small(name))
    monkeypatch.setattr(
        full_size, "_built", lambda call, environment: exec(call, vars(building) | {"pathlib": pathlib})
    )
    found = {}
    for form in ("folder", "variant", "file", "hub"):
        ref, environment = full_size._made(name, form, tmp_path)
        if form == "hub":
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", environment["HF_HUB_CACHE"])
        base = load_base(ref)
        assert (base.family, base.prediction_type) == (family, KINDS[name].prediction)
        hidden, pooled = encode_prompts(base, ["a sks dog"])
        found[form] = (base.passport.sketch_text(), hidden, pooled)
    for sketch, hidden, pooled in found.values():
        assert sketch == found["folder"][0]
        torch.testing.assert_close(hidden, found["folder"][1])
        assert (pooled is None) == (family != "sdxl")
        if pooled is not None:
            torch.testing.assert_close(pooled, found["folder"][2])


def test_what_is_kept_is_shown_and_judged(tmp_path, monkeypatch, capsys):
    figures = full_size.Figures("sdxl", "folder", "here", weights=2.0, encoders=0.1)
    figures.seconds = {"diffusers loads": 10.0, "atomdiff loads": 16.0}
    figures.own, figures.resident = {"trains": 2.9, "atomdiff loads": 2.2}, {"trains": 21.0}
    monkeypatch.setattr(full_size, "KEPT", tmp_path / "kept.json")
    full_size._keep(figures)
    assert json.loads((tmp_path / "kept.json").read_text())["sdxl, folder"]["finished"] is False
    monkeypatch.setattr("sys.argv", ["full_size", "--kept", "--check"])
    with pytest.raises(SystemExit) as exit_:
        full_size.main()
    assert exit_.value.code == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("missed: sdxl folder: loading, times diffusers' own 1.6 (wanted ≤ 1.5)")
    assert "encoders during the steps" in last and "memory in all 21" in last and "trains" not in last
