"""Nothing is mixed up where the models are on another device than the pictures, the noise and the files."""

import elsewhere
import numpy as np
import pytest
import tiny_models
import torch
from accelerate import Accelerator

from atomdiff.pocket.judge import Judge, JudgeNet
from atomdiff.sampling.draw import draw
from atomdiff.training.latents import LatentCache, encode_table
from atomdiff.training.loop import TrainingData
from atomdiff.training.run import train
from benchmarks.court import Drawing
from benchmarks.method import fitting, running, tasks
from benchmarks.method.catalogue import chosen
from benchmarks.method.ledger import Ledger

FAMILIES = {
    "shared": {},
    "blocks": {
        "num_atoms": 9,
        "linear_family": "blocks",
        "average_last": 0.7,
        "gradient_checkpointing": True,
    },
    "recursive": {"num_atoms": 9, "conv_family": "recursive", "channel_groups": 4, "linear_atoms": "none"},
    "kronecker": {"linear_family": "kronecker", "train_token": False, "coef_block": 2, "num_atoms": 4},
}
TRAINING = {"max_train_steps": 2, "train_batch_size": 2, "resolution": 32, "class_word": "dog"}
TRAINING |= {"precision": "fp32"}
JUDGED = ("atomdiff's default", "LoRA r=1, attention + 2 words, as ours", "full fine-tuning")


@pytest.fixture(scope="module")
def dog(tmp_path_factory):
    return tiny_models.save_pictures(tmp_path_factory.mktemp("pictures") / "dog", 2, 40, 40)


@pytest.fixture
def away(monkeypatch):
    """Does something with a base whose models are on another device."""

    def act(base, what):
        elsewhere.move(base.pipe)
        with elsewhere.elsewhere(monkeypatch) as device, monkeypatch.context() as patched:
            patched.setattr(Accelerator, "device", device)
            assert base.device == device
            return what(base)

    return act


def test_devices_are_told_apart(monkeypatch):
    with elsewhere.elsewhere(monkeypatch) as device:
        there, here = torch.ones(3, device=device), torch.ones(3)
        assert (there + there).device == device and (there.cpu() + here).tolist() == [2, 2, 2]
        assert float((there * torch.tensor(2.0)).sum()) == 6
        with pytest.raises(RuntimeError, match="two devices"):
            there + here


@pytest.mark.parametrize(("kind", "family"), [("sdxl", "shared"), *(("sd1", family) for family in FAMILIES)])
def test_training_there_gives_what_it_gives_here(kind, family, tiny_base, away, dog, tmp_path):
    def trained(base):
        out = tmp_path / base.device.type
        return train(dog, out, base, **TRAINING, **FAMILIES[family])

    here, there = numbers(trained(tiny_base(kind))), numbers(away(tiny_base(kind), trained))
    assert here.abs().max() > 0
    assert torch.cosine_similarity(here, there, dim=0) > 0.999


def numbers(concept):
    return torch.cat([t.flatten() for t in (*concept.atoms.values(), *(concept.token or {}).values())])


@pytest.mark.parametrize(
    ("kind", "branches"), [("sd1", "conditional"), ("sd1", "both"), ("sdxl", "conditional")]
)
def test_drawing_there_gives_what_it_gives_here(kind, branches, tiny_base, away, dog, tmp_path):
    concept = train(dog, tmp_path, tiny_base(kind), **TRAINING)

    def drawn(base):
        prompts = ["a sks dog", "a cat"]
        some = [(concept, {"down": 2.0, "up": 1.0})]
        return [np.array(p, int) for p in draw(base, prompts, concepts=some, steps=2, branches=branches)]

    here, there = drawn(tiny_base(kind)), away(tiny_base(kind), drawn)
    assert np.abs(np.array(here) - np.array(there)).max() <= 2  # of 255: operations are ordered otherwise


@pytest.mark.parametrize("name", JUDGED)
def test_a_method_is_judged_there(name, tiny_base, away, tmp_path, monkeypatch):
    (method,), (task,) = chosen([name]), tasks.subjects(1)
    monkeypatch.setattr(fitting, "_clock", lambda base: 0.0)
    monkeypatch.setattr(running, "floor_seconds", lambda *given: 1.0)

    def judged(base):
        side = base.unet.config.sample_size
        mean = torch.randn(5, 1, 4, side, side, generator=torch.Generator().manual_seed(0))
        parts = (LatentCache(mean, torch.zeros_like(mean), (row,) * 5) for row in (0, 1))
        data = TrainingData(*parts, encode_table(base, ["a sks dog", "a dog"]))
        monkeypatch.setattr(running, "prepare", lambda *given: data)
        ledger = Ledger(tmp_path / base.device.type / "results.jsonl", {})
        bench = running.Bench(base, Judge(JudgeNet()), ledger, Drawing(1, 1, 32), 2, 1, 1, tmp_path)
        return bench.run(method, task, 0, method.rate)

    there = away(tiny_base(), judged)
    assert all(outcome.figures["drift"] >= 0 and outcome.bytes for outcome in there.values())
