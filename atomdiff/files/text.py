"""A concept as text, one line for a chat message, as in docs/format.md.

    atomdiff:v1:BASE64URL      of CRC-32 (4 bytes, big-endian) and the bytes of the file

It gives back the very bytes of the file, so a concept keeps its checksum on the way.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib

from atomdiff.errors import ConceptError
from atomdiff.files.safetensors_file import contents

MAX_LINE = 2**19  # letters of a chat message
_PREFIX = "atomdiff:v1:"
_AROUND = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff`\"'<>*"  # what chat programs put between letters


def to_text(data: bytes) -> str:
    """The line for a chat message. Raises ConceptError if `data` is no sound concept file or too long."""
    contents(data)
    if (letters := len(data) * 4 // 3) > MAX_LINE:
        raise ConceptError(
            f"The concept would be a text of {letters:,} letters, and at most {MAX_LINE:,} are read: share "
            "the file, or a card."
        )
    checked = zlib.crc32(data).to_bytes(4, "big") + data
    return _PREFIX + base64.urlsafe_b64encode(checked).decode().rstrip("=")


def from_text(text: str | bytes) -> bytes:
    """The file's bytes of the text that `to_text` made, whatever white space, line breaks, quotation marks
    and the like a chat program put around or into it; bytes are UTF-8, a byte order mark or not. Raises
    ConceptError."""
    if len(text) > MAX_LINE:
        raise ConceptError(
            f"The text has {len(text):,} letters, too many for a concept: check what was copied."
        )
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ConceptError("This is not text: give what `atomdiff export` wrote.") from None
    letters = "".join(text.split())
    for odd in _AROUND:
        letters = letters.replace(odd, "")
    version = re.match(r"atomdiff:v(\d{1,4}):", letters, re.IGNORECASE)
    if version is None:
        raise ConceptError(
            f"This is not the text of a concept ({text.strip()[:20]!r}): it starts with {_PREFIX}; "
            "copy all of it."
        )
    if version[1] != "1":
        raise ConceptError(
            f"The text has the form v{version[1]}, newer than this version of atomdiff reads: "
            "update atomdiff."
        )
    body = letters[version.end() :].rstrip("=")
    foreign = re.search(r"[^A-Za-z0-9_-]", body)
    if foreign:
        raise ConceptError(
            f"The text of the concept holds {foreign[0]!r}, which cannot be part of it: copy it alone and "
            "whole."
        )
    try:
        checked = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except (binascii.Error, ValueError):
        checked = b""
    data = checked[4:]
    whole = base64.urlsafe_b64encode(checked).decode().rstrip("=") == body
    if not whole or len(checked) < 4 or zlib.crc32(data).to_bytes(4, "big") != checked[:4]:
        raise ConceptError(
            "The text of the concept was cut off or changed on its way (its checksum is wrong): copy all "
            "of it once more."
        )
    contents(data)
    return data
