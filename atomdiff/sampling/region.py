"""A part of a picture, as a drawing describes it: where it is, which concepts act there, what is there.

Where is a box in shares of the picture, or a mask: 64 × 64 places, as fine as the soft borders of regions,
packed into a line of text, so that a picture's text can tell it and the picture can be drawn again.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atomdiff.errors import SettingsError

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 64  # places of a mask along each side
Box = tuple[float, float, float, float]
_BYTES = SIDE * SIDE // 8


@dataclass(frozen=True)
class Region:
    """Concepts in a part of the picture. `where` is a box (left, top, right, bottom) in shares of it, or a
    mask as `packed` makes it of a picture, which may be given too. `concepts` are their places, from 0,
    among the concepts of the drawing; `prompt` is what is there; left out, the picture's prompt without what
    other regions are called. Raises SettingsError for what is neither box nor mask."""

    where: Box | str
    concepts: tuple[int, ...] = ()
    prompt: str = ""

    def __post_init__(self) -> None:
        where: Any = self.where
        if isinstance(where, str):
            mask_of(where)
        elif isinstance(where, Sequence):
            if len(where) != 4 or not (0 <= where[0] < where[2] <= 1 and 0 <= where[1] < where[3] <= 1):
                raise SettingsError(
                    "A region is left,top,right,bottom in shares of the picture, 0 ≤ left < right ≤ 1 and "
                    f"0 ≤ top < bottom ≤ 1, not {where}."
                )
            object.__setattr__(self, "where", tuple(map(float, where)))
        else:
            object.__setattr__(self, "where", packed(where))


def packed(mask: Image) -> str:
    """A mask as text: what is mostly white of its 64 × 64 places. Raises SettingsError if nothing is."""
    from PIL import Image as Pictures

    small = mask.convert("L").resize((SIDE, SIDE), Pictures.Resampling.BOX)
    bits = small.point(lambda level: 255 if level >= 128 else 0).convert("1")
    if bits.getbbox() is None:
        raise SettingsError("The mask of a region is all black, so it is nowhere: white is the region.")
    return base64.b64encode(zlib.compress(bits.tobytes(), 9)).decode()


def mask_of(text: str) -> Image:
    """The mask, mode L, that `packed` made into text. Raises SettingsError."""
    from PIL import Image as Pictures

    try:
        unpack = zlib.decompressobj()
        data = unpack.decompress(base64.b64decode(text, validate=True), _BYTES + 1)
        if len(data) != _BYTES or not any(data):
            raise ValueError
    except (ValueError, zlib.error):
        raise SettingsError(
            f"A mask as text is what a picture's settings tell of one, not {text[:40]!r}."
        ) from None
    return Pictures.frombytes("1", (SIDE, SIDE), data).convert("L")


def parse_where(text: str) -> Box | str:
    """A box, `0,0,0.5,1`, or a mask as text. Raises SettingsError."""
    sides = text.split(",")
    if len(sides) == 1:
        mask_of(text)
        return text
    try:
        left, top, right, bottom = map(float, sides)
    except ValueError:
        raise SettingsError(f"The sides of a region are four numbers, not {text[:40]!r}.") from None
    return left, top, right, bottom


def told(regions: Sequence[Region]) -> str:
    """Regions as the text of a picture has them; their concepts are counted from 1."""
    return json.dumps(
        [[list(r.where) if isinstance(r.where, tuple) else r.where, [1 + i for i in r.concepts], r.prompt]
         for r in regions],
        ensure_ascii=False,
    )  # fmt: skip


def read(text: str, concepts: int) -> tuple[Region, ...]:
    """Inverse of `told`, of a drawing with so many concepts; none where it is not understood: a stranger may
    have written it."""
    try:
        made = tuple(
            Region(where if isinstance(where, str) else tuple(where), tuple(i - 1 for i in own), str(prompt))
            for where, own, prompt in json.loads(text)
        )
    except (ValueError, TypeError, RecursionError, SettingsError):
        return ()
    return made if all(i in range(concepts) for region in made for i in region.concepts) else ()
