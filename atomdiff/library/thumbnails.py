"""The small picture by which a library shows a concept."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from atomdiff.errors import ImageError
from atomdiff.files.card import read_file
from atomdiff.files.card_image import HERO, INSET, SIZE
from atomdiff.files.images import centre_square, encoded
from atomdiff.files.modelspec import PREFIX
from atomdiff.files.qr_image import open_picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from atomdiff.files.read_any import FoundConcept

SIDE = 256  # pixels, as the ModelSpec has it
MAX_URI = 4 * 2**20  # letters of a thumbnail that is looked at


def of(found: FoundConcept) -> bytes | None:
    """A JPEG of what came with a concept: the picture that carried it, else the thumbnail in its file."""
    for data in _candidates(found):
        try:
            image = open_picture(data, "the picture", "RGB")
        except ImageError:  # a concept is as good without
            continue
        if image.size == SIZE:  # a card: its first picture
            image = image.crop((INSET, INSET, INSET + HERO, INSET + HERO))
        return jpeg(image)
    return None


def made_from(picture: Image | Path | bytes) -> bytes:
    """A JPEG of a picture. Raises ImageError if it is none, ConceptError if it cannot be read."""
    if isinstance(picture, (bytes, Path)):
        name = picture.name if isinstance(picture, Path) else "the picture"
        picture = open_picture(read_file(picture) if isinstance(picture, Path) else picture, name, "RGB")
    return jpeg(picture)


def jpeg(image: Image) -> bytes:
    """The middle of a picture, `SIDE` pixels a side."""
    return encoded(centre_square(image.convert("RGB"), SIDE), "JPEG", quality=85, optimize=True)


def _candidates(found: FoundConcept) -> Iterator[bytes]:
    if found.picture is not None:
        yield found.picture
    head, _, packed = found.concept.extra.get(PREFIX + "thumbnail", "").partition(",")
    if head.startswith("data:image/") and head.endswith(";base64") and len(packed) <= MAX_URI:
        try:
            yield base64.b64decode(packed, validate=True)
        except (binascii.Error, ValueError):
            return
