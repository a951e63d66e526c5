"""The best step is one that looks like the subject and still draws different pictures in different
contexts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from atomdiff.evaluation import best_step
from atomdiff.evaluation.best_step import CONTEXTS, Judged, PocketEyes, best, judge_steps
from atomdiff.pocket.corpus import HEADS


def test_the_best_is_alike_and_keeps_its_contexts_and_of_equals_the_first():
    cooked, good, raw = Judged(300, 0.9, 0.1), Judged(150, 0.8, 0.8), Judged(25, 0.2, 1.0)
    assert best([raw, good, cooked]) is good
    assert best([Judged(50, 0.5, 0.5), Judged(25, 0.5, 0.5)]).step == 25
    assert Judged(1, -0.3, 0.0).score == 0.0


def flat(colour: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (colour, 0, 0))


class Shades:
    """Likeness is how red a picture is; contexts are told by how different the reds are."""

    def images(self, pictures):
        red = torch.tensor([p.getpixel((0, 0))[0] / 255 for p in pictures])
        return torch.stack([red, (1 - red**2).sqrt()], 1)

    def contexts(self, pictures, each):
        return float(np.std([p.getpixel((0, 0))[0] for p in pictures]))


def test_every_step_is_drawn_alike_and_held_against_the_base(monkeypatch):
    asked = []

    def draw(base, prompts, concepts, count, seed):
        asked.append((prompts, concepts, count, seed))
        level, width = concepts[0] if concepts else (60, 40)
        return [flat(level + width * (i % len(prompts))) for i in range(count * len(prompts))]

    states = {10: (80, 40), 20: (200, 15), 30: (250, 1)}
    timeline = SimpleNamespace(
        last=SimpleNamespace(class_word="dog", trigger="sks"), spread=lambda n: tuple(states), at=states.get
    )
    monkeypatch.setattr(best_step, "draw", draw)
    judged = judge_steps(None, timeline, [flat(255)], Shades(), each=1, seed=3)
    assert [one.step for one in judged] == [10, 20, 30]
    assert [one.contexts for one in judged] == pytest.approx([1.0, 15 / 40, 1 / 40])
    assert judged[0].likeness < judged[1].likeness < judged[2].likeness
    assert best(judged).step == 10
    assert asked[0] == ([f"a dog {where}" for where in CONTEXTS], [], 1, 3)
    assert asked[1][0][0] == "a sks dog on the beach"


def test_the_pockets_judge_tells_contexts_by_name():
    named = [where.split()[-1] for where in CONTEXTS]
    assert set(named) <= set(HEADS["context"])
    seen = torch.tensor([HEADS["context"].index(name) for name in ("beach", "beach", "city", "forest")])
    eyes = PocketEyes(lambda pictures: SimpleNamespace(answers={"context": seen}))
    assert eyes.contexts([flat(0)] * 4, 1) == 0.75
