"""The recipe's loop: a run that is killed and started again ends exactly where an unbroken one ends."""

from pathlib import Path

import pytest
import torch
from torch import nn

from atomdiff.errors import AtomdiffError
from atomdiff.pocket.judge import Judge
from atomdiff.pocket.recipe import words
from atomdiff.pocket.recipe.fitting import Schedule, Workshop, fit, read_tensors, write_tensors


def problem() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(40, 20)  # a matrix for Muon, a bias for AdamW


def run(folder: Path, steps: int, stop_at: int | None = None) -> nn.Linear:
    model = problem()
    shop = Workshop(folder, torch.device("cpu"), seed=1, checkpoint_seconds=0.0)

    def loss_at(step: int, g: torch.Generator) -> torch.Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        return (model(torch.randn(8, 40, generator=g)) - 1).pow(2).mean()

    fit("toy", model, loss_at, Schedule(steps, 8, 1e-2, warmup=2), shop, ema_decay=0.9)
    return model


def test_killed_and_resumed_is_the_unbroken_run(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", 20, stop_at=13)
    resumed, whole = run(tmp_path / "a", 20), run(tmp_path / "b", 20)
    for a, b in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


def test_rate_rises_stays_and_falls():
    schedule = Schedule(100, 1, 1.0, warmup=10, decay=0.5)
    assert schedule.rate(0) == pytest.approx(0.1)
    assert schedule.rate(30) == 1.0
    assert schedule.rate(75) == pytest.approx(0.5)
    assert schedule.rate(99) == pytest.approx(0.02)


def test_tensors_survive_and_carry_their_facts(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"a": torch.arange(3)}, {"step": 7})
    tensors, about = read_tensors(tmp_path / "x.safetensors")
    assert torch.equal(tensors["a"], torch.arange(3)) and about == {"step": 7}
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_the_tokenizer_takes_any_text():
    tokenizer = words.build_tokenizer(["a red dog on the beach", "a sks cat in the snow"] * 5)
    ids = words.tokenize(tokenizer, ["Ünïcode ☃ 日本, 123!", ""])
    assert ids.shape == (2, words.CONTEXT)
    assert tokenizer.decode(ids[0], skip_special_tokens=True).replace(" ", "") == "ünïcode☃日本,123!"


def test_a_missing_judge_is_told_with_the_remedy(tmp_path):
    with pytest.raises(AtomdiffError, match=r"There is no judge at .*: train it with"):
        Judge.load(tmp_path / "judge.safetensors")
