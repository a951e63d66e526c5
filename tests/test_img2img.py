"""Picture to picture, into a picture, and larger ones: on tiny bases of every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from atomdiff.base.stable_diffusion import load_base
from atomdiff.core import inject
from atomdiff.core.inject import AtomSpec
from atomdiff.errors import SettingsError
from atomdiff.sampling import img2img
from atomdiff.sampling.draw import draw
from atomdiff.sampling.infotext import parse


def photo(size: tuple[int, int] = (48, 32)) -> Image.Image:
    """Smooth colours with a red disc."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    picture = Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8))
    ImageDraw.Draw(picture).ellipse((4, 4, 14, 14), fill="red")
    return picture


def disc(size: tuple[int, int] = (48, 32)) -> Image.Image:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse((2, 2, 16, 16), fill=255)
    return mask


def apart(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of the pixels."""
    return float(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).mean())


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_picture_changes_as_much_as_it_may(tiny_base, kind):
    base = tiny_base(kind)
    pictures = [
        draw(base, "a dog", image=photo(), strength=strength, steps=8, size=(32, 32), seed=3)[0]
        for strength in (0.1, 0.9)
    ]
    start = img2img.start_from(base, photo(), None, 0.5, (32, 32)).image
    with torch.no_grad():
        pixels = torch.tensor(np.asarray(start)).permute(2, 0, 1)[None].float() / 127.5 - 1
        read = base.vae.decode(base.vae.encode(pixels).latent_dist.mode()).sample[0]
    known = Image.fromarray(((read.permute(1, 2, 0).clamp(-1, 1) + 1) * 127.5).byte().numpy())
    assert apart(pictures[0], known) < apart(pictures[1], known)
    assert parse(pictures[0].info["parameters"]).number("Denoising strength") == 0.1
    assert type(base.pipe).__name__.endswith(("StableDiffusionPipeline", "XLPipeline"))  # as it was


def test_the_same_seed_draws_the_same_and_concepts_act(tiny_base):
    from atomdiff.concept.concept import Concept

    base = tiny_base("sd1")
    spec = AtomSpec(linear_atoms="none")
    atoms = {layer: 0.3 * torch.eye(9) for layer in inject.select(base.unet, spec).conv}
    concept = Concept.of(base.unet, spec, atoms, base.passport, trigger="sks", class_word="dog")
    options = {"image": photo(), "strength": 0.8, "steps": 4, "seed": 1, "size": 32}
    one, two = (draw(base, "a sks dog", concepts=[concept], **options)[0] for _ in range(2))
    without = draw(base, "a sks dog", **options)[0]
    zero = draw(base, "a sks dog", concepts=[(concept, 0.0)], **options)[0]
    assert one.tobytes() == two.tobytes()
    assert apart(one, without) > 0
    assert apart(zero, without) == 0


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "pocket"])
def test_only_what_is_white_in_the_mask_changes(tiny_base, kind):
    base, before = load_base(kind) if kind == "pocket" else tiny_base(kind), photo()
    channels = base.unet.config.in_channels
    after = draw(base, "a dog", image=before, mask=disc(), strength=1.0, steps=3, seed=2)[0]
    assert after.size == before.size
    old, new = np.asarray(before), np.asarray(after)
    assert np.array_equal(old[:, 24:], new[:, 24:])  # far from the mask to the bit
    assert np.abs(old[6:12, 6:12].astype(int) - new[6:12, 6:12]).mean() > 1
    assert base.unet.config.in_channels == channels


def test_a_large_photo_is_drawn_into_at_the_bases_own_size(tiny_base):
    base, before = tiny_base("sd1"), photo((400, 300))
    mask = Image.new("L", (400, 300))
    ImageDraw.Draw(mask).rectangle((300, 200, 340, 240), fill=255)
    start = img2img.start_from(base, before, mask, 0.8, None)
    width, height = start.size
    assert abs(width * height - base.resolution**2) <= 16 * base.resolution
    left, top, right, bottom = start.box
    assert left < 300 and top < 200 and right > 340 and bottom > 240
    drawn = draw(base, "a dog", image=before, mask=mask, strength=0.9, steps=2)[0]
    assert drawn.size == (400, 300)
    assert np.array_equal(np.asarray(drawn)[:150], np.asarray(before)[:150])


def test_a_second_pass_enlarges_and_both_are_told(tiny_base):
    base, told = tiny_base("sd1"), []
    options = {"steps": 4, "seed": 5, "count": 2, "size": 32, "strength": 0.5}
    large = draw(base, "a dog", hires=2, callback=lambda *step: told.append(step), **options)
    assert [picture.size for picture in large] == [(64, 64)] * 2
    generation = parse(large[1].info["parameters"])
    assert (generation.size, generation.whole("Seed")) == ((32, 32), 6)
    assert (generation.number("Hires upscale"), generation.number("Denoising strength")) == (2, 0.5)
    shares = [done / total for done, total in told]
    assert shares == sorted(shares) and shares[-1] == 1
    alone = draw(base, "a dog", hires=2, **{**options, "seed": 6, "count": 1})[0]
    assert apart(alone, large[1]) < 2  # but for what batching does


def test_pictures_of_their_own_to_start_from(tiny_base):
    base = tiny_base("sd1")
    two = draw(base, ["a dog", "a cat"], image=[photo(), photo().rotate(180)], steps=2, size=32)
    assert apart(*two) > 0
    with pytest.raises(SettingsError, match="do not make 2"):
        draw(base, "a dog", count=2, image=[photo()], steps=1)
    with pytest.raises(SettingsError, match="one shape"):
        draw(base, ["a", "b"], image=[photo(), photo((32, 48))], steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": disc()}, "no picture was given"),
        ({"image": photo(), "strength": 0.0}, "above 0 and up to 1"),
        ({"image": photo(), "strength": 1.5}, "above 0 and up to 1"),
        ({"image": photo(), "mask": Image.new("L", (48, 32))}, "all black"),
        ({"hires": 9.0}, "1 to 4 times"),
        ({"hires": 0.5}, "1 to 4 times"),
        ({"image": photo(), "prompt": ["a"], "concepts": [[]]}, "start from noise"),
    ],
)
def test_what_cannot_work_is_told(tiny_base, options, message):
    with pytest.raises(SettingsError, match=message):
        draw(tiny_base("sd1"), **({"prompt": "a dog", "steps": 1} | options))


def test_shapes_are_kept_at_the_bases_area():
    assert img2img.fitting((640, 640), 512) == (512, 512)
    assert img2img.fitting((3000, 2000), 512) == (624, 416)
    assert img2img.fitting((10_000, 10), 64) == (128, 32)
    for strength in (0.01, 0.5, 1.0):
        for steps in (1, 2, 25):
            assert 1 <= img2img.steps_done(steps, strength) <= steps
