"""The bundled model: stock classes load it offline, it draws what it drew when it was made, the judge can
judge."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atomdiff import pocket
from atomdiff.pocket import corpus, world
from atomdiff.pocket.corpus import HEADS
from atomdiff.pocket.judge import Judge, examine

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
    assert picture.size == (64, 64)
    assert difference < 4, f"mean difference of {difference:.1f} of 255 to {REFERENCE.name}"


def test_the_judge_sees_what_was_asked_for(picture):
    seen = Judge.load(pocket.path() / "judge.safetensors")([picture])
    answers = {head: HEADS[head][int(seen.answers[head][0])] for head in ("class", "colour", "context")}
    assert answers == {"class": "dog", "colour": "red", "context": "beach"}


def test_the_judge_on_unseen_renders(tmp_path):
    judge = Judge.load(pocket.path() / "judge.safetensors")
    rng = np.random.default_rng(12345)
    scenes = []
    for _ in range(100):
        subject = world.random_subject(rng, held_out=bool(rng.random() < 0.5))
        scenes += [world.random_scene(rng, subject) for _ in range(2)]
    pictures = np.stack([np.asarray(world.render(s, 64)) for s in scenes])
    facts = [corpus.answers(s) for s in scenes]
    labels = {h: np.array([f[h] for f in facts]) for h in HEADS}
    right = examine(judge, corpus.Corpus(pictures, labels, np.arange(200) // 2, []), views=2)
    assert all(share >= 0.93 for head, share in right.items() if head != "identity"), right
    assert right["identity"] >= 0.85, right


def test_the_weights_are_small_and_fp16():
    files = sorted(pocket.path().rglob("*.safetensors"))
    model = [f for f in files if f.name != "judge.safetensors"]
    assert sum(f.stat().st_size for f in model) <= 32e6
    assert (pocket.path() / "judge.safetensors").stat().st_size <= 3e6
    assert not list(pocket.path().rglob("*.bin"))
