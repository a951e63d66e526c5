"""Concept files that somebody made to do harm, each by hand, and the parts that such files are made of."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator

from atomdiff.files import card


def parts(data: bytes) -> tuple[dict, bytes]:
    """The header and the numbers of a sound file."""
    (size,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join(header: object, numbers: bytes) -> bytes:
    """A file of a header (JSON, or its text) and numbers."""
    text = header.encode("utf-8", "surrogatepass") if isinstance(header, str) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + numbers


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes) -> bytes:
    """A PNG of these chunks."""
    return card.SIGNATURE + b"".join(chunks)


def header_chunk(width: int = 1, height: int = 1, bits: int = 8, colour: int = 2) -> bytes:
    """An IHDR."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))


IHDR, IDAT, IEND = header_chunk(), chunk(b"IDAT", zlib.compress(b"\0\0\0\0")), chunk(b"IEND")


def concept_files(good: bytes, int8: bytes, int4: bytes) -> Iterator[tuple[str, bytes]]:
    """Concept files."""
    header, numbers = parts(good)
    text = json.dumps(header)
    name = next(key for key in header if key != "__metadata__")
    one = header[name]

    def tensor(**changes: object) -> bytes:
        return join(header | {name: one | changes}, numbers)

    def meta(**changes: object) -> bytes:
        return join(header | {"__metadata__": header["__metadata__"] | changes}, numbers)

    def spec(**changes: str) -> bytes:
        return meta(spec="&".join(f"{key}={value}" for key, value in changes.items()))

    yield "empty", b""
    yield "one byte", b"\0"
    yield "no header", bytes(8)
    yield "header cut off", good[:100]
    yield "numbers cut off", good[:-1]
    yield "a byte more", good + b"\0"
    yield "twice itself", good + good
    yield "header of 2^63 bytes", struct.pack("<Q", 2**63) + good[8:]
    yield "header of 2^64 - 1 bytes", b"\xff" * 8 + good[8:]
    yield "header of spaces", join(" " * 2**20, b"")
    yield "header of 16 MiB", join(" " * 2**24, b"")
    yield "not JSON", join("{nope", numbers)
    yield "not UTF-8", struct.pack("<Q", 8) + b"\xff" * 8
    yield "UTF-16", struct.pack("<Q", 2 * len(text)) + text.encode("utf-16-le") + numbers
    yield "a million brackets", join("[" * 10**6, b"")
    yield "deep objects", join('{"a":' * 170_000, b"")
    yield "deep and closed", join("[" * 900 + "]" * 900, b"")
    yield "many lists", join("[" + ",".join(["[]"] * 340_000) + "]", b"")
    yield "many objects", join("[" + ",".join(["{}"] * 340_000) + "]", b"")
    yield "many names", join("{" + ",".join(f'"{i:x}":1' for i in range(90_000)) + "}", b"")
    yield "many floats", join("[" + ",".join(["1e1"] * 260_000) + "]", b"")
    yield "long integers", join("[" + ",".join(["9" * 4000] * 260) + "]", b"")
    yield "one endless integer", join('{"a":' + "9" * 10**6 + "}", b"")
    yield "NaN in the header", join('{"a":NaN}', b"")
    zeros = {"dtype": "F16", "shape": [0], "data_offsets": [len(numbers)] * 2}
    yield "200,000 tensors", join(header | {f"t{i}": zeros for i in range(200_000)}, numbers)
    yield "9,000 tensors", join(header | {f"t{i}": zeros for i in range(9000)}, numbers)
    yield "65 tensors", join(header | {f"t{i}": zeros for i in range(65)}, numbers)
    yield "a tensor twice", join(text[:-1] + f', "{name}": {json.dumps(one)}}}', numbers)
    yield "metadata twice", join(text[:-1] + ', "__metadata__": {"format": "atomdiff/1"}}', numbers)
    yield "a text twice", join(text.replace('"trigger"', '"name"', 1), numbers)
    yield "a field twice", join(text.replace('"dtype"', '"shape": [1], "dtype"', 1), numbers)
    yield "shape of 2^62", tensor(shape=[2**62, 9, 9])
    yield "shape of 2^62 × 0", tensor(shape=[2**62, 0, 9])
    yield "shape of 10^4000", join(text.replace(str(one["shape"]), f"[{'9' * 4000}]", 1), numbers)
    yield "shape that wraps around 2^64", tensor(shape=[2**32, 2**32, 81])
    yield "5,000 dimensions", tensor(shape=[1] * 5000)
    yield "negative shape", tensor(shape=[-one["shape"][0], -one["shape"][1], one["shape"][2]])
    yield "boolean shape", tensor(shape=[True, *one["shape"][1:]])
    yield "shape of floats", tensor(shape=[float(side) for side in one["shape"]])
    yield "infinite shape", join(text.replace(str(one["shape"]), "[1e999, 9, 9]", 1), numbers)
    yield "shape is a text", tensor(shape="9" * 1000)
    yield "offsets are texts", tensor(data_offsets=["0", "18"])
    yield "offsets the wrong way", tensor(data_offsets=one["data_offsets"][::-1])
    yield "offsets that overlap", tensor(data_offsets=[offset + 2 for offset in one["data_offsets"]])
    yield "unknown dtype", tensor(dtype="F8_E4M3")
    yield "dtype is an object", tensor(dtype={"a": []})
    yield "NaN", join(header, struct.pack("<e", float("nan")) + numbers[2:])
    yield "infinity", join(header, struct.pack("<e", float("inf")) + numbers[2:])
    yield "version 2", meta(format="atomdiff/2")
    yield "version 10^1000", meta(format="atomdiff/" + "9" * 1000)
    yield "no version", meta(format="")
    yield "unknown field of the spec", meta(spec=header["__metadata__"]["spec"] + "&rank=4")
    yield "10,000 fields of the spec", spec(**{f"a{i}": "1" for i in range(10_000)})
    yield "spec of noise", meta(spec="%%%&&&===")
    yield "spec of 10^1000", spec(num_atoms="9" * 1000)
    yield "basis of 900,000 letters", spec(basis="x" * 900_000)
    yield "pattern that takes for ever", spec(conv_layers="(a%2B)%2B$")
    yield "pattern of 900,000 letters", spec(conv_layers="x" * 900_000)
    yield "pattern over all of Unicode", spec(conv_layers="(?i)[%01-%F4%8F%BF%BF]")
    yield "pattern that Python warns of", spec(conv_layers="[[a]")
    yield "pattern that is none", spec(conv_layers="(")
    yield "name that drives a terminal", meta(name="\x1b]0;owned\x07")
    yield "name of 900,000 letters", meta(name="x" * 900_000)
    yield "a lone surrogate", join(text.replace('"trigger": "', '"trigger": "\\ud800', 1), numbers)
    yield "5,000 texts", meta(**{f"x{i}": "" for i in range(5000)})
    yield "5,000 values of the training", meta(training="&".join(f"a{i}=1" for i in range(5000)))
    yield "deep JSON in the training", meta(training="a=%22" + "%5B" * 10_000)
    yield "base is a path", meta(base_name="../../secret")
    yield "sketch of NaN", meta(base_sketch="AH4A" * 10 + "AH4=")
    yield "sketch of 100 KB", meta(base_sketch="AAAA" * 25_000)
    eight, whole = parts(int8)
    yield "scale of NaN", join(eight, struct.pack("<e", float("nan")) + whole[2:])
    yield "integer of -128", join(eight, whole[:-1] + b"\x80")
    four, packed = parts(int4)
    shapes = {"int4": "conv=1048576x16x16"}
    yield "int4 of 2^28 numbers", join(four | {"__metadata__": four["__metadata__"] | shapes}, packed)
    yield "half byte of -8", join(four, packed[:-1] + b"\x08")
    yield from _large(header)


def _large(header: dict) -> Iterator[tuple[str, bytes]]:
    """Files whose few bytes, or many, would be far more numbers."""
    texts = header["__metadata__"]

    def zeros(count: int, code: str, width: int, **more: str) -> bytes:
        tensor = {"dtype": code, "shape": [count // 81, 9, 9], "data_offsets": [0, count // 81 * 81 * width]}
        return join({"__metadata__": texts | more, "conv": tensor}, bytes(count // 81 * 81 * width))

    yield "2^23 numbers in fp16", zeros(2**23 - 81, "F16", 2)
    yield "2^25 numbers in fp16", zeros(2**25, "F16", 2)
    flat = {"dtype": "U8", "shape": [2**20], "data_offsets": [0, 2**20]}
    scales = {"dtype": "F16", "shape": [2**15], "data_offsets": [0, 2**16]}
    flat["data_offsets"] = [2**16, 2**16 + 2**20]
    more = texts | {"int4": "conv=32768x8x8"}
    yield (
        "zeros in int4",
        join({"__metadata__": more, "conv.scale": scales, "conv": flat}, bytes(2**16 + 2**20)),
    )
