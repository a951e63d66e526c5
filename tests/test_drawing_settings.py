"""The one description of a drawing: what it refuses, and its way into a picture's text and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from atomdiff.errors import SettingsError
from atomdiff.sampling import infotext
from atomdiff.sampling.infotext import UsedFile
from atomdiff.sampling.region import Region, packed
from atomdiff.sampling.settings import ACTING, MAX_SEED, SAMPLERS, DrawingSettings, parse_size, used

words = st.from_regex(r"[a-z](?:[a-zé ,:\"()\n]{0,30}[a-z])?", fullmatch=True)
sides = st.integers(1, 128).map(lambda n: 8 * n)
strengths = st.integers(-20, 20).map(lambda n: n / 10) | st.fixed_dictionaries(
    {block: st.integers(0, 8).map(lambda n: n / 4) for block in ("down", "mid", "up")}
)
names = st.lists(st.sampled_from(["paint", "easy-word", "a b", "v1.5_x"]), max_size=3, unique=True)

boxes = st.tuples(*[st.floats(0, 0.4)] * 2, *[st.floats(0.5, 1)] * 2)
masks = (
    st.binary(min_size=512, max_size=512)
    .filter(any)
    .map(lambda data: packed(Image.frombytes("1", (64, 64), data)))
)
places = boxes | masks


@st.composite
def drawings(draw: st.DrawFn) -> DrawingSettings:
    titles = draw(st.lists(words, max_size=3))
    weighted = [(title, draw(strengths), f"{i:064d}") for i, title in enumerate(titles)]
    count = draw(st.integers(0, 3))
    regions = tuple(Region(draw(places), draw(st.sampled_from([(), *((i,) for i in range(len(titles)))])),
                           draw(st.just("") | words)) for _ in range(count))  # fmt: skip
    plain = bool(regions)
    return DrawingSettings(
        draw(words),
        tuple((used(*about), about[1]) for about in weighted),
        draw(st.just("") | words),
        draw(st.integers(0, MAX_SEED)),
        draw(st.integers(1, 1000)),
        draw(st.integers(0, 300)) / 10,
        (draw(sides), draw(sides)),
        draw(st.sampled_from(list(SAMPLERS))),
        "plain" if plain else draw(st.sampled_from(ACTING)),
        loras=()
        if plain
        else tuple((UsedFile(name, "0123456789ab"), draw(st.integers(-9, 9)) / 4) for name in draw(names)),
        embeddings=() if plain else tuple(UsedFile(name, "ba9876543210") for name in draw(names)),
        regions=regions,
    )


@given(drawings(), words)
def test_a_drawing_is_read_back_from_the_text_of_its_picture(settings, model):
    said = str(settings.generation(model, [item for item, _ in settings.concepts]))
    read = infotext.parse(said)
    assert DrawingSettings.of(read) == (
        settings if settings.concepts else replace(settings, acting=DrawingSettings.acting)
    )
    assert read.fields["Model"] == model
    assert str(read) == said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "ddpm"}, "no sampler 'ddpm': choose one of dpm"),
        ({"acting": "both"}, "Concepts act plain or gated, not 'both'"),
        ({"steps": 0}, "1 to 1000 steps, not 0"),
        ({"seed": -1}, "from 0 to 2.63 - 1, not -1"),
        ({"guidance": float("nan")}, "guidance scale is a number from 0 up, not nan"),
        ({"size": (64, 65)}, "multiples of 8 up to 8192 pixels, not 64 × 65"),
        ({"concepts": (("dog", {"left": 1.0}),)}, "down, mid, up, not 'left'"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(SettingsError, match=message):
        DrawingSettings("a dog", **changes)


def test_a_text_of_another_program_is_read_as_far_as_it_is_understood():
    text = "a dog\nSteps: 30, Sampler: Restart, CFG scale: 5.5, Seed: 11, Size: 768x512, Clip skip: 2"
    made = DrawingSettings.of(infotext.parse(text), prompt="a cat")
    assert made == DrawingSettings("a cat", seed=11, steps=30, guidance=5.5, size=(768, 512))


@pytest.mark.parametrize(
    ("text", "size"), [("", None), ("512", (512, 512)), ("512x768", (512, 768)), (" 64 × 72 ", (64, 72))]
)
def test_sizes_are_read_as_they_are_written(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["big", "64x", "1x2x3", "-64"])
def test_other_sizes_are_refused(text):
    with pytest.raises(SettingsError, match="a side or WIDTHxHEIGHT"):
        parse_size(text)
