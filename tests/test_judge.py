"""The pocket's judge on renders it has never seen, held-out subjects included."""

import numpy as np
import pytest

from atomdiff import pocket
from atomdiff.pocket import corpus, world
from atomdiff.pocket.corpus import HEADS
from atomdiff.pocket.judge import Judge, examine

WEIGHTS = pocket.path() / "judge.safetensors"
pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="the judge is not trained yet")


SHORT = ("second", "pattern")  # heads that are not there yet; see the model card


@pytest.fixture(scope="module")
def right() -> dict[str, float]:
    judge = Judge.load(WEIGHTS)
    rng = np.random.default_rng(12345)
    scenes = []
    for _ in range(100):
        subject = world.random_subject(rng, held_out=bool(rng.random() < 0.5))
        scenes += [world.random_scene(rng, subject) for _ in range(2)]
    pictures = np.stack([np.asarray(world.render(s, 64)) for s in scenes])
    facts = [corpus.answers(s) for s in scenes]
    labels = {h: np.array([f[h] for f in facts]) for h in HEADS}
    return examine(judge, corpus.Corpus(pictures, labels, np.arange(200) // 2, []), views=2)


def test_the_judge_on_unseen_renders(right):
    assert all(share >= 0.93 for head, share in right.items() if head not in ("identity", *SHORT)), right
    assert right["identity"] >= 0.85, right


@pytest.mark.xfail(strict=True, reason="these heads need a longer training on more renders")
def test_the_heads_that_fall_short(right):
    assert all(right[head] >= 0.93 for head in SHORT), right


def test_the_judge_is_small():
    assert WEIGHTS.stat().st_size <= 3e6
