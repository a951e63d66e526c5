"""A concept as the bytes of one or several QR symbols: its file without what a header spends.

**Payload**, little-endian:

    0   1  layout: 0 or 1
    1   4  N, the length of the concept file in bytes; at most 1 MiB
    5   …  the file, arranged as the layout says, as a raw DEFLATE stream with the preset dictionary
           `DICTIONARY`

Layout 0 is the file as it is. Layout 1 is its header (the 8 + H bytes up to the first number), then the bytes
of the numbers at even places, then those at odd places: half-precision numbers share their high bytes, and
side by side these pack better. The dictionary is a header with nothing particular in it, so that a header
costs only what it says; it is part of this format and never changes. What unpacks to another length than N
MUST be refused, and nothing beyond N be unpacked.

**Frame**, one a symbol:

    0   2  "aQ"
    2   1  version: 1
    3   1  16 · index + (count − 1)
    4   4  CRC-32 of the concept file: which concept this is a part of, and whether the whole arrived
    8   …  the part of the payload: all parts have one length, the last is filled up with zeros

A symbol holds one frame in byte mode; several symbols are joined by QR's own structured append as well, whose
text is then the frames one after another. Frames may be read in any order and more than once.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from atomdiff.errors import ConceptError
from atomdiff.files.header import parse_header

MAGIC, VERSION = b"aQ", 1
MAX_FILE = 2**20
MAX_SYMBOLS = 16  # of QR's structured append
COMFORTABLE = 1400  # bytes of a frame that a phone still reads well: QR version 27 at level L
MAX_FRAME = 2900  # version 40 at level L holds 2,951 bytes beside its structured append header
_FRAME = struct.Struct("<2sBBI")
_PAYLOAD = struct.Struct("<BI")
DICTIONARY = (
    b'},"linear":{"dtype":"F32","shape":[16,16,16],"data_offsets":[0,"conv.3x3":"basis.5x5":"scale":"I8""U8""I4"'
    b"&conv_layers=mid_block|up_blocks|down_blocks&linear_atoms=attn2_kv&linear_atoms=none&linear_atoms=all"
    b'&basis=svd"modelspec.title":"modelspec.author":"modelspec.license":"base_name":"sdxl""sd2-""sd21"'
    b"stabilityai/stable-diffusion-xl-base-1.0stable-diffusion-v1-5/stable-diffusion-v1-5"
    b'{"__metadata__":{"format":"atomdiff/1","name":"dog","trigger":"sks","class_word":"dog","base":"sdxl-"'
    b'"base":"sd1-","base_name":"sd15","base":"pocket-","base_name":"pocket","base_sketch":"'
    b'=","spec":"num_atoms=9&basis=dct&linear_atoms=attn2&linear_block=4","layers":"'
    b'","training":"steps=300&learning_rate=0.001&linear_learning_rate=0.001&pictures=5&class_pictures=100'
    b"&resolution=512&prior_loss_weight=1.0&seed=0&instance_prompt=a+sks+dog&class_prompt=a+dog"
    b'"},"conv":{"dtype":"F16","shape":[52,9,9],"data_offsets":[0,8424]},"linear":{"dtype":"F16",'
    b'"shape":[64,16,16],"data_offsets":[8424,41192]}}        '
)


@dataclass(frozen=True)
class Frame:
    """What one symbol holds."""

    index: int
    count: int
    checksum: int
    part: bytes


def pack(concept: bytes) -> bytes:
    """The payload of a concept file, in whichever layout is shorter. Raises ConceptError."""
    _, _, start = parse_header(concept)
    if len(concept) > MAX_FILE:
        raise ConceptError(
            f"The concept has {len(concept)} bytes; no row of QR codes holds that: share the file."
        )
    numbers = concept[start:]
    layouts = (concept, concept[:start] + numbers[0::2] + numbers[1::2])
    payloads = (
        _PAYLOAD.pack(i, len(concept)) + _deflated(arranged, start) for i, arranged in enumerate(layouts)
    )
    return min(payloads, key=len)


def unpack(payload: bytes) -> bytes:
    """Inverse of `pack`; zeros may follow the payload. Raises ConceptError."""
    if len(payload) < _PAYLOAD.size:
        raise ConceptError("The QR code holds too few bytes for a concept: it is damaged.")
    layout, size = _PAYLOAD.unpack_from(payload)
    if layout > 1 or size > MAX_FILE:
        raise ConceptError("The QR code holds a concept in a layout that is unknown here: update atomdiff.")
    unpacker = zlib.decompressobj(-15, zdict=DICTIONARY)
    try:
        arranged = unpacker.decompress(payload[_PAYLOAD.size :], size + 1)
    except zlib.error:
        raise ConceptError("The QR code's concept cannot be unpacked: it is damaged.") from None
    rest = unpacker.unused_data
    if len(arranged) != size or not unpacker.eof or rest.strip(b"\0") or len(rest) >= MAX_SYMBOLS:
        raise ConceptError("The QR code's concept has another length than it says: it is damaged.")
    if layout == 0:
        return arranged
    _, _, start = parse_header(arranged)
    concept = bytearray(arranged)
    half = start + (size - start + 1) // 2
    concept[start::2], concept[start + 1 :: 2] = arranged[start:half], arranged[half:]
    return bytes(concept)


def split(concept: bytes, comfortable: int = COMFORTABLE) -> list[bytes]:
    """The frames of a concept file: of a comfortable size if 16 of them suffice, else as large as need be.

    Raises ConceptError if not even 16 of the largest symbols hold it.
    """
    payload = pack(concept)
    count = min(MAX_SYMBOLS, -(-len(payload) // (comfortable - _FRAME.size)))
    side = -(-len(payload) // count)
    if side > MAX_FRAME - _FRAME.size:
        raise ConceptError(
            f"The concept takes {len(payload):,} bytes and {MAX_SYMBOLS} QR codes hold "
            f"{MAX_SYMBOLS * (MAX_FRAME - _FRAME.size):,}: save it with a "
            "smaller precision, or share it as a card."
        )
    checksum = zlib.crc32(concept)
    padded = payload.ljust(side * count, b"\0")
    return [
        _FRAME.pack(MAGIC, VERSION, 16 * i + count - 1, checksum) + padded[i * side : (i + 1) * side]
        for i in range(count)
    ]


def parse_frame(data: bytes) -> Frame | None:
    """What a symbol holds; None if it is not one of ours. Raises ConceptError for a newer version."""
    if len(data) <= _FRAME.size or not data.startswith(MAGIC):
        return None
    _, version, place, checksum = _FRAME.unpack_from(data)
    if version != VERSION:
        raise ConceptError(f"The QR code has version {version} of atomdiff's form: update atomdiff.")
    index, count = place >> 4, (place & 15) + 1
    return Frame(index, count, checksum, data[_FRAME.size :]) if index < count else None


def missing(frames: Iterable[Frame]) -> list[int]:
    """The indices that are still needed, or [-1] if there is no frame at all. Raises ConceptError.

    Frames of two concepts contradict each other, whoever made them: they are refused.
    """
    by_index: dict[int, Frame] = {}
    for frame in frames:
        first = next(iter(by_index.values()), frame)
        if (frame.checksum, frame.count, len(frame.part)) != (first.checksum, first.count, len(first.part)):
            raise ConceptError("The picture shows QR codes of several concepts: cut out those of one.")
        if by_index.setdefault(frame.index, frame) != frame:
            raise ConceptError(f"QR code {frame.index + 1} of {frame.count} is there twice and differs.")
    count = next(iter(by_index.values())).count if by_index else 0
    return sorted(set(range(count)) - set(by_index)) if by_index else [-1]


def join(frames: Iterable[Frame]) -> bytes:
    """The concept file that the frames hold together. Raises ConceptError if some are missing or damaged."""
    frames = list(frames)
    lacking = missing(frames)
    if lacking == [-1]:
        raise ConceptError("No QR code of a concept was given.")
    if lacking:
        count = frames[0].count
        raise ConceptError(
            f"Of the {count} QR codes of this concept only {count - len(lacking)} could be read (number "
            f"{', '.join(str(index + 1) for index in lacking)} is missing): take a "
            "sharper picture, or one of each."
        )
    parts = {frame.index: frame.part for frame in frames}
    concept = unpack(b"".join(parts[i] for i in sorted(parts)))
    if zlib.crc32(concept) != frames[0].checksum:
        raise ConceptError("The checksum of the concept in the QR codes is wrong: it was altered.")
    return concept


def _deflated(arranged: bytes, start: int) -> bytes:
    """The header and the numbers in blocks of their own, since their letters have nothing in common."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    header = packer.compress(arranged[:start]) + packer.flush(zlib.Z_PARTIAL_FLUSH)
    return header + packer.compress(arranged[start:]) + packer.flush()
