"""A learned trigger: what it adds, what it leaves alone, how it trains and travels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from atomdiff.base.stable_diffusion import encode_prompts
from atomdiff.base.textual_inversion import TriggerToken, added, convert_prompt, embeddings_of
from atomdiff.concept.concept import Concept
from atomdiff.core import inject
from atomdiff.core.inject import AtomSpec
from atomdiff.errors import ConceptError, SettingsError
from atomdiff.files.safetensors_file import from_bytes, load_concept, size_report, to_bytes
from atomdiff.sampling.draw import draw
from atomdiff.training.latents import LiveTable, encode_table
from atomdiff.training.run import train

SPEC = AtomSpec(num_atoms=0)
PROMPTS = ["a sks dog", "a dog", "two sks"]


def _concept(base: Any, trained: TriggerToken, **changes: Any) -> Concept:
    attached = inject.attach(base.unet, SPEC)
    attached.detach()
    values = {"trigger": trained.trigger, "token": trained.read()} | changes
    return Concept.of(base.unet, SPEC, attached.read(), base.passport, **values)


def _moved(base: Any, trigger: str = "sks") -> TriggerToken:
    token = TriggerToken(base, trigger)
    with torch.no_grad():
        for i, vector in enumerate(token.vectors.values()):
            vector.copy_(0.5 * torch.randn(vector.shape, generator=torch.Generator().manual_seed(i)))
    return token


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_token_is_what_writing_the_table_would_be(tiny_base: Callable[..., Any], kind: str) -> None:
    base = tiny_base(kind)
    token = _moved(base)
    assert list(token.vectors) == (["token", "token2"] if kind == "sdxl" else ["token"])
    before = encode_prompts(base, PROMPTS)
    encoders = [getattr(base.pipe, name) for name in ("text_encoder", "text_encoder_2")[: len(token.vectors)]]
    tables = [encoder.get_input_embeddings().weight for encoder in encoders]
    bits = [table.clone() for table in tables]
    concept = from_bytes(to_bytes(_concept(base, token), "fp32"))
    with added(base, embeddings_of(base, [(concept, 0.5)])):
        moved = encode_prompts(base, PROMPTS)
    with added(base, embeddings_of(base, [(concept, 0.0)])):
        assert torch.equal(encode_prompts(base, PROMPTS).hidden, before.hidden)
    assert all(torch.equal(table, kept) for table, kept in zip(tables, bits, strict=True))
    assert torch.equal(encode_prompts(base, PROMPTS).hidden, before.hidden)
    assert torch.equal(moved.hidden[1], before.hidden[1])
    assert not torch.allclose(moved.hidden[0], before.hidden[0])

    for table, (key, vector) in zip(tables, token.read().items(), strict=True):
        table.data[token.ids[key]] += 0.5 * vector[:, 0]
    written = encode_prompts(base, PROMPTS)
    for table, kept in zip(tables, bits, strict=True):
        table.data.copy_(kept)
    torch.testing.assert_close(moved.hidden, written.hidden)
    if kind == "sdxl":
        torch.testing.assert_close(moved.pooled, written.pooled)


@pytest.mark.parametrize("trigger", ["sks", "zqx"])
def test_a_word_of_several_vectors_is_read_several_times(tiny_base: Callable[..., Any], trigger: str) -> None:
    """Vector by vector it is what as many words of one vector each would be."""
    base = tiny_base("sdxl")
    token = TriggerToken(base, trigger, vectors=6)
    length = len(token.ids["token"])
    assert token.embedding().repeats == 6 // length and length in (1, 2, 3)
    with torch.no_grad():
        for i, vector in enumerate(token.vectors.values()):
            vector.copy_(0.5 * torch.randn(vector.shape, generator=torch.Generator().manual_seed(i)))
    concept = from_bytes(to_bytes(_concept(base, token), "fp32"))
    learned = embeddings_of(base, [(concept, 1.0)])
    said = " ".join([trigger] * token.embedding().repeats)
    assert convert_prompt(f"a {trigger}, {trigger.upper()}'s x{trigger}", learned) == (
        f"a {said}, {said.upper()}'s x{trigger}"
    )
    assert convert_prompt(f"a {trigger}", [*learned, *learned]) == f"a {said}"  # two concepts of one word
    prompt = f"a {trigger} dog and {trigger} again"
    inputs: dict[str, Any] = {}

    def seen(key: str) -> Any:
        return lambda table, args, out: inputs.update({key: (args[0], out)})

    tables = {
        key: getattr(base.pipe, name).get_input_embeddings()
        for key, name in (("token", "text_encoder"), ("token2", "text_encoder_2"))
    }
    with added(base, learned):
        handles = [table.register_forward_hook(seen(key)) for key, table in tables.items()]
        encode_prompts(base, [convert_prompt(prompt, learned)])
    for handle in handles:
        handle.remove()
    for key, (ids, out) in inputs.items():
        rows = torch.cat([vector[:, 0] for vector in [concept.token[key]] * 2])
        places = [i for i, own in enumerate(ids[0].tolist()) if own in token.ids[key]]
        assert len(places) == len(rows)
        torch.testing.assert_close(out[0, places], tables[key].weight[ids[0, places]] + rows)


def test_prompts_with_the_trigger_learn_and_others_stay_cached(tiny_base: Callable[..., Any]) -> None:
    base = tiny_base("sd1")
    token = TriggerToken(base, "sks", ["a dog"])
    table = encode_table(base, PROMPTS)
    live = LiveTable(table, base, token)
    same = live.rows([1, 0, 2, 0], "cpu")
    torch.testing.assert_close(same.hidden, table.rows([1, 0, 2, 0], "cpu").hidden)
    same.hidden.square().sum().backward()
    assert token.vectors["token"].grad.abs().sum() > 0
    assert not any(p.grad is not None for p in base.pipe.text_encoder.parameters())
    assert not live.rows([1], "cpu").hidden.requires_grad
    with torch.no_grad():
        token.vectors["token"].add_(1.0)
    moved = live.rows([0, 1], "cpu").hidden
    assert not torch.allclose(moved[0], same.hidden[1]) and torch.equal(moved[1], same.hidden[0])


def test_a_half_base_learns_in_fp32(tiny_base: Callable[..., Any]) -> None:
    base = tiny_base("sd1", dtype=torch.bfloat16)
    token = _moved(base)
    made = LiveTable(encode_table(base, PROMPTS), base, token).rows([0, 1], "cpu").hidden
    assert made.dtype == torch.bfloat16
    made.float().square().sum().backward()
    assert token.vectors["token"].dtype == token.vectors["token"].grad.dtype == torch.float32


def test_it_travels_with_the_atoms(tiny_base: Callable[..., Any]) -> None:
    base = tiny_base("sd1")
    concept = _concept(base, _moved(base))
    for dtype in ("fp16", "int8", "int4"):
        data = to_bytes(concept, dtype)
        assert to_bytes(from_bytes(data), dtype) == data
        assert (
            size_report(data)["token"]
            == concept.token["token"].numel() * {"fp16": 4, "int8": 2, "int4": 1}[dtype] // 2
        )
    assert set(concept.bind(base.unet)) == set(concept.deltas(base.unet))
    with pytest.raises(ConceptError, match=r"learned trigger 'dog' .* use the base it was made for"):
        bad = _concept(base, _moved(base), trigger="dog", token={"token": torch.ones(3, 1, 8)})
        embeddings_of(base, [(bad, 1.0)])


def test_refusals(tiny_base: Callable[..., Any]) -> None:
    base = tiny_base("sd1")
    with pytest.raises(SettingsError, match="shares a token with the prompt 'a dog'"):
        TriggerToken(base, "dog", ["a dog"])
    with pytest.raises(SettingsError, match="is 15 tokens long and a learned one has 1 to 8"):
        TriggerToken(base, "abcdefghijklmno")


# ------------------------------------------------------------------------------- the whole of training


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_training_binds_and_resumes_exactly(tiny_base: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    base = tiny_base(kind)
    for folder in ("dog", "dogs"):
        (tmp_path / folder).mkdir()
        for i in range(2):
            pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    settings: dict[str, Any] = {
        "class_data_dir": str(tmp_path / "dogs"), "num_class_images": 2, "conv_layers": "mid_block",
        "train_batch_size": 2, "train_token": True, "conv_family": "sparse",
        "num_atoms": 4, "coef_block": 2, "timeline_steps": 0, "checkpointing_steps": 2, "max_train_steps": 4,
        "with_prior_preservation": True, "lr_scheduler": "constant",
    }  # fmt: skip
    whole = train(tmp_path / "dog", tmp_path / "whole", base, **settings)
    assert {key for key, values in whole.atoms.items() if values.any()} == set(whole.atoms)
    assert {"conv", "coef", "linear", "token"} <= set(whole.atoms)
    train(tmp_path / "dog", tmp_path / "parts", base, **(settings | {"max_train_steps": 2}))
    again = train(tmp_path / "dog", tmp_path / "parts", base, **settings, resume_from_checkpoint="latest")
    assert all(torch.equal(values, whole.atoms[key]) for key, values in again.atoms.items())
    loaded = load_concept(tmp_path / "whole" / "dog.safetensors")
    assert loaded.spec == whole.spec and set(loaded.token) == set(whole.token)
    pictures = [
        draw(base, "a sks dog", concepts=[(loaded, s)], steps=1, size=32)[0].tobytes() for s in (0.0, 1.0)
    ]
    assert pictures[0] == draw(base, "a sks dog", steps=1, size=32)[0].tobytes() != pictures[1]
