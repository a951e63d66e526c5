"""The card: a concept's exact bytes in a PNG, and no harm from anybody's PNG."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path

import pytest
import torch
from hostile.concept_files import IDAT, IEND, IHDR, chunk
from hostile.concept_files import png as joined
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from atomdiff import cli
from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import BasePassport
from atomdiff.core import inject
from atomdiff.core.inject import AtomSpec
from atomdiff.errors import ConceptError, ImageError
from atomdiff.files import card, card_image, fonts, qr_image
from atomdiff.files.read_any import read_any
from atomdiff.files.safetensors_file import from_bytes, save_concept, to_bytes
from atomdiff.sampling import sheets


def concept_file(**changes) -> bytes:
    generator = torch.Generator().manual_seed(0)
    values = {
        "atoms": {"conv": 0.1 * torch.randn(4, 9, 9, generator=generator)},
        "layers": "0badcafe",
        "spec": AtomSpec(linear_atoms="none"),
        "base": BasePassport("sd1-1a2b3c4d", tuple(i / 10 for i in range(16)), "sd15"),
        "trigger": "sks",
        "class_word": "dog",
        "name": "Biscuit",
        "training": {"steps": 300, "instance_prompt": "a sks dog"},
    }
    return to_bytes(Concept(**(values | changes)))


CONCEPT = concept_file()


def png(size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (20, 120, 110)).save(buffer, "PNG")
    return buffer.getvalue()


CARRIED = chunk(b"atOm", CONCEPT)


def run(*arguments: str | Path):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_the_concept_comes_back_byte_for_byte_and_the_picture_is_the_same():
    made = card.embed(png(), CONCEPT)
    assert card.extract(made) == CONCEPT
    with Image.open(io.BytesIO(made)) as after, Image.open(io.BytesIO(png())) as before:
        assert after.tobytes() == before.tobytes()
    assert card.extract(png()) is None


def test_the_chunk_is_ancillary_private_safe_to_copy_and_comes_before_the_pixels():
    kinds = [item.kind for item in card.walk(card.embed(png(), CONCEPT))]
    assert kinds == [b"IHDR", b"atOm", b"IDAT", b"IEND"]
    assert [letter.islower() for letter in "atOm"] == [True, True, False, True]


def test_a_picture_carries_one_concept_and_a_new_one_replaces_it():
    other = concept_file(name="other")
    once = card.embed(png(), CONCEPT)
    assert card.embed(once, CONCEPT) == once
    assert card.extract(card.embed(once, other)) == other


def test_reading_decodes_no_pixel():
    giant = chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 16, 6, 0, 0, 0))
    bomb = chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(10**7)))
    assert card.extract(joined(giant, bomb, CARRIED, chunk(b"IDAT", b"no pixels"), IEND)) == CONCEPT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no PNG"),
        (b"PK\x03\x04" + CONCEPT, "no PNG"),
        (CONCEPT, "no PNG"),
        (joined(), "cut off"),
        (joined(IHDR, CARRIED, IDAT), "cut off"),
        (joined(IHDR, CARRIED[:-20]), "cut off"),
        (joined(IHDR, CARRIED, IDAT, IEND)[:-1], "cut off"),
        (joined(IHDR, CARRIED, IDAT, IEND) + b"!", "1 bytes follow the end"),
        (joined(IHDR, IDAT, IEND, CARRIED), "bytes follow the end"),
        (joined(IHDR, CARRIED, CARRIED, IDAT, IEND), "2 concepts"),
        (joined(IHDR, CARRIED, IDAT, CARRIED, IEND), "2 concepts"),
        (joined(IHDR, IDAT, CARRIED, IDAT, IEND), "one run"),
        (joined(IHDR, IDAT, CARRIED, IEND), "after the pixels"),
        (joined(IHDR, CARRIED, IEND), "one run"),
        (joined(CARRIED, IHDR, IDAT, IEND), "start with one IHDR"),
        (joined(IHDR, IHDR, CARRIED, IDAT, IEND), "start with one IHDR"),
        (joined(chunk(b"IHDR", bytes(12)), IDAT, IEND), "start with one IHDR"),
        (joined(IHDR, IDAT, chunk(b"IEND", b"x")), "no sound end"),
        (joined(IHDR, chunk(b"AtOm", CONCEPT), IDAT, IEND), "critical chunk 'AtOm'"),
        (joined(IHDR, chunk(b"at\0m", CONCEPT), IDAT, IEND), "impossible name"),
        (joined(IHDR, chunk(b"atom", CONCEPT), IDAT, IEND), "impossible name"),
        (joined(IHDR, CARRIED[:-4] + bytes(4), IDAT, IEND), "checksum .*'atOm' is wrong"),
        (joined(IHDR, struct.pack(">I", 2**32 - 1) + CARRIED[4:], IDAT, IEND), "4294967295 bytes of concept"),
        (joined(IHDR, struct.pack(">I", 2**31) + b"tEXt"), "cut off"),
        (joined(IHDR, chunk(b"atOm", b"\x80\x04pickle..."), IDAT, IEND), "not a concept"),
        (joined(IHDR, chunk(b"atOm"), IDAT, IEND), "only 0 bytes"),
        (joined(IHDR, chunk(b"atOm", CONCEPT + b"!"), IDAT, IEND), "belong to no tensor"),
        (joined(IHDR, *[chunk(b"tEXt")] * 5001, IDAT, IEND), "over 5000 chunks"),
    ],
)
def test_what_is_no_sound_card_is_refused_in_one_sentence(data, message):
    with pytest.raises(ConceptError, match=message):
        card.extract(data)


@settings(max_examples=150)
@given(st.data())
def test_no_single_wrong_byte_passes(data):
    whole = joined(IHDR, CARRIED, IDAT, IEND)
    place = data.draw(st.integers(0, len(whole) - 1))
    broken = bytearray(whole)
    broken[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ConceptError):
        card.extract(bytes(broken))
    with pytest.raises(ConceptError):
        card.extract(whole[:place])


def test_only_concepts_are_embedded():
    with pytest.raises(ConceptError, match="not a concept"):
        card.embed(png(), b"\0" * 100)
    with pytest.raises(ConceptError, match=r"at most 8388608"):
        card.embed(png(), bytes(card.MAX_CONCEPT + 1))


@pytest.mark.parametrize("count", range(5))
def test_a_card_is_drawn_with_any_number_of_pictures(count):
    pictures = [Image.new("RGB", (64, 64), (40 * i, 200 - 40 * i, 90)) for i in range(count)]
    made = card_image.make(CONCEPT, pictures)
    assert card.extract(made) == CONCEPT
    with Image.open(io.BytesIO(made)) as image:
        assert image.size == card_image.SIZE
        assert image.info["parameters"].startswith('a sks dog\nModel: "sd15", Concepts: "Biscuit:1:')
        shown = qr_image.find(image)
    assert [qr_image.mark(CONCEPT).endswith(mark.upper()) for mark in shown.marks] == [True]


def test_a_card_counts_kilobytes_as_the_commands_do():
    assert card_image._size(7418) == ("7.4", "KB")
    assert card_image._size(999_950) == ("1.0", "MB")
    assert [card_image._size(count) for count in (99_949, 100_000)] == [("99.9", "KB"), ("100", "KB")]


def test_odd_texts_do_not_break_the_drawing():
    odd = concept_file(
        name="W" * 300, trigger="犬 " * 40, class_word="", base=BasePassport("sd1-1a2b3c4d", (0.0,) * 16, "")
    )
    assert card.extract(card_image.make(odd)) == odd


def test_five_pictures_are_too_many():
    with pytest.raises(ImageError, match="at most 4 pictures, not 5"):
        card_image.make(CONCEPT, [Image.new("RGB", (8, 8))] * 5)


@pytest.mark.parametrize(
    ("kind", "size"), [("JPEG", (540, 675)), ("PNG", (1080, 1350)), ("WEBP", (800, 1000))]
)
def test_a_card_that_a_site_saved_anew_is_told_from_any_picture(tmp_path, kind, size):
    path = tmp_path / f"reposted.{kind.lower()}"
    with Image.open(io.BytesIO(card_image.make(CONCEPT))) as image:
        image.resize(size).save(path, kind, quality=60)
    with pytest.raises(ConceptError, match=r"card of the concept [0-9a-f]{12}….*lost.*get the original file"):
        read_any(path)


def test_cards_are_concepts_wherever_a_concept_is_loaded(tmp_path):
    (tmp_path / "card.png").write_bytes(card_image.make(CONCEPT))
    assert card.load(tmp_path / "card.png").name == "Biscuit"
    (tmp_path / "plain.png").write_bytes(png())
    with pytest.raises(ConceptError, match=r"plain.png' carries no concept.*get the original"):
        card.load(tmp_path / "plain.png")
    with pytest.raises(ConceptError, match=r"'nope.png' cannot be read"):
        card.load("nope.png")


def test_card_and_read_on_the_command_line(tmp_path):
    (tmp_path / "biscuit.safetensors").write_bytes(CONCEPT)
    (tmp_path / "dog.png").write_bytes(png((64, 48)))
    done = run(
        "card",
        tmp_path / "biscuit.safetensors",
        "--picture",
        tmp_path / "dog.png",
        "--out",
        tmp_path / "card.png",
    )
    assert done.exit_code == 0, done.output
    assert f"{len(CONCEPT):,} of them the concept" in done.output
    done = run("read", tmp_path / "card.png", "--out", tmp_path / "new" / "x.safetensors")
    assert done.exit_code == 0, done.output
    assert "'Biscuit', for sd15" in done.output
    assert (tmp_path / "new" / "x.safetensors").read_bytes() == CONCEPT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["card", "biscuit.safetensors", "--out", "card.jpg"], "a card is a .png, not 'card.jpg'"),
        (["card", "biscuit.safetensors", "--picture", "note.txt"], "note.txt' cannot be used"),
        (["read", "note.txt"], "'note.txt' cannot be read as a picture"),
        (["read", "plain.png"], "carries no concept and no QR code"),
        (["read", "plain.png", "--out", "x.ckpt"], "ends in .safetensors, not '.ckpt'"),
        (["generate", "dog", "--embed-concept", "--out", "a.png"], "needs one --concept.*0 given"),
        (["generate", "dog", "--embed-concept", "--out", "a.jpg"], "Only a PNG can carry.*not a.jpg"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("biscuit.safetensors").write_bytes(CONCEPT)
    Path("plain.png").write_bytes(png())
    Path("note.txt").write_text("hello", encoding="utf-8")
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert pytest.raises(ValueError, match=message).matches(ValueError(done.stderr))


def test_drawn_pictures_can_carry_the_concept_that_drew_them(tmp_path, tiny_base, tiny_folder):
    base = tiny_base("sd1")
    spec = AtomSpec(linear_atoms="none")
    atoms = {layer: torch.full((9, 9), 0.05) for layer in inject.select(base.unet, spec).conv}
    path = save_concept(
        Concept.of(base.unet, spec, atoms, base.passport, trigger="sks"), tmp_path / "c.safetensors"
    )
    (tmp_path / "card.png").write_bytes(card_image.make(path.read_bytes()))
    done = run(
        "generate", "a sks dog", "--concept", f"{tmp_path / 'card.png'}:0.5", "--embed-concept", "-n", 2,
        "--out", tmp_path / "out.png", "--base", tiny_folder("sd1"), "--steps", 2, "--device", "cpu",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    for name in ("out.png", "out-0.png", "out-1.png"):
        assert card.extract((tmp_path / name).read_bytes()) == path.read_bytes()
        with Image.open(tmp_path / name) as image:
            assert image.info["parameters"].startswith("a sks dog\n")


def test_only_a_png_carries(tmp_path):
    with pytest.raises(ImageError, match=r"name the picture a.png, not a.webp"):
        sheets.save_picture(Image.new("RGB", (8, 8)), tmp_path / "a.webp", concept=CONCEPT)


@pytest.mark.parametrize(
    ("name", "trigger", "called"), [("Zoë", "sks", "Zoë"), ("犬", "sks", "sks"), ("犬 dog", "いぬ", "dog")]
)
def test_a_name_without_letters_to_show_it_gives_way(monkeypatch, name, trigger, called):
    monkeypatch.setattr(fonts, "SYSTEM", ())
    data = concept_file(name=name, trigger=trigger)
    assert card_image._called(from_bytes(data), data) == called
    made = card_image.make(data)
    assert card.extract(made) == data
    with Image.open(io.BytesIO(made)) as picture:
        assert f"{name}:1:" in picture.info["parameters"]


def test_a_concept_that_no_font_can_name_is_called_by_its_checksum(monkeypatch):
    monkeypatch.setattr(fonts, "SYSTEM", ())
    data = concept_file(name="犬", trigger="いぬ")
    assert card_image._called(from_bytes(data), data) == hashlib.sha256(data).hexdigest()[:12]
