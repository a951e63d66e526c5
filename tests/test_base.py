"""Loading bases, their passports, prompts and conditions, and every way a base can be wrong."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import save_file

from atomdiff.base import architectures, loading
from atomdiff.base.stable_diffusion import added_conditions, encode_prompts, load_base, truncated_part
from atomdiff.concept.passport import BasePassport, passport_of
from atomdiff.errors import AtomdiffError, BaseError, ConceptError, SettingsError
from benchmarks.full_size.original_names import open_clip


@pytest.mark.parametrize(
    ("kind", "prediction"), [("sd1", "epsilon"), ("sd2", "v_prediction"), ("sdxl", "epsilon")]
)
def test_folders_of_every_family_load_frozen(tiny_base, kind, prediction):
    base = tiny_base(kind)
    assert (base.family, base.prediction_type, base.resolution) == (kind, prediction, 64)
    assert base.name == f"tiny-{kind}"
    assert base.passport.family == kind
    assert base.dtype == torch.float32
    assert base.device.type == "cpu"
    assert not base.unet.training
    assert not any(
        p.requires_grad for m in (base.unet, base.vae, base.pipe.text_encoder) for p in m.parameters()
    )
    assert getattr(base.pipe, "safety_checker", None) is None


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_prompts_become_what_the_unet_takes(tiny_base, kind):
    base = tiny_base(kind)
    embeds = encode_prompts(base, ["a sks dog", ""])
    assert embeds.hidden.shape == (2, 77, base.unet.config.cross_attention_dim)
    added = added_conditions(base, embeds, resolution=48)
    if kind == "sdxl":
        assert embeds.pooled.shape == (2, tiny_models.WIDTH)
        assert added["time_ids"].tolist() == [[48, 48, 0, 0, 48, 48]] * 2
        assert added["text_embeds"] is embeds.pooled
    else:
        assert embeds.pooled is None
        assert added is None
    noise = base.unet(torch.zeros(2, 4, 8, 8), 3, embeds.hidden, added_cond_kwargs=added).sample
    assert noise.shape == (2, 4, 8, 8)


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_a_single_file_takes_its_configuration_from_the_folder_beside_it(tmp_path, tiny_folder, kind):
    pipe = tiny_models.pipeline(kind)
    file = tiny_models.save_single_file(pipe, tmp_path / "dream.safetensors")
    shutil.copytree(tiny_folder(kind), tmp_path / "dream")
    base = load_base(str(file))
    assert (base.name, base.family, base.prediction_type) == (
        "dream.safetensors", kind, "v_prediction" if kind == "sd2" else "epsilon",
    )  # fmt: skip
    assert base.passport == load_base(str(tiny_folder(kind))).passport
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(base.pipe, part).state_dict(), getattr(pipe, part).state_dict()
        assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_a_single_file_with_no_configuration_offline_says_what_to_put_beside_it(tmp_path):
    file = tiny_models.save_single_file(tiny_models.pipeline("sd1"), tmp_path / "dream.safetensors")
    with pytest.raises(BaseError, match=r"weights only.*beside it, named 'dream'"):
        load_base(str(file))


def test_a_text_encoder_under_openclips_names_is_read_back_by_diffusers():
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    encoder = tiny_models.pipeline("sdxl").text_encoder_2
    state = {f"x.{name}": weight for name, weight in open_clip(encoder.state_dict()).items()}
    found = convert_open_clip_checkpoint(encoder, state, "x.")
    own = encoder.state_dict()
    assert found.keys() == own.keys() and all(torch.equal(found[name], own[name]) for name in own)


def test_v_prediction_marker_in_a_single_file_is_read(tmp_path, tiny_folder):
    from safetensors.torch import load_file

    file = tiny_models.save_single_file(tiny_models.pipeline("sd1"), tmp_path / "v.safetensors")
    save_file({**load_file(file), "v_pred": torch.zeros(0)}, file)
    shutil.copytree(tiny_folder("sd1"), tmp_path / "v")
    assert load_base(str(file)).prediction_type == "v_prediction"


def test_fp16_variant_folder_loads(tmp_path):
    pipe = tiny_models.pipeline("sd1").to(dtype=torch.float16)
    pipe.save_pretrained(tmp_path / "half", variant="fp16")
    base = load_base(str(tmp_path / "half"), dtype=torch.float16)
    assert base.dtype == torch.float16


def test_passport_tells_same_cousin_and_other(tiny_base):
    base = tiny_base("sd1")
    same = base.passport.compare(base.passport)
    assert (same.kind, same.distance) == ("same", 0.0)
    for dtype in (torch.float16, torch.bfloat16):
        match = base.passport.compare(tiny_base("sd1", dtype=dtype).passport)
        assert match.kind == "same"
        assert 0 < match.distance < 2e-3

    other = base.passport.compare(tiny_base("sd2").passport)
    assert other.kind == "other"
    assert math.isinf(other.distance)


@pytest.mark.parametrize("change", [0.01, 0.1])
def test_passport_measures_how_far_a_fine_tuned_cousin_went(change):
    unet = tiny_models.unet("sd1")
    before = passport_of(unet, "sd1")
    generator = torch.Generator().manual_seed(0)
    for weight in unet.parameters():
        step = torch.randn(weight.shape, generator=generator)
        weight.add_(step * (change * weight.norm() / step.norm()))
    match = before.compare(passport_of(unet, "sd1"))
    assert match.kind == "cousin"
    assert change / 2 < match.distance < change * 2


def test_passport_survives_text_and_refuses_damage():
    passport = BasePassport("sd1-00c0ffee", tuple(i / 7 - 1 for i in range(16)), "sd15")
    again = BasePassport.from_text(passport.architecture, passport.sketch_text(), "renamed")
    assert again == passport
    assert len(passport.sketch_text()) == 44
    for damaged in ("", "AAAA", "é", "A" * 44 + "!", "AH4=" * 12):
        with pytest.raises(ConceptError, match="fingerprint of the base"):
            BasePassport.from_text("sd1-00c0ffee", damaged)


def test_nan_weights_are_refused(tmp_path, tiny_folder):
    folder = shutil.copytree(tiny_folder("sd1"), tmp_path / "sick")
    unet = tiny_models.unet("sd1")
    unet.conv_in.weight[0, 0, 0, 0] = float("nan")
    unet.save_pretrained(folder / "unet")
    with pytest.raises(BaseError, match="'conv_in' holds NaN"):
        load_base(str(folder))


def test_long_prompts_tell_what_is_cut(tiny_base):
    base = tiny_base("sd1")
    assert truncated_part(base, "a sks dog") == ""
    prompt = "dog " * 75 + "on the beach"
    assert truncated_part(base, prompt) == "on the beach"


@pytest.mark.parametrize(
    ("kind", "index"),
    [
        ("StableDiffusion3Pipeline", {"transformer": ["diffusers", "SD3Transformer2DModel"]}),
        ("FluxPipeline", {"transformer": ["diffusers", "FluxTransformer2DModel"]}),
    ],
)
def test_transformer_bases_are_refused_with_the_reason(tmp_path, kind, index):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind, **index}))
    with pytest.raises(
        BaseError, match=f"{kind}, whose denoiser is a transformer with no convolutional UNet"
    ):
        load_base(str(tmp_path))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"double_blocks.0.img_attn.qkv.weight": (4, 4)}, "no convolutional UNet"),
        ({"lora_unet_mid.lora_up.weight": (4, 4)}, "no Stable Diffusion checkpoint"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (8, 9, 3, 3)}, "takes 9 input channels"),
        (
            {
                "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
                "conditioner.embedders.0.model.ln_final.weight": (4,),
            },
            "SDXL refiner",
        ),
    ],
)
def test_other_checkpoints_are_refused_by_what_they_are(tmp_path, tensors, message):
    file = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, file)
    with pytest.raises(BaseError, match=message):
        load_base(str(file))


def test_inpainting_folder_is_refused(tmp_path, tiny_folder):
    from diffusers import UNet2DConditionModel

    folder = shutil.copytree(tiny_folder("sd1"), tmp_path / "inpaint")
    config = dict(tiny_models.unet("sd1").config) | {"in_channels": 9}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    with pytest.raises(BaseError, match="takes 9 input channels"):
        load_base(str(folder))


def _broken_bases(folder: Path, good: Path) -> dict[str, tuple[Path, str]]:
    pickled, cut, partial, empty = (folder / name for name in ("pickled", "cut", "partial", "empty"))
    for copy in (pickled, cut, partial):
        shutil.copytree(good, copy)
    unet = "unet/diffusion_pytorch_model.safetensors"
    (pickled / unet).rename(pickled / "unet/diffusion_pytorch_model.bin")
    (cut / unet).write_bytes((good / unet).read_bytes()[:5000])
    shutil.rmtree(partial / "tokenizer")
    empty.mkdir()
    (folder / "old.ckpt").write_bytes(b"\x80\x02}q\x00.")
    (folder / "noise.safetensors").write_bytes(b"\xff" * 64)
    return {
        "pickled": (pickled, "a pickle can run code"),
        "cut": (cut, "could not be loaded"),
        "partial": (partial, "are not there"),
        "empty": (empty, "no model_index.json"),
        "ckpt": (folder / "old.ckpt", "pickles"),
        "noise": (folder / "noise.safetensors", "cannot be read as safetensors"),
        "missing": (folder / "nowhere", "There is no base"),
    }


@pytest.mark.parametrize("name", ["pickled", "cut", "partial", "empty", "ckpt", "noise", "missing"])
def test_broken_bases_give_one_sentence(tmp_path, tiny_folder, name):
    path, message = _broken_bases(tmp_path, tiny_folder("sd1"))[name]
    with pytest.raises(BaseError, match=message) as caught:
        load_base(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ref", ["sd15", "sd21", "sdxl", "someone/some-model"])
def test_hub_bases_without_network_say_how_to_go_on(ref, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BaseError, match=r"hub cannot be reached.*'pocket'.*folder"):
        load_base(ref)


def test_a_complete_hub_cache_needs_no_network(tmp_path, tiny_folder, monkeypatch):
    snapshot = tmp_path / "models--someone--some-model" / "snapshots" / "abc"
    shutil.copytree(tiny_folder("sd1"), snapshot)
    refs = tmp_path / "models--someone--some-model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    base = load_base("someone/some-model")
    assert (base.name, base.family) == ("someone/some-model", "sd1")


def test_unknown_names_and_devices(tiny_folder):
    with pytest.raises(BaseError, match="none of pocket, sd15, sd21, sdxl"):
        load_base("sd16")
    with pytest.raises(SettingsError, match="no device 'gpu'"):
        load_base(str(tiny_folder("sd1")), device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(AtomdiffError, match="no CUDA GPU"):
            load_base(str(tiny_folder("sd1")), device="cuda")


def test_loading_prints_nothing(tiny_folder, capfd):
    load_base(str(tiny_folder("sd1")))
    assert capfd.readouterr() == ("", "")


def test_every_architecture_is_known_by_a_name_and_a_repository_of_its_own():
    known = list(architectures.ARCHITECTURES.values())
    assert len({it.alias for it in known}) == len({it.repository for it in known}) == len(known)
    assert [it.family for it in known if not it.repository] == ["pocket"]
    assert architectures.of_unet(load_base("pocket").unet.config) == "pocket"


def test_quiet_puts_logging_back():
    import logging

    before = [logging.getLogger(name).level for name in ("diffusers", "transformers")]
    with loading.quiet():
        pass
    assert [logging.getLogger(name).level for name in ("diffusers", "transformers")] == before
