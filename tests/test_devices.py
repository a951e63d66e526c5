"""Nothing is mixed up where the models are on another device than the pictures, the noise and the files."""

from types import SimpleNamespace

import elsewhere
import numpy as np
import pytest
import tiny_models
import torch
from accelerate import Accelerator

from atomdiff.evaluation.pocket_figures import Drawing
from atomdiff.pocket.judge import Judge, JudgeNet
from atomdiff.pocket.recipe import denoiser, words
from atomdiff.pocket.recipe.fitting import Schedule, Workshop
from atomdiff.sampling.draw import draw
from atomdiff.training.forward import TrainingData
from atomdiff.training.latents import LatentCache, encode_table
from atomdiff.training.run import train
from benchmarks import method, tasks
from benchmarks.peers import fit

FAMILIES = {
    "atoms+dc": {"average_last": 0.7, "gradient_checkpointing": True},
    "recursive": {"recipe": "recursive", "channel_groups": 4, "linear_atoms": "none"},
    "coefficients": {"train_token": False, "coef_block": 2, "num_atoms": 4},
    "word": {"recipe": "word"},
}
TRAINING = {"max_train_steps": 2, "train_batch_size": 2, "resolution": 32, "class_word": "dog"}
TRAINING |= {"precision": "fp32", "with_prior_preservation": False}


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


TRAINED = [("sdxl", "atoms+dc"), *(("sd1", family) for family in FAMILIES)]


@pytest.mark.parametrize(("kind", "family"), TRAINED)
def test_training_there_gives_what_it_gives_here(kind, family, tiny_base, away, dog, tmp_path):
    def trained(base):
        out = tmp_path / base.device.type
        return train(dog, out, base, **TRAINING, **FAMILIES[family])

    here, there = numbers(trained(tiny_base(kind))), numbers(away(tiny_base(kind), trained))
    assert here.abs().max() > 0
    assert torch.cosine_similarity(here, there, dim=0) > 0.999


def numbers(concept):
    return torch.cat([t.flatten() for t in (*concept.atoms.values(), *(concept.token or {}).values())])


@pytest.mark.parametrize(("kind", "acting"), [("sd1", "gated"), ("sd1", "plain"), ("sdxl", "gated")])
def test_drawing_there_gives_what_it_gives_here(kind, acting, tiny_base, away, dog, tmp_path):
    concept = train(dog, tmp_path, tiny_base(kind), **TRAINING)

    def drawn(base):
        prompts = ["a sks dog", "a cat"]
        some = [(concept, {"down": 2.0, "up": 1.0})]
        return [np.array(p, int) for p in draw(base, prompts, concepts=some, steps=2, acting=acting)]

    here, there = drawn(tiny_base(kind)), away(tiny_base(kind), drawn)
    assert np.abs(np.array(here) - np.array(there)).max() <= 2  # of 255: operations are ordered otherwise


def test_the_pocket_is_trained_there_as_here(monkeypatch, tmp_path):
    """Latents and captions held on the device, the noise drawn beside the CPU's generator."""
    tokenizer = words.build_tokenizer(["a red dog on the beach"] * 5)
    small = {"block_out_channels": (16, 32), "attention_head_dim": 2, "norm_num_groups": 4, "sample_size": 4}
    small |= {f"{way.lower()}_block_types": (f"CrossAttn{way}Block2D",) * 2 for way in ("Down", "Up")}
    monkeypatch.setattr(denoiser, "CONFIG", denoiser.CONFIG | small)
    latents = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    ids = words.tokenize(tokenizer, ["a red dog on the beach"] * 6).short()[:, None]

    def trained(device):
        shop = Workshop(tmp_path / device.type, device, seed=1)
        torch.manual_seed(0)
        text = words.new_encoder(tokenizer)
        schedule = Schedule(2, 3, 1e-3, warmup=1)
        held = latents.to(device), ids.to(device), ids[0, 0]
        unet, _, about = denoiser.train(*held, text, schedule, shop)
        return about["loss"], [p.detach().cpu() for p in unet.parameters()]

    def ready(shop, model):
        if shop.device != torch.device("cpu"):
            elsewhere.move(SimpleNamespace(components={"model": model}))
        return model

    here, adam = trained(torch.device("cpu")), torch.optim.AdamW
    monkeypatch.setattr(Workshop, "ready", ready)
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, fused, **others: adam(groups, **others))
    with elsewhere.elsewhere(monkeypatch) as device:
        there = trained(device)
    assert there[0] == pytest.approx(here[0], rel=1e-2)
    assert all((a - b).abs().max() < 1e-2 for a, b in zip(here[1], there[1], strict=True))


@pytest.mark.parametrize("peer", method.PEERS[::2], ids=lambda peer: peer.name)
def test_a_peer_is_trained_and_judged_there(peer, tiny_base, away):
    (task,) = tasks.subjects(1)

    def judged(base):
        side = base.unet.config.sample_size
        mean = torch.randn(5, 1, 4, side, side, generator=torch.Generator().manual_seed(0))
        parts = (LatentCache(mean, torch.zeros_like(mean), ((row,),) * 5) for row in (0, 1))
        data = TrainingData(*parts, encode_table(base, ["a sks dog", "a dog"]))
        judge = task.judge(base, Judge(JudgeNet()), Drawing(1, 1, 32))
        handle = peer.attach(base)
        fit(handle, data, 2, 1, 0, peer.rate)
        with handle.filed(handle.to_bytes()):
            return judge.judge_all(handle.base, [], handle.asked(task.asked))[0]

    assert away(tiny_base(), judged)["drift"] >= 0
