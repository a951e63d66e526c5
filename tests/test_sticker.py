"""Pictures as stickers."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from atomdiff.sampling.sticker import LEAST, sticker


def alpha(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)[..., 3]


def test_a_subject_on_a_plain_background_is_cut_out():
    picture = Image.new("RGB", (400, 400), (250, 250, 245))
    ImageDraw.Draw(picture).ellipse((120, 80, 280, 320), fill="red")
    made = sticker(picture)
    assert made.mode == "RGBA"
    assert made.width < 300 and made.height < 400  # what was around is gone
    assert alpha(made)[0, 0] == 0
    middle = np.asarray(made)[made.height // 2, made.width // 2]
    assert tuple(middle) == (255, 0, 0, 255)
    row = np.asarray(made)[made.height // 2]
    assert any(tuple(pixel) == (255, 255, 255, 255) for pixel in row)  # its white edge
    assert 0 < alpha(made)[-1].max() < 255  # its shadow


def test_a_picture_without_one_has_round_corners_and_small_ones_are_enlarged():
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    made = sticker(Image.fromarray(noise))
    assert min(made.size) >= LEAST
    assert alpha(made)[0, 0] == 0
    assert alpha(made)[made.height // 2, made.width // 2] == 255


def test_a_blank_picture_is_no_subject():
    made = sticker(Image.new("RGB", (400, 400), "white"))
    assert alpha(made)[made.height // 2, made.width // 2] == 255


def test_a_sky_of_another_colour_than_the_ground_is_no_subject():
    picture = Image.new("RGB", (400, 400), "tan")
    ImageDraw.Draw(picture).rectangle((0, 0, 400, 90), fill="blue")
    made = sticker(picture)
    assert alpha(made)[made.height // 2, made.width // 2] == 255
