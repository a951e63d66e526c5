"""Whichever way a concept travels, it is the same bytes: file, card, QR codes, chat text, JSON.

Each case is a concept made up from a seed, saved in one of the four precisions. Its file must come back byte
for byte from every form and from a chain of all of them; what is read from it, saved again in the same
precision, must give the same bytes; and its numbers must be those that were saved, as closely as the
precision holds them. `ROUNDTRIPS=10000 pytest tests/test_roundtrips.py` tries so many.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import made_up
import pytest
import torch

from atomdiff.concept.concept import Concept
from atomdiff.files import card, qr, qr_image, quantization, text
from atomdiff.files.safetensors_file import from_bytes, to_bytes

CASES = int(os.environ.get("ROUNDTRIPS", "250"))
PICTURES_EVERY = 100  # every so many cases the QR codes are drawn and read as a picture too


def by_card(data: bytes, dice: random.Random) -> bytes:
    """Into a picture and out of it."""
    return card.extract(card.embed(made_up.picture(), data)) or b""


def by_codes(data: bytes, dice: random.Random) -> bytes:
    """Into the frames of QR codes, which arrive in any order, some twice."""
    frames = [
        frame for frame in map(qr.parse_frame, qr.split(data, dice.choice((200, qr.COMFORTABLE)))) if frame
    ]
    frames += dice.choices(frames, k=dice.randrange(4))
    dice.shuffle(frames)
    return qr.join(frames)


def by_text(data: bytes, dice: random.Random) -> bytes:
    """Into a line that a chat program wraps and quotes."""
    line = text.to_text(data)
    width = dice.choice((40, 76, len(line)))
    return text.from_text("\n".join("> " + line[i : i + width] for i in range(0, len(line), width)))


def by_pictures(data: bytes, dice: random.Random) -> bytes:
    """Onto a sheet of QR codes, which is photographed without a fault."""
    return qr_image.read([qr_image.sheet(data, "", 3)])


def by_all(data: bytes, dice: random.Random) -> bytes:
    """All ways, one after another, in any order."""
    for way in dice.sample((by_card, by_codes, by_text), 3):
        data = way(data, dice)
    return data


WAYS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "card": by_card,
    "QR codes": by_codes,
    "chat text": by_text,
    "all of these in a row": by_all,
}


def kept(concept: Concept, again: Concept, dtype: str) -> bool:
    """Whether the texts are the same, and the numbers as near as the precision promises."""
    fields = ("trigger", "class_word", "name", "extra", "spec", "layers", "base")
    same = all(getattr(concept, field) == getattr(again, field) for field in fields)
    same = same and list(concept.training.items()) == list(again.training.items())
    for name, numbers in concept.atoms.items():
        held = again.atoms[name]
        if dtype == "fp32":
            same = same and torch.equal(held, numbers)
        elif dtype == "fp16":
            same = same and torch.equal(held, numbers.half().float())
        else:  # error feedback moves numbers by some steps, and fp16 rounds scales to 2**-25
            peaks = numbers.abs().amax((1, 2), keepdim=True)
            share = 0.25 if dtype == "int8" else 1.5
            same = same and bool(((held - numbers).abs() <= share * peaks + 128 * 2.0**-25).all())
    return same


@pytest.mark.parametrize("start", range(0, CASES, 50))
def test_every_way_gives_the_same_bytes(start):
    for seed in range(77_000 + start, 77_050 + start):
        dice = random.Random(seed)
        concept, dtype = made_up.random_concept(dice), dice.choice(quantization.PRECISIONS)
        data = to_bytes(concept, dtype)
        again = from_bytes(data)
        changed = [name for name, way in WAYS.items() if way(data, dice) != data]
        assert not changed, (seed, changed)
        assert to_bytes(again, dtype) == data, seed
        assert kept(concept, again, dtype), seed
        if seed % PICTURES_EVERY == 0:
            assert by_pictures(data, dice) == data, seed


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_quantising_twice_is_quantising_once(dtype):
    """Also when a file in another precision lies between."""
    for seed in range(40):
        concept = made_up.random_concept(random.Random(seed))
        for between in ("fp32", "int8"):
            once = to_bytes(from_bytes(to_bytes(concept, between)), dtype)
            assert to_bytes(from_bytes(once), dtype) == once


def test_the_generated_concepts_are_of_every_kind():
    made = [made_up.random_concept(random.Random(seed)) for seed in range(300)]
    assert {concept.spec.basis for concept in made} == {"dct", "svd"}
    assert {concept.spec.conv_family for concept in made} == {"atoms", "recursive", "sparse"}
    assert {key.split(".")[0] for concept in made for key in concept.atoms} == {
        "conv", "beta", "coef", "linear", "token",
    }  # fmt: skip
    assert any(not concept.name for concept in made)
    assert any(set(concept.name) - set(map(chr, range(0x500))) for concept in made)
    for dtype in quantization.PRECISIONS:
        assert from_bytes(to_bytes(made[0], dtype)).name == made[0].name
