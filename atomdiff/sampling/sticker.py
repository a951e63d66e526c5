"""A picture as a sticker: its subject on nothing, with a white edge and a soft shadow.

Where the picture's rim is of one colour, what hangs together with it in that colour is cut away; else the
whole picture becomes a sticker with round corners. No model is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

TOLERANCE = 40  # of 255 a channel: how far from the rim's colour still counts as background
SUBJECT = (0.04, 0.9)  # of the area: less or more is no subject on a plain background
AT_RIM = 0.15  # of the rim that a subject may touch
EDGE, SHADOW, CORNER = 0.025, 0.012, 0.12  # of the longer side
LEAST = 384  # pixels of the longer side: smaller pictures are enlarged


def sticker(image: Image) -> Image:
    """An RGBA picture: the subject, its white edge, its shadow, and nothing around."""
    from PIL import Image as Pictures
    from PIL import ImageFilter

    picture = image.convert("RGB")
    factor = max(1, -(-LEAST // max(picture.size)))
    picture = picture.resize((picture.width * factor, picture.height * factor), Pictures.Resampling.LANCZOS)
    side = max(picture.size)
    edge, shadow = max(2, round(EDGE * side)), max(1, round(SHADOW * side))
    shape = _subject(picture) or _rounded(picture.size, round(CORNER * side))
    room = 2 * (edge + 2 * shadow)
    size = (picture.width + 2 * room, picture.height + 2 * room)
    inner = Pictures.new("L", size)
    inner.paste(shape, (room, room))
    outer = inner.filter(ImageFilter.GaussianBlur(edge)).point(lambda level: min(255, level * 8))
    made = Pictures.new("RGBA", size, (0, 0, 0, 0))
    dark = Pictures.new("RGBA", size, (0, 0, 0, 90))
    made.paste(
        dark, (0, shadow), outer.filter(ImageFilter.GaussianBlur(shadow)).point(lambda level: level // 3)
    )
    made.paste((255, 255, 255, 255), (0, 0, *size), outer)
    coloured = Pictures.new("RGB", size, "white")
    coloured.paste(picture, (room, room))
    made.paste(coloured, (0, 0), inner.filter(ImageFilter.GaussianBlur(1)))
    found = made.getbbox()
    return made.crop(found) if found else made


def _subject(picture: Image) -> Image | None:
    """The mask (L) of what does not hang together with the rim; None where there is no plain background."""
    from PIL import Image as Pictures
    from PIL import ImageDraw, ImageFilter

    pixels = np.asarray(picture, dtype=np.int16)  # (h, w, 3)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    near = (np.abs(pixels - np.median(rim, axis=0)).max(axis=2) <= TOLERANCE).astype(np.uint8)
    framed = np.pad(near, 1, constant_values=1)  # so that the background is in one piece around
    flood = Pictures.fromarray(framed * 255, mode="L").copy()  # one that may be painted on
    ImageDraw.floodfill(flood, (0, 0), 128)
    outside = np.asarray(flood)[1:-1, 1:-1] == 128
    share = 1 - outside.mean()
    at_rim = 1 - np.concatenate([outside[0], outside[-1], outside[:, 0], outside[:, -1]]).mean()
    if not SUBJECT[0] <= share <= SUBJECT[1] or at_rim > AT_RIM:
        return None
    mask = Pictures.fromarray(np.where(outside, 0, 255).astype(np.uint8), mode="L")
    return mask.filter(ImageFilter.MedianFilter(5))


def _rounded(size: tuple[int, int], radius: int) -> Image:
    from PIL import Image as Pictures
    from PIL import ImageDraw

    mask = Pictures.new("L", size)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), radius, fill=255)
    return mask
