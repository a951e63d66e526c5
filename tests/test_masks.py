"""A mask gives every place of the latents its weight; what is no mask is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atomdiff.errors import ImageError
from atomdiff.training.masks import beside, checked, is_mask, of_transparency, weights


def grey(values) -> Image.Image:
    return Image.fromarray(np.asarray(values, np.uint8))


def test_a_mask_lies_beside_its_picture():
    assert beside(Path("x/dog.1.jpg")) == Path("x/dog.1.mask.png")
    assert is_mask(Path("dog.MASK.png")) and not is_mask(Path("mask.png"))


def test_weights_are_means_over_the_pixels_of_a_place():
    mask = np.zeros((4, 8))
    mask[:2, :2], mask[:2, 2] = 255, 255
    found = weights(grey(mask), 2, 0.2)
    assert found.shape == (1, 2, 4)
    torch.testing.assert_close(found[0], torch.tensor([[1, 0.6, 0.2, 0.2], [0.2] * 4]))


def test_a_mask_of_another_size_is_resized_and_of_another_shape_refused():
    mask = grey(np.full((20, 10), 255))
    assert checked(mask, (30, 60), "a.mask.png").size == (30, 60)
    assert checked(mask, (10, 20), "a.mask.png") is mask
    with pytest.raises(
        ImageError, match=r"'a\.mask\.png' is 10 x 20, of another shape .* 60 x 30; make it of"
    ):
        checked(mask, (60, 30), "a.mask.png")
    with pytest.raises(ImageError, match="shows no subject; make the subject white"):
        checked(grey(np.full((20, 10), 90)), (10, 20), "a.mask.png")


def test_transparency_is_a_mask_only_where_it_hides_something_but_not_all():
    alpha = np.full((4, 4), 255)
    assert of_transparency(None) is None
    assert of_transparency(grey(alpha)) is None
    assert of_transparency(grey(alpha * 0)) is None
    alpha[0] = 0
    assert of_transparency(grey(alpha)) is not None
