"""A concept of a word alone, textual inversion: it goes wherever concepts go."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
import torch
from PIL import Image

from atomdiff.concept import algebra
from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import BasePassport
from atomdiff.core.spec import AtomSpec
from atomdiff.evaluation import drift, inspection, layer_maps, plots
from atomdiff.files import card, card_image, text
from atomdiff.files.safetensors_file import from_bytes, save_concept, to_bytes
from atomdiff.library import Library

PASSPORT = BasePassport("sd1-1a2b3c4d", (0.5,) * 16, "sd15")
NET = tiny_models.unet()


@pytest.fixture(scope="module")
def word() -> Concept:
    token = {"token": torch.randn(2, 1, 768, generator=torch.Generator().manual_seed(0))}
    about = {"trigger": "sks", "class_word": "dog", "name": "Rex"}
    made = Concept.of(NET, AtomSpec(num_atoms=0, linear_atoms="none"), {}, PASSPORT, token=token, **about)
    return from_bytes(to_bytes(made, "int4"))


def test_its_file_is_little_more_than_its_numbers(word: Concept, tmp_path: Path) -> None:
    assert len(to_bytes(word)) < 1300 and word.num_parameters() == 1536
    assert word.deltas(NET) == {} and word.bind(NET) == {}
    assert text.from_text(text.to_text(to_bytes(word))) == to_bytes(word)
    path = save_concept(word, tmp_path / "rex.safetensors")
    inspection.print_table(inspection.describe(path))
    assert Library(tmp_path / "library").add(to_bytes(word)).title == "Rex"


def test_it_adds_up_with_itself(word: Concept) -> None:
    half = algebra.mix([(word, 0.25), (word, 0.25)])
    torch.testing.assert_close(half.token["token"], 0.5 * word.token["token"])


def test_its_card_and_figures_are_drawn(word: Concept, tmp_path: Path) -> None:
    moved, maps = drift.drift(word, NET), layer_maps.layer_maps(word, NET)
    assert moved == [] and maps == []
    assert plots.picture(plots.learned_figure(word, maps, moved), dpi=20).width > 100
    picture = Image.new("RGB", (64, 64), "teal")
    made = card_image.make(to_bytes(word), [picture])
    assert card.extract(made) == to_bytes(word)
