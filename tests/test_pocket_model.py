"""The bundled model: stock classes load it offline, and it draws what it drew when it was made."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atomdiff import pocket

REFERENCE = Path(__file__).parent / "data" / "pocket_reference.png"
PROMPT = "a red dog on the beach"


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(pocket.path(), local_files_only=True, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    g = torch.Generator().manual_seed(3)
    return pipe(PROMPT, num_inference_steps=25, guidance_scale=4.0, generator=g).images[0]


def test_stock_diffusers_draws_the_reference(picture):
    reference = Image.open(REFERENCE).convert("RGB")
    difference = np.abs(np.asarray(picture, float) - np.asarray(reference, float)).mean()
    assert picture.size == (128, 128)
    assert difference < 4, f"mean difference of {difference:.1f} of 255 to {REFERENCE.name}"


def test_the_weights_are_small_and_fp16():
    files = [f for f in pocket.path().rglob("*.safetensors") if f.name != "judge.safetensors"]
    assert sum(f.stat().st_size for f in files) <= 32e6
    assert not list(pocket.path().rglob("*.bin"))
