"""Sums of concepts, their likeness and clash."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_concept import PASSPORT, trained
from typer.testing import CliRunner

from atomdiff.cli import app
from atomdiff.cli import arguments as given_flags
from atomdiff.concept import algebra, maps
from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import BasePassport
from atomdiff.core import inject
from atomdiff.core.inject import AtomSpec
from atomdiff.errors import ConceptError, SettingsError
from atomdiff.files import safetensors_file
from atomdiff.files.quantization import PRECISIONS
from atomdiff.files.safetensors_file import load_concept, save_concept, sha256

UNET = tiny_models.unet()
SPECS = [
    AtomSpec(),
    AtomSpec(num_atoms=4, linear_block=2),
    AtomSpec(num_atoms=3, basis="svd"),
    AtomSpec(linear_atoms="none"),
    AtomSpec(num_atoms=0),
    AtomSpec(num_atoms=6),
    AtomSpec(num_atoms=5, linear_block=2),
]
weights = st.floats(-2, 2, allow_nan=False, width=32)
WHOLE = [0, 1, 2, 5, 6]  # those of SPECS that have atoms in every layer of the others


def made(spec: AtomSpec = SPECS[0], seed: int = 0, **options) -> Concept:
    about = {"trigger": "sks", "class_word": "dog", "name": f"dog{seed}"} | options
    return Concept.of(UNET, spec, trained(UNET, spec, seed), PASSPORT, **about)


MADE = [made(spec, seed) for seed, spec in enumerate(SPECS)]


def changes(concept: Concept) -> dict[str, torch.Tensor]:
    """ΔW of every layer of the tiny UNet that the concept changes."""
    return {name: delta(UNET.get_submodule(name).weight) for name, delta in concept.deltas(UNET).items()}


CHANGES = [changes(concept) for concept in MADE]


# -------------------------------------------------------------------------------------------- sums


@settings(max_examples=25)
@given(
    st.sampled_from(WHOLE), st.lists(st.tuples(st.integers(0, len(SPECS) - 1), weights), max_size=2), weights
)
def test_a_mix_changes_weights_by_the_weighted_sum(first, others, weight):
    chosen = [(first, weight), *others]
    mixed = algebra.mix([(MADE[i], w) for i, w in chosen])
    for name, change in changes(mixed).items():
        expected = sum(w * CHANGES[i][name] for i, w in chosen if name in CHANGES[i])
        torch.testing.assert_close(change, expected + torch.zeros_like(change), rtol=1e-4, atol=1e-5)


def test_a_mix_is_folded_like_its_parts():
    mixed = 0.7 * MADE[0] + MADE[1]
    with inject.fold(UNET, [(mixed.deltas(UNET), 1.0)]):
        once = {name: p.clone() for name, p in UNET.named_parameters()}
    with inject.fold(UNET, [(MADE[0].deltas(UNET), 0.7), (MADE[1].deltas(UNET), 1.0)]):
        for name, weight in UNET.named_parameters():
            torch.testing.assert_close(once[name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("index", range(len(SPECS)), ids=map(str, SPECS))
def test_negation_undoes(index):
    concept = MADE[index]
    nothing = concept + -concept
    assert not any(atoms.any() for atoms in nothing.atoms.values())
    assert math.isclose((-concept).similarity(concept), -1, abs_tol=1e-5)
    assert math.isclose((2 * concept - concept).similarity(concept), 1, abs_tol=1e-5)


def test_a_mix_is_a_file_like_any_other(tmp_path):
    made_of = [sha256(MADE[2]), sha256(MADE[0])]
    mixed = algebra.mix([(MADE[2], 0.5), (MADE[0], -1)], checksums=made_of)
    again = load_concept(save_concept(mixed, tmp_path / "mix.safetensors", "fp32"))
    assert again.name == "0.5 dog2 - dog0"
    assert again.training["mix"] == f"0.5 {made_of[0][:12]} - {made_of[1][:12]}"
    assert again.trigger == "sks"
    assert all(torch.equal(again.bind(UNET)[name], atoms) for name, atoms in mixed.bind(UNET).items())


def test_a_mix_tells_the_files_it_was_made_of_and_is_as_precise_as_the_best(tmp_path):
    files = [
        save_concept(MADE[i], tmp_path / f"{i}.safetensors", dtype)
        for i, dtype in enumerate(("int8", "int4"))
    ]
    run("mix", *map(str, files), "--out", str(tmp_path / "mix.safetensors"))
    mixed = load_concept(tmp_path / "mix.safetensors")
    names = [hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in files]
    assert mixed.training["mix"] == f"{names[0]} + {names[1]}"
    assert mixed.precision == "int8"


def test_over_a_shared_basis_the_subspace_stays():
    concept = MADE[2]
    doubled = concept + concept
    assert doubled.spec == concept.spec
    assert torch.equal(doubled.bases["conv"], concept.bases["conv"])
    assert torch.equal(doubled.atoms["conv"], 2 * concept.atoms["conv"])


def test_what_cannot_be_added_exactly_is_refused_in_a_sentence():
    plain = MADE[0]
    other_base = replace(plain, base=BasePassport("sdxl-00000000", (0.5,) * 16, "sdxl"), name="xl")
    for other, message in [
        (other_base, r"'dog0' \(sd1-\w+\) and 'xl' \(sdxl-\w+\) were made for bases with other layers"),
        (made(AtomSpec(conv_layers="down")), "change different layers"),
        (made(AtomSpec(linear_atoms="attn2_kv")), "change different layers"),
        (made(AtomSpec(linear_block=3, linear_atoms="all")), "change different layers"),
        (replace(plain, layers="00000000"), "change different layers"),
    ]:
        with pytest.raises(ConceptError, match=message):
            plain + other
        assert algebra.clash(plain, other) is None
    with pytest.raises(ConceptError, match="None of the concepts 'dog3', 'dog4' has all layers"):
        MADE[3] + MADE[4]
    with pytest.raises(SettingsError, match="each with a finite weight"):
        algebra.mix([(plain, math.nan)])
    with pytest.raises(SettingsError, match="one concept or more"):
        algebra.mix([])


def test_families_that_are_no_map_are_refused():
    spec = AtomSpec(conv_family="recursive", channel_groups=2)
    with pytest.raises(ConceptError, match="not one map a layer"):
        MADE[0] + made(spec, name="loops")


def test_trained_words_are_added_where_they_are_the_same_word():
    token = {"token": torch.ones(2, 1, 8)}
    spoken = Concept.of(UNET, SPECS[0], trained(UNET, SPECS[0]), PASSPORT, trigger="sks", token=token)
    mixed = algebra.mix([(spoken, 0.5), (MADE[1], 1.0), (spoken, 0.25)])
    assert torch.equal(mixed.token["token"], 0.75 * token["token"])
    with pytest.raises(ConceptError, match="a mix is called by one word, here 'zwx'"):
        algebra.mix([(replace(MADE[1], trigger="zwx"), 1.0), (spoken, 1.0)])


# ------------------------------------------------------------------------------------- likenesses


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_concept_is_like_itself_in_every_precision(precision):
    for concept in MADE:
        stored = safetensors_file.from_bytes(safetensors_file.to_bytes(concept, precision))
        assert concept.similarity(stored) == pytest.approx(1, abs=0.03 if precision == "int4" else 1e-3)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.floats(0.1, 5))
def test_likeness_is_of_maps_not_of_numbers(seed, scale):
    few = made(AtomSpec(num_atoms=4, linear_block=2), seed)
    other = made(AtomSpec(num_atoms=9), seed + 1)
    spec, _, (padded, _) = maps.aligned([few, other])
    same = Concept(padded, few.layers, spec, PASSPORT)  # the same maps, over nine atoms and coarser blocks
    assert same.similarity(few) == pytest.approx(1, abs=1e-5)
    assert same.similarity(other) == pytest.approx(few.similarity(other), abs=1e-5)
    assert (scale * few).similarity(other) == pytest.approx(few.similarity(other), abs=1e-5)
    assert algebra.clash(few, other) >= abs(few.similarity(other)) - 1e-6


def test_layers_are_compared_one_by_one():
    concept = MADE[0]
    turned = replace(concept, atoms={**concept.atoms, "conv": -concept.atoms["conv"]})
    found = algebra.compare(concept, turned)
    assert found.clash == pytest.approx(1)
    assert abs(found.similarity) < 1
    assert algebra.compare(MADE[3], MADE[4]).clash == 0  # convolutions here, linear layers there


# ------------------------------------------------------------------------------------ the command line


def run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.output


def test_the_commands(tmp_path):
    a, b = (str(save_concept(MADE[i], tmp_path / f"{i}.safetensors")) for i in (0, 1))
    out = tmp_path / "out" / "new.safetensors"
    assert "0.7 dog0 - 0.5 dog1" in run("mix", f"{a}:0.7", f"{b}:-0.5", "--out", str(out))
    expected = 0.7 * MADE[0] - 0.5 * MADE[1]
    assert load_concept(out).similarity(expected) == pytest.approx(1, abs=1e-4)
    run("mix", a, f"{b}:-1", "--out", str(out), "--precision", "int8")
    assert load_concept(out).similarity(MADE[0] - MADE[1]) == pytest.approx(1, abs=1e-3)


def test_clashing_concepts_are_told_of(capsys):
    plain, twin = MADE[0], replace(MADE[0], name="twin")
    given_flags.tell_clashes([(plain, 1.0), (twin, 0.5)])
    assert "'dog0' and 'twin' overlap by 100%" in capsys.readouterr().err
    given_flags.tell_clashes([(plain, 1.0), (MADE[1], 1.0)])
    assert "both called by 'sks'" in capsys.readouterr().err
    phrases = replace(MADE[0], trigger="sks dog"), replace(MADE[1], trigger="SKS cat")
    given_flags.tell_clashes([(phrase, 1.0) for phrase in phrases])
    assert "both called by 'sks'" in capsys.readouterr().err
    given_flags.tell_clashes([(plain, 1.0), (twin, 0.0)])
    given_flags.tell_clashes([(plain, 1.0), (replace(MADE[1], trigger="zwx"), 1.0)])
    assert capsys.readouterr().err == ""
