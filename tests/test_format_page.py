"""docs/format.md is enough to read a card, QR codes and a base's sketch: readers written from it alone."""

from __future__ import annotations

import base64
import json
import math
import struct
import zlib
from pathlib import Path

import pytest
import torch
from torch import nn

from atomdiff.concept.passport import BasePassport, passport_of
from atomdiff.files import card, qr
from atomdiff.files.safetensors_file import from_bytes, to_bytes

PAGE = (Path(__file__).parent.parent / "docs" / "format.md").read_text("utf-8")


def block(kind: str, name: str) -> str:
    return PAGE.split(f"```{kind} {name}\n")[1].split("```")[0]


def raw(name: str) -> bytes:
    return bytes.fromhex(block("hex", name))


def test_the_card_of_the_page():
    data, found, position = raw("card"), {}, 8
    while position < len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        content = data[position + 8 : position + 8 + size]
        assert struct.unpack_from(">I", data, position + 8 + size)[0] == zlib.crc32(kind + content)
        found[kind] = content
        position += 12 + size
    assert list(found) == [b"IHDR", b"tEXt", b"atOm", b"IDAT", b"IEND"]
    assert found[b"atOm"] == raw("int4") == card.extract(data)
    assert found[b"tEXt"].startswith(b"parameters\0")
    assert card.embed(data, raw("int8")) != data == card.embed(data, raw("int4"))


def test_the_codes_of_the_page():
    payload, count = b"", 0
    for i in range(2):
        magic, version, place, checksum = struct.unpack_from("<2sBBI", raw(f"frame{i}"))
        assert (magic, version, place >> 4, checksum) == (b"aQ", 1, i, zlib.crc32(raw("int4")))
        count = (place & 15) + 1
        payload += raw(f"frame{i}")[8:]
    assert count == 2
    layout, size = struct.unpack_from("<BI", payload)
    arranged = zlib.decompressobj(-15, zdict=raw("dictionary")).decompress(payload[5:])
    assert len(arranged) == size
    if layout == 1:
        start = 8 + struct.unpack_from("<Q", arranged)[0]
        even, odd = (
            arranged[start : start + (size - start + 1) // 2],
            arranged[start + (size - start + 1) // 2 :],
        )
        numbers = bytearray(size - start)
        numbers[0::2], numbers[1::2] = even, odd
        arranged = arranged[:start] + bytes(numbers)
    assert arranged == raw("int4")
    frames = [frame for frame in (qr.parse_frame(raw(f"frame{i}")) for i in (1, 0)) if frame]
    assert qr.join(frames) == raw("int4")
    assert raw("dictionary") == qr.DICTIONARY


MASK = 2**64 - 1


def sign(weight: int, place: int) -> int:
    x = (4096 * weight + place + 1) * 0x9E3779B97F4A7C15 & MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return 1 if (x ^ x >> 31) & 1 else -1


def sketch(weights: list[list[float]]) -> bytes:
    totals, counts = [0.0] * 16, [0] * 16
    for index, numbers in enumerate(weights):
        sample = numbers[:: math.ceil(len(numbers) / 4096)]
        norm = math.sqrt(sum(number**2 for number in sample))
        totals[index % 16] += sum(x * sign(index, i) for i, x in enumerate(sample)) / norm if norm else 0
        counts[index % 16] += 1
    return struct.pack("<16e", *(t / math.sqrt(c) if c else 0 for t, c in zip(totals, counts, strict=True)))


def test_the_sketch_of_the_page():
    said = json.loads(block("json", "sketch"))
    sizes = [math.prod(shape) for shape in said["weights"].values()]
    made = sketch([[((7 * i) % 11 - 5) / 8 for i in range(size)] for size in sizes])
    assert base64.b64encode(made).decode() == said["base_sketch"]
    assert "".join("+" if sign(0, i) > 0 else "-" for i in range(10)) == "+-+-+-+-+-"
    assert "".join("+" if sign(3, i) > 0 else "-" for i in range(10)) == "--++-++---"
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(100, 50)).requires_grad_(False)
    for layer in net:
        layer.weight.copy_((((torch.arange(layer.weight.numel()) * 7) % 11 - 5) / 8).view(layer.weight.shape))
    assert passport_of(net, "sd1") == BasePassport.from_text(f"sd1-{said['hash']}", said["base_sketch"])


def test_a_sketch_by_the_page_of_many_weights():
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(7 + i, 700) for i in range(19)))
    made = sketch([layer.weight.detach().flatten().tolist() for layer in net])
    mine = passport_of(net, "sd1").sketch
    assert struct.unpack("<16e", made) == pytest.approx(mine, abs=2e-3)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_the_files_of_the_page_are_still_written(precision):
    assert to_bytes(from_bytes(raw(precision)), precision) == raw(precision)
