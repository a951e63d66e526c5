"""Labels in any script: a font that has the letters, and no box where none has."""

import pytest
from PIL import Image, ImageDraw

from atomdiff.files import fonts
from atomdiff.files.fonts import font_for, showable


@pytest.fixture
def alone(monkeypatch):
    """A machine without any font of its own."""
    monkeypatch.setattr(fonts, "SYSTEM", ())


def drawn(text: str, font) -> bytes:
    picture = Image.new("L", (200, 40))
    ImageDraw.Draw(picture).text((2, 2), text, 255, font)
    return picture.tobytes()


@pytest.mark.parametrize("text", ["dog", "Zoë — über", "собака", "σκύλος ★"])
def test_letters_of_europe_are_shown_everywhere(alone, text):
    assert showable(text) == text
    boxes = "\U0010fffe" * len(text.replace(" ", ""))
    assert drawn(text, font_for(text, 20)) != drawn(boxes, font_for(text, 20))


@pytest.mark.parametrize(("text", "shown"), [("犬 dog 🐶", "dog"), ("犬", ""), ("", ""), ("a\n b", "a b")])
def test_what_no_font_has_is_left_out(alone, text, shown):
    assert showable(text) == shown


def test_a_font_of_the_system_is_taken_where_it_has_more(monkeypatch):
    """DejaVu stands in for a font of the system, where nothing is brought along."""
    own = fonts._brought()
    monkeypatch.setattr(fonts, "_brought", lambda: "")
    monkeypatch.setattr(fonts, "SYSTEM", ("there-is-no-such-font.ttf", own))
    assert showable("собака") == "собака"
    assert font_for("собака", 20).getname()[0] == "DejaVu Sans"
    assert font_for("dog", 20).getname()[0] != "DejaVu Sans"
