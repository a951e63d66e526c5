"""Prompts as A1111 users write them: weights, parts and length; plain ones stay as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_concepts import concept

import atomdiff
from atomdiff.base.prompt_weights import Fragment, Prompt, encode_weighted, parse, plain_text, same_length
from atomdiff.base.stable_diffusion import encode_prompts
from atomdiff.sampling.draw import draw

LONG = "a dog, on the beach, " * 8


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a dog", [[("a dog", 1)]]),
        ("", [[("", 1)]]),
        ("(sks:1.3) dog", [[("sks", 1.3), (" dog", 1)]]),
        ("a ((big)) [small] dog", [[("a ", 1), ("big", 1.21), (" ", 1), ("small", 1 / 1.1), (" dog", 1)]]),
        ("(a (b:2) c)", [[("a ", 1.1), ("b", 2.2), (" c", 1.1)]]),
        (r"a \(cute\) dog", [[("a (cute) dog", 1)]]),
        ("a dog BREAK a cat", [[("a dog ", 1)], [(" a cat", 1)]]),
        ("(a BREAK b:1.5) c", [[("a ", 1.5)], [(" b", 1.5), (" c", 1)]]),
        ("(open, 3:4 BREAKFAST", [[("open, 3:4 BREAKFAST", 1.1)]]),
        ("closed) dog:1.5] x", [[("closed) dog:1.5] x", 1)]]),
        ("(never:0) (much:99)", [[("never", 0), (" ", 1), ("much", 10)]]),
    ],
)
def test_a1111s_rules(prompt: str, parts: list[list[tuple[str, float]]]) -> None:
    found = [[(own.text, pytest.approx(own.weight)) for own in part] for part in parse(prompt)]
    assert found == parts


@given(st.text(alphabet="ab ():[]\\.1BREAK,é\n", max_size=40))
@settings(max_examples=300)
def test_any_text_is_some_prompt(prompt: str) -> None:
    parts = parse(prompt)
    assert parts and all(part for part in parts)
    assert all(0 <= own.weight <= 10 for part in parts for own in part)
    if not set(prompt) & set("()[]\\") and "BREAK" not in prompt and prompt.strip():
        assert parts == [[Fragment(prompt)]] and plain_text(parts) == prompt


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_encoding(tiny_base: Callable[..., Any], kind: str) -> None:
    base = tiny_base(kind)

    def read(text: str) -> Prompt:
        return Prompt.of(base, text)

    def hidden(text: str) -> torch.Tensor:
        (made,) = encode_weighted(base, [read(text)])
        assert made.hidden.shape[1] == read(text).length and made.hidden.dtype == plain.hidden.dtype
        return made.hidden

    plain = encode_prompts(base, ["a dog sks"])
    assert torch.equal(hidden("a dog sks"), plain.hidden) and read("a (dog:1.0) sks").plain
    more, much = hidden("a (dog:1.2) sks"), hidden("a (dog:1.4) sks")
    less = hidden("a (dog:0.5) sks")
    assert more.shape == plain.hidden.shape
    moved = [float((made - plain.hidden).norm()) for made in (more, much, less)]
    assert 0 < moved[0] < moved[1] and moved[2] > 0
    torch.testing.assert_close(much - plain.hidden, 2 * (more - plain.hidden), rtol=1e-3, atol=1e-4)
    two = hidden("a dog BREAK a cat")
    assert two.shape[1] == 2 * 77
    torch.testing.assert_close(two[:, :77], encode_prompts(base, ["a dog "]).hidden)
    torch.testing.assert_close(two[:, 77:], encode_prompts(base, [" a cat"]).hidden)
    assert hidden(LONG).shape[1] == 2 * 77 and not read(LONG).plain
    same = same_length(base, encode_weighted(base, [read("a dog"), read(LONG)]))
    assert same[0].hidden.shape == same[1].hidden.shape
    torch.testing.assert_close(same[0].hidden[:, 77:154], encode_prompts(base, [""]).hidden)
    if kind == "sdxl":
        pooled = encode_weighted(base, [read("a (dog:1.4) sks")])[0].pooled
        assert pooled is not None and torch.equal(pooled, plain.pooled)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize("acting", ["plain", "gated"])
def test_pictures(tiny_base: Callable[..., Any], kind: str, acting: str) -> None:
    """Each depends on its own prompt alone, whatever else is in the batch; a weight, a part and the end of a
    long prompt are seen in it."""
    base = tiny_base(kind)
    dog = concept(base)
    options: dict[str, Any] = {"concepts": [dog], "steps": 2, "size": 64, "acting": acting, "guidance": 5.0}
    prompts = ["a sks dog", "a (sks:1.5) dog", "a sks dog BREAK red", f"{LONG} sks", f"{LONG} sks red"]
    together = draw(base, prompts, batch_size=4, **options)
    assert len({picture.tobytes() for picture in together}) == len(prompts)
    for i, prompt in enumerate(prompts):
        alone = draw(base, prompt, seed=i, **options)[0]
        assert np.abs(np.asarray(alone, int) - np.asarray(together[i], int)).max() <= 1
        assert alone.info["parameters"].startswith(prompt)
    against = [draw(base, "a sks dog", negative=text, **options)[0] for text in ("red", "(red:2)", LONG)]
    assert len({picture.tobytes() for picture in against}) == 3
    mixed = draw(base, prompts[:3], **(options | {"concepts": [[dog], [], [(dog, 0.5)]], "acting": "plain"}))
    assert len({picture.tobytes() for picture in mixed}) == 3


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_compel_in_a_stock_pipeline_reads_the_learned_word(tiny_base: Callable[..., Any], kind: str) -> None:
    from compel import CompelForSD, CompelForSDXL

    base = tiny_base(kind)
    atomdiff.load(base.pipe, concept(base))
    reader = (CompelForSDXL if kind == "sdxl" else CompelForSD)(base.pipe)
    made, wanted = reader("a sks dog"), encode_prompts(base, ["a sks dog"])
    torch.testing.assert_close(made.embeds, wanted.hidden)
    if kind == "sdxl":
        torch.testing.assert_close(made.pooled_embeds, wanted.pooled)
    weighted = reader("a (sks)1.3 dog").embeds
    torch.testing.assert_close(
        weighted, encode_weighted(base, [Prompt.of(base, "a (sks:1.3) dog")])[0].hidden
    )
    assert not torch.allclose(weighted, wanted.hidden)
