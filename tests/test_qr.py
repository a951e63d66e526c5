"""The QR codes of a concept: the same bytes back, from any order, from bad pictures, and nothing else."""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
import zlib
from pathlib import Path

import pytest
import torch
from damaged import DAMAGES
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from atomdiff import cli
from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import BasePassport
from atomdiff.core.inject import AtomSpec
from atomdiff.errors import ConceptError, ImageError, SettingsError
from atomdiff.files import qr, qr_image
from atomdiff.files.read_any import read_any
from atomdiff.files.safetensors_file import to_bytes

TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=20)


def concept_file(layers: int = 4, name: str = "Biscuit", trigger: str = "sks", scale: float = 0.1) -> bytes:
    generator = torch.Generator().manual_seed(layers)
    return to_bytes(
        Concept(
            atoms={"conv": scale * torch.randn(layers, 9, 9, generator=generator)},
            layers="0badcafe",
            spec=AtomSpec(linear_atoms="none"),
            base=BasePassport("sd1-1a2b3c4d", tuple(i / 10 for i in range(16)), "sd15"),
            trigger=trigger,
            name=name,
            training={"steps": 300},
        )
    )


def raw_file(numbers: bytes) -> bytes:
    """A file whose numbers may be any bytes, of a shape that nothing needs to understand here."""
    tensor = {"dtype": "F16", "shape": [1, 1, len(numbers) // 2], "data_offsets": [0, len(numbers)]}
    header = {"__metadata__": {"format": "atomdiff/1", "trigger": "sks"}, "conv": tensor}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + numbers


def frames(data: bytes) -> list[qr.Frame]:
    return [frame for frame in map(qr.parse_frame, qr.split(data)) if frame]


def payload(data: bytes, size: int | None = None, layout: int = 0) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, qr.DICTIONARY)
    stream = packer.compress(data) + packer.flush()
    return struct.pack("<BI", layout, len(data) if size is None else size) + stream


@settings(max_examples=60)
@given(st.integers(1, 80), TEXT, TEXT, st.sampled_from([1e-6, 0.1, 100.0]), st.randoms(use_true_random=False))
def test_any_concept_comes_back_whatever_the_order_of_its_codes(layers, name, trigger, scale, dice):
    data = concept_file(layers, name, trigger, scale)
    shuffled = frames(data) * 2
    dice.shuffle(shuffled)
    assert qr.join(shuffled) == data


@settings(max_examples=60)
@given(st.binary(min_size=1, max_size=400))
def test_any_numbers_come_back(numbers):
    data = raw_file(numbers * 2)
    assert qr.unpack(qr.pack(data)) == data
    assert qr.unpack(qr.pack(data) + b"\0" * 15) == data


def test_both_layouts_are_written_and_read():
    smooth = raw_file(b"".join(bytes([i * 37 % 256, 60]) for i in range(2000)))
    assert [qr.pack(data)[0] for data in (raw_file(bytes(8)), smooth)] == [0, 1]
    assert qr.unpack(qr.pack(smooth)) == smooth


def test_the_form_is_fixed():
    """What is printed today must be read for ever: the dictionary, and one frame of a file by its bytes."""
    assert hashlib.sha256(qr.DICTIONARY).hexdigest() == (
        "047729579dc6edf74e69d86b6fda28ba241cc1b5e2c191e797de3b6c080adcc8"
    )
    printed = bytes.fromhex(
        "61510100cc3a7c870088000000aa6080006213186a9a22e81f431d431d13acde81ba0120c0182c1a2c186c181c00"
    )
    frame = qr.parse_frame(printed)
    assert frame is not None
    assert qr.join([frame]) == raw_file(bytes.fromhex("00388038003c0040"))


def test_a_header_costs_little():
    data = concept_file()
    numbers = 4 * 9 * 9 * 2
    assert len(data) - numbers > 350
    assert len(qr.split(data)[0]) < numbers + 130


def test_symbols_are_comfortable_as_long_as_sixteen_suffice():
    for layers, count in ((7, 1), (52, 6), (130, 15)):
        codes = qr.split(concept_file(layers))
        assert len(codes) == count
        assert max(map(len, codes)) <= qr.COMFORTABLE
    large = qr.split(concept_file(250))
    assert len(large) == 16
    assert qr.COMFORTABLE < max(map(len, large)) <= qr.MAX_FRAME
    with pytest.raises(
        ConceptError, match=r"takes [\d,]+ bytes and 16 QR codes hold 46,272.*smaller precision"
    ):
        qr.split(concept_file(400))


def test_missing_foreign_and_mixed_codes_are_told():
    data = concept_file(52)
    parts = frames(data)
    with pytest.raises(
        ConceptError, match=r"Of the 6 QR codes of this concept only 4 could.*\(number 2, 6 is"
    ):
        qr.join([parts[0], *parts[2:5]])
    with pytest.raises(ConceptError, match="several concepts"):
        qr.join([*parts, *frames(concept_file(53))])
    with pytest.raises(ConceptError, match="there twice and differs"):
        qr.join([*parts, qr.Frame(1, 6, parts[1].checksum, parts[2].part)])
    with pytest.raises(ConceptError, match="No QR code"):
        qr.join([])
    assert qr.parse_frame(b"https://example.org") is None
    assert qr.parse_frame(b"aQ\x01\x00") is None
    assert qr.parse_frame(b"aQ\x01\x51" + bytes(9)) is None
    with pytest.raises(ConceptError, match=r"version 2.*update"):
        qr.parse_frame(b"aQ\x02\x00" + bytes(9))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"", "too few bytes"),
        (struct.pack("<BI", 2, 100) + bytes(50), "unknown here"),
        (struct.pack("<BI", 0, 2**20 + 1) + bytes(50), "unknown here"),
        (struct.pack("<BI", 0, 9) + b"\xff" * 50, "cannot be unpacked"),
        (payload(bytes(2**24), size=2**20), "another length"),
        (payload(raw_file(bytes(8)), size=500), "another length"),
        (payload(raw_file(bytes(8)))[:-3], "another length"),
        (payload(raw_file(bytes(8))) + b"more", "another length"),
        (payload(raw_file(bytes(8))) + bytes(16), "another length"),
        (payload(bytes(100), layout=1), "not a concept"),
    ],
)
def test_what_is_no_payload_is_refused_in_one_sentence(given, message):
    with pytest.raises(ConceptError, match=message):
        qr.unpack(given)


def test_altered_numbers_are_noticed():
    (frame,) = frames(raw_file(bytes(8)))
    other = qr.pack(raw_file(b"\1" + bytes(7)))
    with pytest.raises(ConceptError, match="checksum"):
        qr.join([qr.Frame(0, 1, frame.checksum, other)])


@settings(max_examples=200)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_damaged_payloads_raise_concept_errors_only(seed, count):
    dice = random.Random(seed)
    broken = bytearray(qr.pack(concept_file(2)))
    for _ in range(count):
        broken[dice.randrange(len(broken))] = dice.randrange(256)
    try:
        qr.unpack(bytes(broken))
    except ConceptError:
        return


@pytest.mark.parametrize("layers", [4, 52])
def test_a_sheet_is_read(layers):
    data = concept_file(layers)
    sheet = qr_image.sheet(data, "Biscuit · sks", 3)
    assert qr_image.read([sheet]) == data
    assert qr_image.read([Image.eval(sheet, lambda value: 255 - value)]) == data


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_sheet_is_read_after(damage):
    data = concept_file(16)
    damaged = DAMAGES[damage](qr_image.sheet(data, "Biscuit"), random.Random(1))
    assert qr_image.read([damaged]) == data


def test_one_photo_of_each_code_will_do_but_none_may_be_missing():
    data = concept_file(30)
    sheet = qr_image.sheet(data, "", 3)
    middle = (sheet.width // 2, sheet.height // 2)
    left = sheet.crop((0, 0, middle[0], sheet.height))
    right = sheet.crop((middle[0], 0, sheet.width, sheet.height))
    assert qr_image.read([right, left]) == data
    with pytest.raises(ConceptError, match=r"Of the 4 QR codes of this concept only 2 .*one of each"):
        qr_image.read([left])


def test_several_codes_are_joined_by_structured_append_as_well():
    """The standard's header: mode 0011, index, count − 1; then the joined text is the frames in a row."""
    import segno

    parts = qr.split(concept_file(30))
    codes = segno.make_sequence(b"".join(parts), error="L", mode="byte", symbol_count=len(parts))
    assert len(codes) == len(parts) == 4
    for code, part in zip(codes, parts, strict=True):
        buffer = io.BytesIO()
        code.save(buffer, kind="png", scale=3)
        found = qr_image.find(Image.open(buffer))
        assert found.frames == (qr.parse_frame(part),)


def test_qr_and_read_on_the_command_line(tmp_path):
    source, picture, out = tmp_path / "a.safetensors", tmp_path / "qr.png", tmp_path / "b.safetensors"
    source.write_bytes(concept_file())
    done = CliRunner().invoke(cli.app, ["qr", str(source), "--out", str(picture), "--scale", "3"])
    assert done.exit_code == 0, done.output
    assert "one QR code" in done.output
    done = CliRunner().invoke(cli.app, ["read", str(picture), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert out.read_bytes() == source.read_bytes()


def test_bad_pictures_and_scales_are_refused(tmp_path: Path):
    with pytest.raises(SettingsError, match="1 to 40 pixels a module, not 0"):
        qr_image.sheet(concept_file(), scale=0)
    bomb = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(bomb, "PNG")
    with pytest.raises(ImageError, match=r"13000 x 13000 pixels, too many to search"):
        qr_image.open_picture(bomb.getvalue(), "bomb.png")
    (tmp_path / "note.png").write_bytes(b"%PDF-1.7 hello")
    with pytest.raises(ImageError, match=r"'note.png' cannot be read as a picture \(it is no picture\)"):
        read_any(tmp_path / "note.png")
