"""Concepts in regions that are painted on the page: what its canvas means, and it all in a real browser."""

# ruff: noqa: F811 - fixtures that another module has too
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from test_studio_api import folder, url  # noqa: F401 - fixtures
from test_studio_browser import (  # noqa: F401 - fixtures
    browser,
    choose,
    draw,
    newest,
    page,
    pytestmark,
    use_settings_of_newest,
    visitor,
)

from atomdiff.files.safetensors_file import load_concept, save_concept
from atomdiff.sampling.infotext import parse
from atomdiff.sampling.region import Region, mask_of
from atomdiff.sampling.settings import DrawingSettings
from atomdiff.studio import canvas


def test_each_colour_is_the_region_of_its_concept():
    layer, alpha = Image.new("RGB", (200, 100)), Image.new("L", (200, 100))
    pen, shape = ImageDraw.Draw(layer), ImageDraw.Draw(alpha)
    for colour, start, end in ((0, 0, 85), (4, 86, 114), (1, 115, 199)):
        pen.rectangle((start, 0, end, 99), fill=canvas.COLOURS[colour])
    shape.rectangle((0, 0, 79, 99), fill=255)
    shape.rectangle((120, 0, 199, 99), fill=255)
    shape.ellipse((90, 40, 110, 60), fill=255)  # of a concept that is not chosen
    soft = layer.convert("RGBA")
    soft.putalpha(alpha.filter(ImageFilter.GaussianBlur(1.5)))
    left, right = canvas.regions_of({"background": None, "layers": [soft]}, 2)
    assert (left.concepts, right.concepts) == ((0,), (1,))
    for region, box in ((left, (0, 0, 26, 64)), (right, (38, 0, 64, 64))):
        found = mask_of(region.where).getbbox()
        assert np.abs(np.subtract(found, box)).max() <= 1
    assert canvas.regions_of(None, 2) == canvas.regions_of({"layers": [Image.new("RGBA", (9, 9))]}, 2) == ()


def test_regions_are_painted_as_they_are_read_and_stay_with_their_concepts():
    regions = (Region((0, 0, 0.5, 1), (0,)), Region((0.625, 0.25, 1, 0.75), (1,)))
    for size in ((64, 64), (96, 64), (512, 768)):
        value = canvas.painted(regions, size)
        assert value["background"].width * size[1] == pytest.approx(
            value["background"].height * size[0], rel=0.01
        )
        once = canvas.regions_of(value, 2)
        assert canvas.regions_of(canvas.painted(once, size), 2) == once
        assert mask_of(once[1].where).getbbox() == (40, 16, 64, 48)
    moved = canvas.reordered(regions, ["dog", "cat"], ["cat", "hat"])
    assert moved == (Region((0.625, 0.25, 1, 0.75), (0,)),)


def stroke(page, left: float, right: float) -> None:
    """Lines over a part of the canvas, in shares of its width."""
    box = page.locator("#where-canvas canvas").first.bounding_box()
    for down in (0.35, 0.5, 0.65):
        y = box["y"] + box["height"] * down
        page.mouse.move(box["x"] + box["width"] * left, y)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * right, y, steps=3)
        page.mouse.up()
    page.wait_for_timeout(500)


def told(folder) -> DrawingSettings:
    return DrawingSettings.of(parse(newest(folder)))


def drawn_again(page, folder, before: str) -> DrawingSettings:
    """Draws, and gives the settings of the picture, which is another than that of before."""
    page.locator("#go").click()
    for _ in range(1200):
        if newest(folder) != before:
            return told(folder)
        page.wait_for_timeout(200)
    raise AssertionError("no other picture was drawn")


def test_two_concepts_are_painted_into_one_picture_and_come_back_from_it(page, folder):
    rex = load_concept(folder / "concepts" / "rex.safetensors")
    save_concept(
        replace(rex, name="Mia", trigger="zwx", class_word="cat"), folder / "concepts" / "mia.safetensors"
    )
    page.reload()
    assert not page.locator("#where").is_visible()  # a newcomer does not meet it
    choose(page, "Rex")
    choose(page, "Mia")
    page.keyboard.press("Escape")  # the list of concepts lies over what is below it
    page.locator("#where button").first.click()
    page.locator("#where-legend", has_text="Mia").wait_for()
    page.wait_for_timeout(1500)
    page.locator("#where-canvas canvas").first.scroll_into_view_if_needed()
    stroke(page, 0.2, 0.4)
    page.locator("#where-legend button", has_text="Mia").click()
    page.wait_for_timeout(500)
    stroke(page, 0.7, 0.85)
    draw(page)
    assert not page.locator("#status .error").count()
    first = told(folder)
    assert [region.concepts for region in first.regions] == [(0,), (1,)]
    left, right = (mask_of(region.where).getbbox() for region in first.regions)
    assert left[2] < 36 < right[0] and left[3] - left[1] > 25
    assert ["zwx" in region.prompt for region in first.regions] == [False, True]
    text = newest(folder)
    use_settings_of_newest(page, folder)
    page.wait_for_function("document.querySelector('#prompt textarea').value.includes('zwx')")
    page.locator("#seed textarea, #seed input").first.fill("77")
    again = drawn_again(page, folder, text)
    assert again.seed in range(77, 81) and again.regions == first.regions
