"""Sound concepts made into hostile ones, at random but deep: with right lengths and checksums."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

from made_up import picture

from atomdiff.errors import ConceptError
from atomdiff.files import card, qr, qr_image, text
from hostile.concept_files import chunk, join, parts

ODD: list[Any] = [
    *(None, True, -1, 0, 2**31, 2**63, 2**64, 10**40, 1e308, 0.5, [], {}, [[]], [1] * 99, {"a": 1}),
    *("", "x", "F16", "I8", "\x00", "../..", "é" * 300, "atomdiff/2", "conv=1x9x9", "A" * 44),
]


def mutate_bytes(data: bytes, dice: random.Random) -> bytes:
    """A few things done to bytes, wherever they are."""
    made = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 4, 9))):
        place, length = dice.randrange(len(made) + 1), min(dice.choice((1, 2, 4, 8, 40, 300)), len(made))
        match dice.randrange(8):
            case 0:
                made[place : place + 1] = bytes([dice.randrange(256)])
            case 1 if made:
                made[place % len(made)] ^= 1 << dice.randrange(8)
            case 2:
                del made[place : place + length]
            case 3:
                made[place:place] = dice.randbytes(length)
            case 4:
                made[place:place] = made[dice.randrange(len(made) + 1) :][:length]
            case 5:
                made[place : place + 8] = dice.choice((b"\0", b"\xff", b"\x7f", b"{", b'"')) * dice.choice(
                    (1, 2, 4, 8)
                )
            case 6:
                number = dice.choice((0, 1, len(data), 2**31 - 1, 2**31, 2**32 - 1, 2**63))
                made[place : place + 8] = struct.pack(dice.choice("<>") + "Q", number)
            case 7 if dice.random() < 0.3:
                del made[place:]
    return bytes(made)


def mutate_json(content: object, dice: random.Random) -> object:
    """One value, anywhere in it, replaced, left out, doubled or moved."""
    place: object = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))  # type: ignore[arg-type]
        key = dice.choice(keys)
        inner = place[key]  # type: ignore[index]
        if not isinstance(inner, (dict, list)) or not inner or dice.random() < 0.2:
            break
        place = inner
    match dice.randrange(5):
        case 0 if isinstance(place, dict):
            del place[key]
        case 1 if isinstance(place, dict):
            place[dice.choice(("conv", "linear", "basis", "conv.scale", "x", "int4", "__metadata__"))] = inner
        case 2 if isinstance(inner, str) and inner:
            place[key] = mutate_bytes(inner.encode(), dice).decode("utf-8", "replace")  # type: ignore[index]
        case 3 if isinstance(inner, int):
            place[key] = inner + dice.choice((-1, 1, 2, 2**16))  # type: ignore[index]
        case _:
            place[key] = dice.choice(ODD)  # type: ignore[index]
    return content


def mutate_file(data: bytes, dice: random.Random) -> bytes:
    """A concept file of which the bytes, the header or the numbers are others."""
    if dice.random() < 0.4:
        return mutate_bytes(data, dice)
    header, numbers = parts(data)
    if dice.random() < 0.85:
        header = mutate_json(header, dice)  # type: ignore[assignment]
    else:
        numbers = mutate_bytes(numbers, dice)
    made = json.dumps(header, ensure_ascii=dice.random() < 0.5, separators=(",", ":"))
    return join(made, numbers)


def mutate_card(data: bytes, dice: random.Random) -> bytes:
    """A card whose chunks, or the concept in it, are others; mostly with right checksums."""
    whole = card.embed(picture(), data)
    if dice.random() < 0.3:
        return mutate_bytes(whole, dice)
    chunks = [(item.kind, whole[item.start : item.end]) for item in card.walk(whole)]
    place = dice.randrange(len(chunks))
    kind, content = chunks[place]
    match dice.randrange(6):
        case 0:
            chunks.insert(dice.randrange(len(chunks) + 1), chunks[place])
        case 1:
            del chunks[place]
        case 2:
            dice.shuffle(chunks)
        case 3:
            chunks[place] = (mutate_bytes(kind, dice)[:4].ljust(4, b"x"), content)
        case 4:
            chunks[place] = (kind, mutate_bytes(content, dice))
        case 5:
            chunks[1] = (card.KIND, mutate_file(data, dice))
    return card.SIGNATURE + b"".join(chunk(*item) for item in chunks)


def mutate_codes(data: bytes, dice: random.Random) -> bytes:
    """QR codes that hold another concept, or are damaged themselves."""
    if dice.random() < 0.5:
        with contextlib.suppress(ConceptError):
            changed = mutate_file(data, dice)
            frames = qr.split(changed, dice.choice((200, 1400)))
            return b"".join(struct.pack("<H", len(frame)) + frame for frame in frames)
    payload = mutate_bytes(qr.pack(data), dice)
    frame = struct.pack("<2sBBI", b"aQ", 1, 0, zlib.crc32(data)) + payload
    made = struct.pack("<H", len(frame)) + frame
    return mutate_bytes(made, dice) if dice.random() < 0.5 else made


def mutate_text(data: bytes, dice: random.Random) -> bytes:
    """A line for a chat: damaged, or sound around a damaged concept."""
    if dice.random() < 0.5:
        return mutate_bytes(text.to_text(data).encode(), dice)
    changed = mutate_file(data, dice)
    return b"atomdiff:v1:" + base64.urlsafe_b64encode(zlib.crc32(changed).to_bytes(4, "big") + changed)


def mutate_picture(data: bytes, dice: random.Random) -> bytes:
    """A small picture of a QR code: other bytes of the picture, or of what the code says."""
    said = b"aQ\x01\x00" + (0).to_bytes(4, "little") + mutate_bytes(qr.pack(data), dice)[:2000]
    buffer = io.BytesIO()
    qr_image.symbol(said, 2).save(buffer, dice.choice(("PNG", "JPEG", "WEBP", "BMP")))
    return mutate_bytes(buffer.getvalue(), dice) if dice.random() < 0.6 else buffer.getvalue()


MUTATORS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "file": mutate_file,
    "card": mutate_card,
    "codes": mutate_codes,
    "text": mutate_text,
    "picture": mutate_picture,
}
