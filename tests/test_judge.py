"""The pocket's judge on renders it has never seen, held-out subjects included."""

import numpy as np
import pytest
import torch
from PIL import Image

from atomdiff import pocket
from atomdiff.pocket import corpus, world
from atomdiff.pocket.corpus import HEADS
from atomdiff.pocket.judge import Judge, JudgeNet, examine

WEIGHTS = pocket.path() / "judge.safetensors"
pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="the judge is not trained yet")


@pytest.fixture(scope="module")
def right() -> dict[str, float]:
    judge = Judge.load(WEIGHTS)
    rng = np.random.default_rng(12345)
    scenes = []
    for _ in range(100):
        subject = world.random_subject(rng, held_out=bool(rng.random() < 0.5))
        scenes += [world.random_scene(rng, subject) for _ in range(2)]
    pictures = np.stack([np.asarray(world.render(s)) for s in scenes])
    facts = [corpus.answers(s) for s in scenes]
    labels = {h: np.array([f[h] for f in facts]) for h in HEADS}
    return examine(judge, corpus.Corpus(pictures, labels, np.arange(200) // 2, []), views=2)


def test_the_judge_on_unseen_renders(right):
    assert all(share >= 0.93 for share in right.values()), right


def test_the_judge_is_small():
    assert WEIGHTS.stat().st_size <= 3.1e6


def test_pictures_of_another_size_are_read_as_tensors_too():
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "teal")]
    judge = Judge(JudgeNet())
    as_tensor = judge(torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures]))
    assert torch.equal(as_tensor.identity, judge(pictures).identity)
