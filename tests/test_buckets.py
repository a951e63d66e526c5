"""Buckets keep to the resolution's number of pixels and cut next to nothing off a picture."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from atomdiff.training.buckets import bucket_of, cut_off, fitted, sizes

SIDES = st.integers(64, 6000)


@given(st.sampled_from([(64, 8), (512, 16), (768, 16), (1024, 16)]), SIDES, SIDES)
def test_a_bucket_has_the_resolutions_pixels_at_most_and_sides_of_whole_steps(kind, width, height):
    resolution, step = kind
    bucket = bucket_of((width, height), resolution, step)
    assert bucket in sizes(resolution, step)
    assert bucket[0] * bucket[1] <= resolution**2
    assert bucket[0] % step == bucket[1] % step == 0
    assert bucket_of((height, width), resolution, step) == bucket[::-1]


@given(st.sampled_from([(512, 16), (768, 16), (1024, 16)]), st.floats(0.45, 2.2))
def test_photographs_lose_under_two_percent(kind, shape):
    resolution, step = kind
    size = (round(3000 * shape**0.5), round(3000 / shape**0.5))
    bucket = bucket_of(size, resolution, step)
    assert cut_off(size, bucket) < 0.02
    assert bucket[0] * bucket[1] > 0.85 * resolution**2


@pytest.mark.parametrize(("size", "wanted"), [((3000, 3000), (512, 512)), ((4032, 3024), (576, 432))])
def test_usual_shapes(size, wanted):
    bucket = bucket_of(size, 512, 16)
    assert bucket == wanted
    assert cut_off(size, bucket) == 0


def test_a_panorama_is_cut_to_the_most_extreme_shape():
    assert bucket_of((8000, 800), 512, 16) == (1024, 192)
    assert cut_off((8000, 800), (1024, 192)) == pytest.approx(7 / 15)


def test_a_resolution_that_is_no_multiple_of_the_step_keeps_its_square():
    assert bucket_of((900, 900), 72, 16) == (72, 72)


@given(SIDES.map(lambda n: n // 10 + 8), SIDES.map(lambda n: n // 10 + 8))
def test_what_is_said_to_be_cut_off_is_what_is_cut_off(width, height):
    bucket = bucket_of((width, height), 64, 8)
    image = Image.new("RGB", (width, height), "red")
    assert fitted(image, bucket).size == bucket
    scale = max(bucket[0] / width, bucket[1] / height)
    kept = bucket[0] * bucket[1] / (width * height * scale * scale)
    assert 1 - kept == pytest.approx(cut_off((width, height), bucket), abs=1e-9)
