"""Parts of a base that are not taken from its own files."""

import pytest
import tiny_models
import torch
from diffusers import PNDMScheduler

from atomdiff.base.overrides import autoencoder, reschedule
from atomdiff.base.stable_diffusion import Choice, load_base
from atomdiff.errors import BaseError


@pytest.mark.parametrize("kind", [None, PNDMScheduler])
def test_a_schedule_that_ends_in_pure_noise(kind):
    pipe = tiny_models.pipeline("sd2")
    if kind:  # knows no such schedule
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
    reschedule(pipe, None, True, "x")
    assert float(pipe.scheduler.alphas_cumprod[-1]) < 1e-6
    assert pipe.scheduler.config.prediction_type == "v_prediction"


def test_what_a_base_predicts_is_as_was_said():
    pipe = tiny_models.pipeline("sd1")
    with pytest.raises(BaseError, match="predicts the noise, and pure noise has nothing else to predict"):
        reschedule(pipe, None, True, "x")
    reschedule(pipe, "v_prediction", True, "x")
    assert pipe.scheduler.config.prediction_type == "v_prediction"


def test_another_autoencoder_takes_the_place_of_the_bases_own(tiny_folder):
    other = tiny_folder("sd1", 1)
    base = load_base(str(tiny_folder("sd1")), choice=Choice(vae=str(other)))
    theirs = autoencoder(str(other / "vae"), torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(base.vae.parameters(), theirs.parameters(), strict=True))
    with pytest.raises(BaseError, match=r"The autoencoder '.*' could not be loaded"):
        load_base(str(tiny_folder("sd1")), choice=Choice(vae=str(other / "nothing")))


def test_a_pickled_autoencoder_is_refused(tmp_path):
    (tmp_path / "vae.ckpt").write_bytes(b"x")
    with pytest.raises(BaseError, match=r"no \.safetensors file, and other formats can run code"):
        autoencoder(str(tmp_path / "vae.ckpt"), torch.float32)


def test_a_variant_is_chosen_by_name(tmp_path):
    folder = tiny_models.save_folder("sd1", tmp_path / "both")
    tiny_models.save_folder("sd1", folder, seed=1, variant="fp16")
    plain, half = (load_base(str(folder), choice=Choice(variant=v)) for v in ("", "fp16"))
    assert not torch.equal(plain.unet.conv_in.weight, half.unet.conv_in.weight)
    with pytest.raises(BaseError, match="has no variant 'bf16': its UNet is there as diffusion_pytorch"):
        load_base(str(folder), choice=Choice(variant="bf16"))
