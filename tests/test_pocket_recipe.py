"""The recipe's loop: a run that is killed and started again ends exactly where an unbroken one ends."""

import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from atomdiff.base.stable_diffusion import load_base
from atomdiff.errors import AtomdiffError
from atomdiff.pocket import build, corpus
from atomdiff.pocket.judge import Judge
from atomdiff.pocket.recipe import autoencoder, words
from atomdiff.pocket.recipe.fitting import OutOfTime, Schedule, Workshop, fit, read_tensors, write_tensors


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


def test_a_schedule_of_minutes_ends_with_its_time(tmp_path):
    schedule = Schedule(100, 1, 1.0, warmup=1, decay=0.5, minutes=2.0)
    assert schedule.rate(10, 30) == 1.0
    assert schedule.rate(10, 90) == pytest.approx(0.5)
    assert schedule.share(10, 120) == 1 and schedule.share(100, 0) == 1
    assert Schedule(0, 1, 1.0).share(0) == 1
    shop, model = Workshop(tmp_path, torch.device("cpu"), seed=1), problem()

    def loss_at(step: int, g: torch.Generator) -> torch.Tensor:
        return (model(torch.randn(8, 40, generator=g)) - 1).pow(2).mean()

    about = fit("toy", model, loss_at, Schedule(10**9, 8, 1e-2, minutes=0.005), shop)
    assert 0 < about["steps"] < 10**6 and about["seconds"] < 10


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


def test_a_sitting_that_is_over_goes_on_later(tmp_path):
    shop = Workshop(tmp_path, torch.device("cpu"), seed=1, deadline=time.monotonic())
    model = problem()

    def loss_at(step: int, g: torch.Generator) -> torch.Tensor:
        return (model(torch.randn(8, 40, generator=g)) - 1).pow(2).mean()

    with pytest.raises(OutOfTime, match="toy: step 1 of 3"):
        fit("toy", model, loss_at, Schedule(3, 8, 1e-2, warmup=2), shop, ema_decay=0.9)
    assert fit("toy", model, loss_at, Schedule(3, 8, 1e-2), replace(shop, deadline=math.inf))["steps"] == 3


def test_an_autoencoder_that_goes_on_is_held_to_its_own_latents():
    assert autoencoder.begin(None)[1] is None
    again, held = autoencoder.begin(autoencoder.new_autoencoder())
    assert held is not None and held is not again
    for a, b in zip(again.parameters(), held.parameters(), strict=True):
        assert torch.equal(a, b) and a.requires_grad and not b.requires_grad


def test_known_words_keep_their_vectors():
    was = words.build_tokenizer(["a red dog on the beach"] * 5)
    tokenizer = words.build_tokenizer(["a red dog on the beach", "a vkd cat"] * 5)
    old = words.new_encoder(was)
    new = words.with_vocabulary(old, was, tokenizer)
    a, b = (words.tokenize(t, ["a red dog on the beach"]) for t in (was, tokenizer))
    with torch.no_grad():
        said = [model(ids).last_hidden_state[:, :8] for model, ids in ((old, a), (new, b))]
    assert torch.allclose(*said, atol=1e-5)
    assert len(tokenizer.tokenize("vkd")) == 1


# ---------------------------------------------------------------- the whole
def test_the_whole_recipe_makes_a_model_in_sittings_and_trains_it_on(tmp_path, monkeypatch):
    """From nothing to a folder that stock diffusers loads, with two steps of everything."""
    monkeypatch.setattr(corpus, "CHUNK", 24)
    monkeypatch.setattr(build, "EXAMINED", 24)
    command = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    command += ["--pictures", "24", "--acquaintances", "24"]
    for stage in build.STAGES:
        command += [f"--{stage}-steps", "2", f"--{stage}-batch", "2"]
    with pytest.raises(SystemExit) as stopped:
        build.main([*command, "--minutes", "0.0001"])
    assert stopped.value.code == 75
    build.main(command)
    base = load_base(str(tmp_path / "out"))
    assert base.resolution == 128 and base.vae.config.latent_channels == 16
    judge = Judge.load(tmp_path / "out" / "judge.safetensors")
    assert judge([Image.new("RGB", (128, 128))]).identity.shape == (1, 64)
    assert "128 × 128 pictures" in (tmp_path / "out" / "README.md").read_text()

    again = [*command, "--work", str(tmp_path / "again"), "--start", str(tmp_path / "out")]
    again += ["--out", str(tmp_path / "on"), "--autoencoder-steps", "1", "--words-steps", "0"]
    build.main([*again, "--only", "autoencoder", "words", "denoiser"])
    assert load_base(str(tmp_path / "on")).passport.architecture == base.passport.architecture
    tokens = [(tmp_path / folder / "tokenizer" / "tokenizer.json").read_bytes() for folder in ("out", "on")]
    assert tokens[0] == tokens[1]
