"""A concept as chat text: the very same bytes come back, and damage is told in one sentence."""

from __future__ import annotations

import json
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_files import concept
from typer.testing import CliRunner

from atomdiff import cli
from atomdiff.concept.concept import Concept
from atomdiff.core.inject import AtomSpec
from atomdiff.errors import ConceptError
from atomdiff.files import card_image, quantization
from atomdiff.files.modelspec import annotated
from atomdiff.files.safetensors_file import from_bytes, load_concept, save_concept, to_bytes
from atomdiff.files.text import MAX_LINE, from_text, to_text

SMALL = AtomSpec(num_atoms=2, linear_block=2)
texts = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=20)


@st.composite
def concepts(draw) -> Concept:
    floats = st.floats(-60000, 60000, width=32)
    atoms = {"conv": draw(arrays(np.float32, (draw(st.integers(1, 3)), 2, 9), elements=floats))}
    if draw(st.booleans()):
        atoms["linear"] = draw(arrays(np.float32, (draw(st.integers(1, 3)), 4, 4), elements=floats))
    return concept(
        spec=SMALL,
        atoms={name: torch.from_numpy(array) for name, array in atoms.items()},
        name=draw(texts),
        trigger=draw(texts),
        extra=draw(st.dictionaries(texts.map("x-{}".format), texts, max_size=3)),
    )


@settings(max_examples=150)
@given(concepts(), st.sampled_from(quantization.PRECISIONS))
def test_bytes_and_text_give_each_other_back(made, dtype):
    data = to_bytes(made, dtype)
    assert to_bytes(from_bytes(data), dtype) == data
    assert from_text(to_text(data)) == data


@pytest.mark.parametrize(
    "mangle",
    [
        lambda text: f"\n  {text} \r\n",
        lambda text: "\n".join(textwrap.wrap(text, 60)),
        lambda text: "\n".join("> " + line for line in textwrap.wrap(text, 60)),
        lambda text: f"```\n{text}\n```",
        lambda text: f"\ufeff“{text}”".replace("“", '"').replace("”", '"'),
        lambda text: text.replace("a", "a\u200b"),
        lambda text: text.replace("atomdiff:v1:", "Atomdiff:v1: "),
        lambda text: text + "==",
    ],
)
def test_what_chat_programs_do_to_a_text_is_undone(mangle):
    data = to_bytes(concept())
    assert from_text(mangle(to_text(data))) == data


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: "", "not the text of a concept"),
        (lambda text: "hello", "not the text of a concept"),
        (lambda text: text[5:], "not the text of a concept"),
        (lambda text: text.replace("v1", "v2"), "newer than this version"),
        (lambda text: text[:-1], "cut off or changed"),
        (lambda text: text[:500], "cut off or changed"),
        (lambda text: "atomdiff:v1:", "cut off or changed"),
        (lambda text: "atomdiff:v1:A", "cut off or changed"),
        (lambda text: text.lower(), "cut off or changed"),
        (lambda text: text[:700] + text[701:], "cut off or changed"),
        (lambda text: text + " enjoy!", "holds '!'"),
        (lambda text: text[:700] + "…" + text[760:], "holds '…'"),
        (lambda text: text + "A" * 2**27, "too many"),
    ],
)
def test_a_damaged_text_is_told_in_one_sentence(damage, message):
    with pytest.raises(ConceptError, match=message) as caught:
        from_text(damage(to_text(to_bytes(concept()))))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@settings(max_examples=100)
@given(st.data())
def test_one_wrong_letter_is_always_found(data):
    text = to_text(to_bytes(concept(), "int4"))
    place = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.characters(codec="ascii", categories=("L", "N", "P")))
    wrong = text[:place] + letter + text[place + 1 :]
    try:
        assert from_text(wrong) == from_text(text)  # an A for an a in the prefix
        assert wrong.lower() == text.lower()
    except ConceptError as error:
        assert "\n" not in str(error)


def test_text_whose_checksum_is_right_is_still_checked():
    import base64
    import zlib

    bad = b"\0" * 3
    line = "atomdiff:v1:" + base64.urlsafe_b64encode(zlib.crc32(bad).to_bytes(4, "big") + bad).decode()
    with pytest.raises(ConceptError, match="only 3 bytes long"):
        from_text(line)
    with pytest.raises(ConceptError, match="only 3 bytes long"):
        to_text(bad)


# ------------------------------------------------------------------------------------------------ commands


def run(*arguments: object, **options):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], **options)


@pytest.fixture
def file(tmp_path):
    return save_concept(concept(), tmp_path / "dog.safetensors")


def test_export_and_import(file, tmp_path):
    exported = tmp_path / "dog.txt"
    assert run("export", file, "--out", exported).exit_code == 0
    assert run("export", file, "--text").stdout == exported.read_text("utf-8")
    done = run("import", exported, "--out", tmp_path / "again.safetensors")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()
    piped = run("import", "-", "--out", tmp_path / "piped.safetensors", input=exported.read_bytes())
    assert piped.exit_code == 0, piped.output
    assert (tmp_path / "piped.safetensors").read_bytes() == file.read_bytes()


def test_what_was_copied_from_a_chat_is_imported_as_it_is(file, tmp_path):
    copied = "> `" + run("export", file).stdout.strip() + "`"
    done = run("import", copied, "--out", tmp_path / "again.safetensors")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()


def test_a_card_is_a_concept_for_every_command(file, tmp_path):
    card = tmp_path / "card.png"
    card.write_bytes(card_image.make(file.read_bytes()))
    assert run("export", card).stdout == run("export", file).stdout
    out = tmp_path / "out.safetensors"
    done = run("convert", card, "--out", out)
    assert done.exit_code == 0, done.output
    assert out.read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "none.safetensors"),
        ("export", "dog.safetensors", "--text", "--to", "lora"),
        ("export", "dog.safetensors", "--out", "dog.safetensors/x"),
        ("import", "none.txt", "--out", "x.safetensors"),
        ("import", "dog.safetensors", "--out", "x.safetensors"),
        ("import", "atomdiff:v1:AAAA", "--out", "x.safetensors"),
        ("import", "none.txt", "--out", "x.txt"),
        ("convert", "dog.safetensors", "--out", "x.png"),
        ("convert", "dog.safetensors", "--precision", "int3", "--out", "x.safetensors"),
        ("convert", "dog.safetensors", "--max-bytes", "10", "--out", "x.safetensors"),
        ("convert", "dog.safetensors", "--thumbnail", "dog.safetensors", "--out", "x.safetensors"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(file, monkeypatch, arguments):
    monkeypatch.chdir(file.parent)
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (file.parent / "x.safetensors").exists()


def test_convert_to_a_precision_and_to_a_size(file, tmp_path):
    out = tmp_path / "small.safetensors"
    done = run("convert", file, "--precision", "int8", "--out", out)
    assert done.exit_code == 0, done.output
    assert "(int8, " in done.output
    assert out.read_bytes() == to_bytes(load_concept(file), "int8")
    assert run("convert", file, "--max-bytes", "1400", "--out", out).exit_code == 0
    assert out.read_bytes() == to_bytes(load_concept(file), "int4")
    about = json.loads(run("inspect", out, "--json").stdout)
    assert about["dtype"] == "int4"
    assert sum(about["bytes"].values()) == about["file_bytes"]
    again = tmp_path / "again.safetensors"
    assert run("convert", out, "--out", again).exit_code == 0
    assert again.read_bytes() == out.read_bytes()


def test_an_author_signs_a_concept(file, tmp_path):
    from PIL import Image

    Image.new("RGB", (400, 300), (200, 60, 60)).save(tmp_path / "look.png")
    out = tmp_path / "signed.safetensors"
    signed = ("--author", "Ada", "--license", "CC0-1.0", "--thumbnail", tmp_path / "look.png")
    done = run("convert", file, *signed, "--out", out)
    assert done.exit_code == 0, done.output
    said = load_concept(out).extra
    assert said["modelspec.author"] == "Ada"
    assert said["modelspec.license"] == "CC0-1.0"
    assert said["modelspec.title"] == "my dog"
    assert said["modelspec.trigger_phrase"] == "sks"
    assert said["modelspec.architecture"] == "stable-diffusion-v1/atomdiff"
    assert said["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert "modelspec.usage_hint" not in said
    assert annotated(concept()).extra == {}


def test_a_field_of_the_format_is_no_extra_field():
    with pytest.raises(ConceptError, match="'format' is one of the format's own"):
        to_bytes(concept(extra={"format": "mine"}))


def test_a_text_file_is_read_with_and_without_a_byte_order_mark():
    data = to_bytes(concept())
    for before in (b"\xef\xbb\xbf", b"\n  "):
        assert from_text(before + to_text(data).encode()) == data
    with pytest.raises(ConceptError, match="This is not text"):
        from_text(b"\xff\xfe")
    with pytest.raises(ConceptError, match=r"has 524,289 letters, too many"):
        from_text(bytes(MAX_LINE + 1))


def test_what_is_too_long_for_a_text_is_told_before_it_is_made():
    spec = AtomSpec(linear_atoms="none")
    large = to_bytes(concept(spec=spec, atoms={"conv": torch.ones(5000, 9, 9)}), "int8")
    with pytest.raises(ConceptError, match=r"at most [\d,]+ are read: share the file, or a card"):
        to_text(large)
