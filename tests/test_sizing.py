"""The capacity dial: what a budget of bytes buys, and that the file keeps to it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import BasePassport
from atomdiff.errors import SettingsError
from atomdiff.files.safetensors_file import save_concept
from atomdiff.training import sizing
from atomdiff.training.defaults import FULL_SIZE, name_everything, numerical, suit_base, suit_recipe
from atomdiff.training.recipes import CHOSEN, DEFAULT, LADDER, RECIPES, parse_size
from atomdiff.training.run import train
from atomdiff.training.settings import TrainingSettings
from atomdiff.training.sizing import MANY, file_size, pick, suit_size, texts_of
from atomdiff.training.timeline_recorder import Recorder

PASSPORT = BasePassport("sd1-00000000", (0.5,) * 16, "sd15")


def suited(**given):
    made = name_everything(TrainingSettings(**({"instance_data_dir": "dog"} | given)))
    return suit_base(suit_recipe(made), "sd1", 64, 8)


TEXTS = texts_of(suited(), MANY, MANY, MANY)


@pytest.fixture(scope="module")
def sd15():
    """A UNet of Stable Diffusion 1.5's shape, without memory, and the vector of a trigger of one token."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    return unet, {"token": torch.zeros(1, 1, 768)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "dog"
    folder.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


# --------------------------------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    ("text", "size"),
    [("8KB", 8000), ("10000", 10000), (10000, 10000), ("2.5 mb", 2_500_000), ("8KiB", 8192), ("7b", 7)],
)
def test_sizes_are_read_as_they_are_written(text, size):
    assert parse_size(text) == size
    assert TrainingSettings(size=text).size == text


@pytest.mark.parametrize("wrong", ["", "8 apples", "KB", "-8KB", "0", 0, -3, "0.1b", "1e4", "८KB", "9" * 30])
def test_what_is_no_size_is_refused(wrong):
    with pytest.raises(SettingsError, match=r"--size must be a number of bytes, as 8KB.*was given"):
        parse_size(wrong)


@given(st.integers(1, 10**9))
def test_a_number_of_bytes_means_itself(size):
    assert parse_size(size) == parse_size(str(size)) == parse_size(f"{size}B") == size


def test_size_stands_without_what_it_chooses():
    with pytest.raises(
        SettingsError, match=r"--size 8KB chooses --num_atoms and --precision by itself; drop"
    ):
        TrainingSettings(size="8KB", num_atoms=4, precision="int8")
    with pytest.raises(SettingsError, match="--size 8KB chooses --num_atoms by itself"):
        train("nowhere", size="8KB", num_atoms=DEFAULT.spec.num_atoms)  # even as it is by default
    with pytest.raises(SettingsError, match=r"--size must be of type str, but 8\.5"):
        TrainingSettings(size=8.5)


def test_every_recipe_is_settings_and_a_line():
    for recipe in LADDER:
        made = TrainingSettings(**recipe.settings())
        assert set(recipe.chosen()) == set(CHOSEN)
        assert made.precision in str(recipe)
    assert len(set(map(str, LADDER))) == len({recipe.name for recipe in LADDER}) == len(LADDER)
    assert set(RECIPES.values()) <= set(LADDER) and DEFAULT in LADDER


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fills_what_was_left_open(name):
    recipe = RECIPES[name]
    made = suited(recipe=name)
    assert {key: getattr(made, key) for key in recipe.settings()} == recipe.settings()
    own = suited(recipe=name, num_atoms=3, precision="fp16", with_prior_preservation=False)
    assert (own.num_atoms, own.precision, own.with_prior_preservation) == (3, "fp16", False)
    assert own.linear_atoms == recipe.spec.linear_atoms
    assert suited(recipe=name, conv_family="atoms", num_atoms=9).channel_groups == 1


def test_what_leaves_nothing_to_train_is_refused():
    with pytest.raises(SettingsError, match="leave nothing to train: drop one"):
        suited(recipe="word", train_token=False)
    with pytest.raises(SettingsError, match="--recipe must be one of word, atoms, "):
        suited(recipe="lora")


# ------------------------------------------------------------------------------------------ what is bought


@pytest.mark.parametrize(
    ("kind", "rung"),
    [*(("sd1", rung) for rung in LADDER), *(("sdxl", rung) for rung in LADDER[1::2])],
    ids=str,
)
def test_a_trained_file_has_the_bytes_that_were_counted(tiny_base, tmp_path, kind, rung):
    base = tiny_base(kind)
    generator = torch.Generator().manual_seed(0)
    learned = {
        name: torch.randn(zero.shape, generator=generator)
        for name, zero in sizing.zeros(base.unet, rung.spec).items()
    }
    once = {key: torch.zeros(1, 1, 32) for key in ("token", "token2")}
    counted = file_size(base.unet, base.passport, rung, once, TEXTS)
    token = {key: torch.randn(rung.vectors, 1, 32, generator=generator) for key in once}
    texts = texts_of(suited(), 300, 5, 48)
    concept = Concept.of(
        base.unet, rung.spec, learned, base.passport, token=token if rung.vectors else None, **texts
    )
    size = save_concept(concept, tmp_path / "dog.safetensors", dtype=rung.precision).stat().st_size
    assert counted - 24 <= size <= counted  # 14 digits fewer, and the header fills up to 8 bytes


def test_on_stable_diffusion_every_rung_is_smaller_than_the_one_before(sd15, monkeypatch):
    unet, token = sd15
    sizes = [file_size(unet, PASSPORT, rung, token, TEXTS) for rung in LADDER]
    assert sizes == sorted(set(sizes), reverse=True)
    monkeypatch.setattr(sizing, "file_size", lambda unet, passport, rung, *_: sizes[LADDER.index(rung)])
    for budget in map(parse_size, ("3MB", "256KB", "32KB", "12KB", "8KB", "4KB", "2KB", min(sizes))):
        best = next(i for i, size in enumerate(sizes) if size <= budget)
        assert pick(budget, unet, PASSPORT, token, TEXTS) == (LADDER[best], sizes[best])
    assert sizes[0] < 3_000_000 and sizes[LADDER.index(DEFAULT)] <= 12 * 1024


def test_the_page_has_every_recipe_with_its_bytes_on_stable_diffusion(sd15):
    page = (Path(__file__).parent.parent / "docs/training.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith(tuple(f"| `{name}`" for name in RECIPES))]
    sizes = [file_size(sd15[0], PASSPORT, recipe, sd15[1], TEXTS) for recipe in RECIPES.values()]
    assert [row.split("|")[-2].strip() for row in rows] == [f"{size / 1000:.1f} KB" for size in sizes]
    assert [row for row in rows if "default" in row] == [row for row in rows if f"`{DEFAULT.name}`" in row]


def test_a_timeline_of_the_usual_length_has_room_for_every_rung(sd15):
    recorder = Recorder(Path("x"), TrainingSettings.timeline_steps, 0, "", print)
    for rung in LADDER[1:]:  # the largest keeps fewer states
        numbers = sum(zero.numel() for zero in sizing.zeros(sd15[0], rung.spec).values())
        recorder.require_room(FULL_SIZE.max_train_steps, numbers)  # else raises


def test_a_budget_too_small_names_the_smallest(tiny_base):
    base = tiny_base("sd1")
    token = {"token": torch.zeros(1, 1, 32)}
    smallest = min(file_size(base.unet, base.passport, rung, token, TEXTS) for rung in LADDER)
    with pytest.raises(SettingsError) as refused:
        pick(smallest - 1, base.unet, base.passport, token, TEXTS)
    assert str(refused.value) == (
        f"A --size of {smallest - 1:,} bytes is too small: the smallest concept takes {smallest:,} on this "
        f"base, with its name and prompts; give --size {smallest} or more."
    )
    assert pick(smallest, base.unet, base.passport, token, TEXTS)[1] == smallest


def test_a_model_without_the_layers_of_any_recipe():
    with pytest.raises(SettingsError, match="--size knows no recipe for this base"):
        pick(10**9, torch.nn.Conv2d(4, 4, 1), PASSPORT, {}, TEXTS)


def test_the_dial_fills_the_settings_and_long_prompts_count(tiny_base):
    base = tiny_base("sd1")
    asked = suited(size="5KB")
    short, told = suit_size(asked, base)
    assert short.size == "" and told.startswith("Size: at most ")
    tight = dataclasses.replace(asked, size=_counted(told))
    assert suit_size(tight, base)[0] == short
    wordy, _ = suit_size(dataclasses.replace(tight, class_prompt="a dog " * 150), base)
    assert LADDER.index(_rung_of(wordy)) > LADDER.index(_rung_of(short))
    plain = suited()
    assert suit_size(plain, base) == (plain, "")
    by_hand = suited(**_rung_of(short).settings())
    assert numerical(by_hand, 1) == numerical(short, 1)  # a run may go on without the dial


def test_a_trigger_that_cannot_be_learned_takes_no_bytes(tiny_base):
    base = tiny_base("sd1")
    usual = suit_size(suited(size="3MB"), base)[1]
    shared = suit_size(suited(size="3MB", trigger="dog"), base)[1]
    assert _counted(shared) < _counted(usual)


@pytest.mark.parametrize("recipe", [RECIPES["word"], DEFAULT], ids=str)
def test_a_training_keeps_to_its_size(tiny_base, photos, tmp_path, recipe):
    base = tiny_base("sd1")
    token = {"token": torch.zeros(1, 1, 32)}
    texts = texts_of(dataclasses.replace(suited(), match_lora_rate=1e-4), MANY, MANY, MANY)  # measured here
    size = file_size(base.unet, base.passport, recipe, token, texts) + 16
    quick = {"max_train_steps": 1, "train_batch_size": 1, "with_prior_preservation": False}
    made = train(photos, tmp_path / "out", base, size=size, checkpointing_steps=0, timeline_steps=0, **quick)
    written = (tmp_path / "out" / "dog.safetensors").stat().st_size
    assert made.spec == recipe.spec and size - 100 < written <= size


def _rung_of(settings: TrainingSettings):
    chosen = {name: getattr(settings, name) for name in CHOSEN}
    return next(rung for rung in LADDER if rung.chosen() == chosen)


def _counted(told: str) -> int:
    return int(told.removeprefix("Size: at most ").split()[0].replace(",", ""))
