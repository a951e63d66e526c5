"""Everything else made by hand to do harm: cards, codes, texts, foreign files and pictures.

Every case is (reader, bytes), where the reader is a name of `campaign.readers`. All of them must be refused;
none may take long, take memory, or be run.
"""

from __future__ import annotations

import gzip
import io
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from atomdiff.files import card, qr, qr_image
from atomdiff.files.text import to_text
from hostile import concept_files
from hostile.concept_files import IDAT, IEND, IHDR, chunk, header_chunk, png

Case = tuple[str, bytes]
SUFFIXES = ("safetensors", "png", "json", "txt", "pt", "pth", "ckpt", "bin", "pkl", "npy", "jpg", "webp")


class Bomb:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("echo unpickled",)


def by_hand(good: bytes, int8: bytes, int4: bytes) -> dict[str, Case]:
    """All of them, made from sound files in fp16, int8 and int4. Name -> (reader, bytes)."""
    made: dict[str, Case] = {}
    for reader, group in (
        ("file", concept_files.concept_files(good, int8, int4)),
        ("card", cards(good)),
        ("codes", codes(good)),
        ("text", texts(good)),
        ("path", foreign(good)),
        ("picture", pictures(good)),
    ):
        for name, data in group:
            made[f"{reader}: {name}"] = (reader, data)
    return made


def cards(good: bytes) -> Iterator[tuple[str, bytes]]:
    """Pictures that carry a concept."""
    carried = chunk(b"atOm", good)
    sound = png(IHDR, carried, IDAT, IEND)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Bomb()))
    yield "signature alone", card.SIGNATURE
    yield "cut off", sound[:-1]
    yield "cut within the concept", sound[:300]
    yield "two concepts", png(IHDR, carried, carried, IDAT, IEND)
    yield "a second concept behind the pixels", png(IHDR, carried, IDAT, carried, IEND)
    yield "a late concept", png(IHDR, IDAT, carried, IEND)
    yield "a concept behind the end", png(IHDR, IDAT, IEND, carried)
    yield "a zip behind the end", sound + zipped.getvalue()
    yield "a PDF in front", b"%PDF-1.7\n" + sound
    yield "a script in front", b"#!/bin/sh\n" + sound
    yield "wrong checksum", png(IHDR, carried[:-4] + bytes(4), IDAT, IEND)
    yield "chunk of 4 GiB", png(IHDR, struct.pack(">I", 2**32 - 1) + carried[4:], IDAT, IEND)
    yield "concept of 2 GiB", png(IHDR, struct.pack(">I", 2**31) + b"atOm")
    yield "concept of 9 MiB", png(IHDR, chunk(b"atOm", bytes(9 * 2**20)), IDAT, IEND)
    yield "100,000 chunks", png(IHDR, chunk(b"tEXt") * 100_000, IDAT, IEND)
    yield "40 MiB", png(IHDR, chunk(b"teXt", bytes(40 * 2**20)), carried, IDAT, IEND)
    yield "pickle as the concept", png(IHDR, chunk(b"atOm", pickle.dumps(Bomb())), IDAT, IEND)
    yield "PNG as the concept", png(IHDR, chunk(b"atOm", sound), IDAT, IEND)
    yield "critical chunk", png(IHDR, chunk(b"AtOm", good), IDAT, IEND)
    yield "impossible chunk", png(IHDR, chunk(b"at\0m", good), IDAT, IEND)
    yield "pixels in two runs", png(IHDR, IDAT, carried, IDAT, IEND)
    yield "two headers", png(IHDR, IHDR, carried, IDAT, IEND)
    yield "no pixels", png(IHDR, carried, IEND)
    bomb = header_chunk(2**31 - 1, 2**31 - 1, 16, 6)
    yield "2^62 pixels around a wrong concept", png(bomb, chunk(b"atOm", good[:-1]), IDAT, IEND)
    unpacked = chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(10**8), 1))
    yield "texts of 100 MB unpacked", png(IHDR, unpacked, chunk(b"atOm", good + b"!"), IDAT, IEND)
    yield "profile of 100 MB unpacked", png(IHDR, b"iCCP" + unpacked[8:], IDAT, IEND)


def codes(good: bytes) -> Iterator[tuple[str, bytes]]:
    """QR codes' bytes, those of several codes as (u16 length, bytes) in a row; see `campaign.read_codes`."""

    def packed(data: bytes, size: int, layout: int = 0) -> bytes:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, qr.DICTIONARY)
        return struct.pack("<BI", layout, size) + packer.compress(data) + packer.flush()

    def framed(payload: bytes, checksum: int = 0, place: int = 0, version: int = 1) -> bytes:
        frame = struct.pack("<2sBBI", b"aQ", version, place, checksum) + payload
        return struct.pack("<H", len(frame)) + frame

    whole = qr.pack(good)
    yield "none of ours", struct.pack("<H", 5) + b"hello"
    yield "frame of nothing", framed(b"")
    yield "version 2", framed(whole, zlib.crc32(good), version=2)
    yield "layout 7", framed(packed(good, len(good), 7), zlib.crc32(good))
    yield "1 GiB said", framed(packed(good, 2**30), zlib.crc32(good))
    yield "bomb of 20 MB", framed(packed(bytes(2 * 10**7), 2**20))
    yield "bomb of 20 MB in the other layout", framed(packed(bytes(2 * 10**7), 2**20, 1))
    yield "a wrong checksum", framed(whole, 1)
    yield "cut off", framed(whole[:-9], zlib.crc32(good))
    yield "something behind", framed(whole + b"more", zlib.crc32(good))
    yield "one of sixteen", framed(whole, zlib.crc32(good), 15)
    yield "two concepts", framed(whole, 1, 1) + framed(whole, 2, 17)
    yield "one twice, different", framed(whole, 1, 1) + framed(whole[::-1], 1, 1)
    yield "place beyond the last", framed(whole, zlib.crc32(good), 0x50)
    yield "pickle", framed(packed(pickle.dumps(Bomb()), len(pickle.dumps(Bomb()))), zlib.crc32(good))
    yield "MiB of zeros as a file", framed(packed(bytes(2**20), 2**20), zlib.crc32(bytes(2**20)))


def texts(good: bytes) -> Iterator[tuple[str, bytes]]:
    """Chat messages, in UTF-8."""
    line = to_text(good).encode()
    yield "nothing", b""
    yield "prefix alone", b"atomdiff:v1:"
    yield "version 2", line.replace(b"v1", b"v2", 1)
    yield "version 9999999", line.replace(b"v1", b"v9999999", 1)
    yield "a letter less", line[:-1]
    yield "a letter changed", line[:200] + bytes([line[200] ^ 1]) + line[201:]
    yield "in lower case", line.lower()
    yield "4 MB of letters", b"atomdiff:v1:" + b"A" * (4 * 2**20 - 12)
    yield "30 MB of spaces", b" " * (30 * 2**20)
    yield "half a million quotation marks", b"atomdiff:v1:" + b"A'" * 250_000
    yield "half a million zero-width spaces", b"atomdiff:v1:" + "A\u200b".encode() * 120_000
    yield "half a million letters of another script", "犬".encode() * 500_000
    yield "not UTF-8", b"atomdiff:v1:\xff\xfe"
    yield "four letters that are no base64", b"atomdiff:v1:AAAAA"
    yield "concept in a concept", b"atomdiff:v1:" + line


def foreign(good: bytes) -> Iterator[tuple[str, bytes]]:
    """Files of other kinds, first the suffix they are given and a line feed; some are programs."""
    for suffix in SUFFIXES:
        for protocol in (0, 5):
            bomb = pickle.dumps({"state_dict": Bomb()}, protocol)
            yield f"pickle, protocol {protocol}, as .{suffix}", suffix.encode() + b"\n" + bomb
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
        archive.writestr("archive/data/0", bytes(5 * 10**7))
    for suffix in ("safetensors", "pt", "png"):
        yield f"zip bomb with a pickle, as .{suffix}", suffix.encode() + b"\n" + zipped.getvalue()
    yield "gzip bomb", b"safetensors\n" + gzip.compress(bytes(10**8), 1)
    array = (
        b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(128) + b"\n"
    )
    yield "array of objects", b"npy\n" + array + pickle.dumps([Bomb()])
    yield "HDF5", b"safetensors\n\x89HDF\r\n\x1a\n" + bytes(2000)
    yield "program", b"safetensors\n\x7fELF\x02\x01\x01" + bytes(2000)
    yield "page", b"png\n<html><script>alert(1)</script></html>"
    yield "drawing", b"png\n<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    yield "pickle in front of a concept", b"safetensors\n" + pickle.dumps(Bomb()) + good
    yield "concept in front of a pickle", b"safetensors\n" + good + pickle.dumps(Bomb())


def pictures(good: bytes) -> Iterator[tuple[str, bytes]]:
    """Pictures in which codes are looked for."""
    from PIL import Image

    def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    def code(data: bytes | str) -> bytes:
        image = Image.new("L", (400, 400), 255)
        image.paste(qr_image.symbol(data, 3), (20, 20))
        return saved(image)

    dice = random.Random(0)
    yield "13,000² pixels", saved(Image.new("1", (13_000, 13_000)))
    yield "2^62 pixels", png(header_chunk(2**31 - 1, 2**31 - 1, 16, 6), IDAT, IEND)
    yield "pixels cut off", png(header_chunk(500, 500), IDAT, IEND)
    yield "pixels of 100 MB in 1 × 1", png(IHDR, chunk(b"IDAT", zlib.compress(bytes(10**8), 1)), IEND)
    yield "JPEG cut off", saved(Image.new("RGB", (64, 64)), "JPEG")[:-40]
    yield (
        "GIF of 500 pictures",
        saved(
            Image.new("L", (16, 16)),
            "GIF",
            save_all=True,
            append_images=[Image.new("L", (16, 16), i % 256) for i in range(500)],
        ),
    )
    yield (
        "BMP that says 2^31",
        b"BM" + bytes(12) + struct.pack("<IiiHH", 40, 2**31 - 1, 2**31 - 1, 1, 24) + bytes(24),
    )
    yield "TIFF that points at itself", b"II*\0\x08\0\0\0\x01\0\x00\x01\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"
    yield "noise", saved(Image.frombytes("L", (300, 300), dice.randbytes(90_000)))
    yield "a web address", code("https://example.org")
    yield "frame of noise", code(b"aQ\x01\x00" + dice.randbytes(500))
    yield "frame of the next version", code(b"aQ\x02\x00" + dice.randbytes(50))
    yield "one code of two", code(qr.split(good, 200)[0])
    yield "pickle in a code", code(pickle.dumps(Bomb(), 0))
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, qr.DICTIONARY)
    stream = bomb.compress(bytes(2 * 10**6)) + bomb.flush()
    yield "bomb in a code", code(b"aQ\x01\x00" + bytes(4) + struct.pack("<BI", 0, 2**20) + stream)
    yield "mark of a card", code(qr_image.mark(good))
    yield "two cards' marks and a texture", saved(Image.linear_gradient("L").resize((500, 500)))
