"""Concepts in regions of a picture: prompts, masks, and the two ends, one region that is all and none."""

from __future__ import annotations

import base64
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_mixed_batches import concept_of

import atomdiff
from atomdiff.errors import SettingsError
from atomdiff.files.safetensors_file import save_concept
from atomdiff.sampling.draw import draw_as
from atomdiff.sampling.infotext import parse
from atomdiff.sampling.region import Region, mask_of, packed
from atomdiff.sampling.regions import masks_of, prompts_of
from atomdiff.sampling.settings import DrawingSettings

DOG, CAT = ("sks", "dog"), ("zwx", "cat")


@pytest.mark.parametrize(
    "prompt, wanted",
    [
        ("a sks dog and a zwx cat on the beach", ["a sks dog on the beach", "a zwx cat on the beach"]),
        ("the zwx cat, a sks dog, in snow", ["a sks dog, in snow", "the zwx cat, in snow"]),
        ("on the beach", ["a sks dog on the beach", "a zwx cat on the beach"]),
        ("a photo of a SKS dog next to zwx", ["a photo of a SKS dog", "a photo of zwx"]),
    ],
)
def test_each_region_has_the_prompt_without_the_others(prompt, wanted) -> None:
    assert prompts_of(prompt, [[DOG], [CAT]]) == wanted


def test_what_two_regions_share_stays() -> None:
    assert prompts_of("a sks dog", [[DOG], [DOG]]) == ["a sks dog"] * 2


@settings(max_examples=30)
@given(
    boxes=st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=3),
    size=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    soft=st.floats(0, 0.5),
)
def test_masks_are_shares(boxes, size, soft) -> None:
    boxes = [(min(a, c), min(b, d), max(a, c) + 0.1, max(b, d) + 0.1) for a, b, c, d in boxes]
    masks = masks_of(boxes, *size, soft)
    assert masks.shape == (len(boxes) + 1, *size) and (masks >= -1e-6).all()
    torch.testing.assert_close(masks.sum(0), torch.ones(size))


def test_two_halves_meet_in_a_ramp_and_leave_nothing() -> None:
    left, right, rest = masks_of([(0, 0, 0.5, 1), (0.5, 0, 1, 1)], 4, 16, 0.25)
    torch.testing.assert_close(left, right.flip(-1))
    assert left[0, 0] == 1 and left[0, -1] == 0 and 0 < left[0, 7] < 1
    assert rest.abs().max() < 1e-6


def test_a_picture_is_a_mask() -> None:
    picture = Image.new("L", (40, 20))
    picture.paste(255, (0, 0, 20, 20))
    drawn, rest = masks_of([Region(picture).where], 4, 8, 0.0)
    assert drawn[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0] and torch.equal(rest, 1 - drawn)


def _apart(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_one_region_that_is_all_is_a_mixed_batch_of_it(tiny_base, kind, guidance) -> None:
    base = tiny_base(kind)
    concept = concept_of(base, size=0.2)
    options = {"seed": 3, "steps": 2, "guidance": guidance}
    alone = atomdiff.draw(base, ["a sks dog"], concepts=[[concept]], **options)[0]
    plain = atomdiff.draw(base, ["a sks dog"], concepts=[[]], **options)[0]
    whole = [Region((0, 0, 1, 1), (0,))]
    made = atomdiff.draw(base, "a sks dog", concepts=[concept], regions=whole, **options)[0]
    assert _apart(made, alone) <= 1 < _apart(alone, plain)


def test_a_region_without_concepts_is_the_base(tiny_base) -> None:
    base = tiny_base("sd1")
    regions = [Region((0, 0, 1, 1), (), "a dog")]
    plain = atomdiff.draw(base, "a dog", count=2, seed=3, steps=2)
    made = atomdiff.draw(base, "a dog", regions=regions, count=2, seed=3, steps=2, size=64, batch_size=1)
    assert all(_apart(a, b) <= 1 for a, b in zip(made, plain, strict=True))


def test_two_concepts_keep_apart_and_the_base_is_as_before(tiny_base) -> None:
    base = tiny_base("sd1")
    one, two = concept_of(base, seed=1), concept_of(base, seed=2, trigger="ohw")
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    halves = [Region((0, 0, 0.5, 1), (0,)), Region((0.5, 0, 1, 1), (1,))]
    both = {"concepts": [one, (two, 0.5)], "regions": halves}
    made = atomdiff.draw(base, "in the sun", **both, steps=2, size=(128, 64))[0]
    assert made.size == (128, 64) and "a sks dog in the sun" in made.info["parameters"]
    assert all(torch.equal(before[name], value) for name, value in base.unet.state_dict().items())
    assert "forward" not in vars(base.unet.conv_in)


def test_a_concept_that_no_region_has_acts_everywhere(tiny_base) -> None:
    base = tiny_base("sd1")
    one, two = concept_of(base, seed=1), concept_of(base, seed=2, trigger="ohw", size=0.3)
    options = {"seed": 3, "steps": 2, "regions": [Region((0, 0, 0.5, 1), (0,))]}
    alone = atomdiff.draw(base, "grass", concepts=[(one, 0.0)], **options)[0]
    both = atomdiff.draw(base, "grass", concepts=[(one, 0.0), two], **options)[0]
    right = [np.asarray(made)[:, 48:].astype(np.int16) for made in (alone, both)]
    assert np.abs(right[0] - right[1]).max() > 1


def test_a_picture_with_regions_is_drawn_again_from_its_text(tiny_base) -> None:
    base = tiny_base("sd1")
    one, two = concept_of(base, seed=1), concept_of(base, seed=2, trigger="ohw")
    picture = Image.new("L", (80, 40))
    picture.paste(255, (44, 3, 79, 30))
    regions = [Region((0, 0, 0.4, 1), (0,)), Region(picture, (1,), 'a "ohw" cat; on, grass')]
    made = atomdiff.draw(
        base, "in {the sun}", concepts=[one, two], regions=regions, count=2, seed=7, steps=2, batch_size=1
    )[1]
    told = DrawingSettings.of(parse(made.info["parameters"]))
    assert [region.where for region in told.regions] == [region.where for region in regions]
    again = draw_as(base, replace(told, concepts=((one, 1.0), (two, 1.0))))[0]
    assert again.tobytes() == made.tobytes() and again.info == made.info


def test_regions_are_drawn_from_a_picture_and_larger(tiny_base) -> None:
    base, concept = tiny_base("sd1"), concept_of(tiny_base("sd1"), size=0.2)
    half = {"concepts": [concept], "regions": [Region((0, 0, 0.5, 1), (0,))]}
    first = atomdiff.draw(base, "grass", steps=2, **half)[0]
    again = atomdiff.draw(base, "grass", steps=4, image=first, strength=0.5, hires=2, **half)[0]
    assert again.size == (2 * first.width, 2 * first.height)
    assert "Hires upscale: 2" in again.info["parameters"] and "Regions: " in again.info["parameters"]


def test_masks_travel_as_text() -> None:
    picture = Image.new("L", (640, 320))
    picture.paste(255, (100, 20, 400, 300))
    text = packed(picture)
    assert len(text) < 200 and packed(mask_of(text)) == text
    assert abs(np.asarray(mask_of(text)).mean() / 255 - 300 * 280 / 640 / 320) < 0.01


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ((0.5, 0, 0.5, 1), "left,top,right,bottom"),
        ((0, 0, float("nan"), 1), "left,top,right,bottom"),
        ((0, 0, 1), "left,top,right,bottom"),
        ("not a mask", "A mask as text"),
        (base64.b64encode(zlib.compress(bytes(10**6))).decode(), "A mask as text"),
        (Image.new("L", (64, 64)), "all black"),
    ],
)
def test_what_is_no_region_is_refused(where, message) -> None:
    with pytest.raises(SettingsError, match=message):
        Region(where)


def test_refusals(tiny_base) -> None:
    base = tiny_base("sd1")
    with pytest.raises(SettingsError, match="names concepts by their places, from 0, among 0"):
        atomdiff.draw(base, "a", regions=[Region((0, 0, 1, 1), (0,))])
    with pytest.raises(SettingsError, match="act plainly"):
        atomdiff.draw(base, "a", regions=[Region((0, 0, 1, 1))], acting="gated")
    with pytest.raises(SettingsError, match="leave out the mask"):
        photo = Image.new("RGB", (64, 64))
        mask = Image.new("L", (64, 64), 255)
        atomdiff.draw(base, "a", image=photo, mask=mask, regions=[Region((0, 0, 1, 1))])
    with pytest.raises(SettingsError, match="embeddings or regions"):
        atomdiff.draw(base, ["a"], concepts=[[]], regions=[Region((0, 0, 1, 1))])


def test_generate_takes_regions(tiny_base, tiny_folder, tmp_path) -> None:
    from typer.testing import CliRunner

    from atomdiff import cli

    base = tiny_base("sd1")
    for name, trigger in (("dog", "sks"), ("cat", "ohw")):
        save_concept(concept_of(base, trigger=trigger), tmp_path / f"{name}.safetensors")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    mask.save(tmp_path / "right.png")

    def run(*regions: str):
        given = [part for region in regions for part in ("--region", region)]
        arguments = ["generate", "on grass", *given, "--steps", "1", "--base", str(tiny_folder("sd1"))]
        return CliRunner().invoke(
            cli.app, [*arguments, "--device", "cpu", "--out", str(tmp_path / "out.png")]
        )

    dog, cat = (f"{tmp_path / name}.safetensors" for name in ("dog", "cat"))
    done = run(f"{dog}:0.8:0,0,0.5,1", f"{cat}:{tmp_path / 'right.png'}")
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "out.png") as picture:
        text = picture.info["parameters"]
    told = DrawingSettings.of(parse(text)).regions
    assert [region.prompt for region in told] == ["a sks dog on grass", "a ohw dog on grass"]
    assert told[0].where == (0, 0, 0.5, 1) and [region.concepts for region in told] == [(0,), (1,)]
    assert ":0.8:" in text
    assert "four numbers" in run(f"{dog}:0,0,half,1").output
    assert "A region is" in run("dog").output
