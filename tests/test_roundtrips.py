"""Whichever way a concept travels, it is the same bytes: a slice of `benchmarks.roundtrips`."""

from __future__ import annotations

import random

import pytest

from atomdiff.files import quantization
from atomdiff.files.safetensors_file import from_bytes, to_bytes
from benchmarks import roundtrips


@pytest.mark.parametrize("start", range(0, 250, 50))
def test_a_slice_of_the_campaign(start):
    counts, failed = roundtrips.campaign(50, 77_000 + start)
    assert failed == {}
    assert all(counts[way] == 50 for way in roundtrips.WAYS)
    assert counts.get("a picture of the QR codes", 0) == (start % 100 == 0)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_quantising_twice_is_quantising_once(dtype):
    """Also when a file in another precision lies between."""
    for seed in range(40):
        concept = roundtrips.random_concept(random.Random(seed))
        for between in ("fp32", "int8"):
            once = to_bytes(from_bytes(to_bytes(concept, between)), dtype)
            assert to_bytes(from_bytes(once), dtype) == once


def test_the_generated_concepts_are_of_every_kind():
    made = [roundtrips.random_concept(random.Random(seed)) for seed in range(300)]
    assert {concept.spec.basis for concept in made} == {"dct", "svd"}
    assert {concept.spec.conv_family for concept in made} == {"atoms", "recursive", "sparse"}
    assert {key.split(".")[0] for concept in made for key in concept.atoms} == {
        "conv", "beta", "coef", "linear", "token",
    }  # fmt: skip
    assert any(not concept.name for concept in made)
    assert any(set(concept.name) - set(map(chr, range(0x500))) for concept in made)
    for dtype in quantization.PRECISIONS:
        assert from_bytes(to_bytes(made[0], dtype)).name == made[0].name


def test_a_way_that_changes_something_is_found(monkeypatch):
    monkeypatch.setitem(roundtrips.WAYS, "JSON", lambda data, dice: data[:-1] + b"x")
    counts, failed = roundtrips.campaign(3, 5)
    assert (counts["JSON"], failed["JSON"]) == (3, [5, 6, 7])
    monkeypatch.setitem(roundtrips.WAYS, "JSON", lambda data, dice: data[::0])
    counts, failed = roundtrips.campaign(2, 5)
    assert failed == {"ValueError": [5, 6]}
