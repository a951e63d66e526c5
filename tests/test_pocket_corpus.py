"""What the recipe learns from: pictures of the size asked for, with captions and labels that are theirs."""

import numpy as np
import pytest

from atomdiff.pocket import captions, corpus, world
from atomdiff.pocket.corpus import HEADS, Mix


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(corpus, "CHUNK", 24)


def test_a_mix_has_pairs_and_individuals(tmp_path):
    made = corpus.pretraining(tmp_path, 24, 0, Mix(size=32, pairs=0.5, named=0.6))
    assert made.pictures.shape == (24, 32, 32, 3)
    two = made.labels["other"] > 0
    assert 4 < two.sum() < 20
    assert np.array_equal(two, made.labels["other colour"] >= 0)
    own = {*captions.individuals()}
    assert 4 < sum(bool(own & {w for text in row for w in text.split()}) for row in made.captions) < 22
    for row, second in zip(made.captions, made.labels["other"], strict=True):
        assert not second or all(HEADS["other"][second] in text for text in row)


def test_captions_are_read_without_pictures_and_nothing_is_drawn_twice(tmp_path, monkeypatch):
    whole = corpus.pretraining(tmp_path, 20, 0, Mix(size=32))
    monkeypatch.setattr(world, "render", lambda *given: pytest.fail("drawn again"))
    said = corpus.pretraining(tmp_path, 20, 0, Mix(size=32), seen=False)
    assert len(said.pictures) == 0 and said.captions == whole.captions
    assert np.array_equal(said.labels["class"], whole.labels["class"])


def test_views_of_one_subject_follow_each_other(tmp_path):
    made = corpus.acquaintances(tmp_path, 24, 0, views=4, mix=Mix(size=32, pairs=0.3))
    assert made.subject.tolist() == [i // 4 for i in range(24)]
    for head in ("class", "colour", "pattern"):
        rows = made.labels[head].reshape(-1, 4)
        assert (rows == rows[:, :1]).all()
