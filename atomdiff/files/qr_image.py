"""QR codes as pictures: those of a concept drawn on one sheet, and found again in a screenshot or photo."""

from __future__ import annotations

import hashlib
import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atomdiff.errors import ConceptError, ImageError, SettingsError
from atomdiff.files import qr
from atomdiff.files.fonts import fitted, font_for, showable

if TYPE_CHECKING:
    from PIL.Image import Image

QUIET = 4  # modules of white around a symbol, as the standard asks
INK = 36
MAX_PIXELS = 40_000_000  # of a picture that is searched: more than a phone takes by default
_MARK = re.compile(r"ATOMDIFF:CARD:([0-9A-F]{12})")


@dataclass(frozen=True)
class Found:
    """What a picture shows: the frames of a concept's QR codes, and the marks of cards (12 hex digits)."""

    frames: tuple[qr.Frame, ...] = ()
    marks: tuple[str, ...] = ()


def symbol(data: bytes | str, scale: int, level: str = "L") -> Image:
    """One QR code without its quiet zone, black on white, `scale` pixels a module."""
    import segno

    return _drawn(
        segno.make(data, error=level, micro=False, mode=None if isinstance(data, str) else "byte"), scale
    )


def sheet(concept: bytes, caption: str = "", scale: int = 6) -> Image:
    """The QR codes of a concept file on one sheet, in reading order, with a line above them.

    `scale` is in pixels a module. Raises ConceptError if the bytes are no concept or too many,
    SettingsError for a scale that cannot be drawn.
    """
    import segno
    from PIL import Image as Pictures
    from PIL import ImageDraw

    frames = qr.split(concept)
    if not 1 <= scale <= 40:
        raise SettingsError(f"A QR code is drawn with 1 to 40 pixels a module, not {scale}.")
    if len(frames) == 1:
        codes = [segno.make(frames[0], error="L", micro=False, mode="byte")]
    else:  # frames have one length, so that the sequence is cut exactly between them
        codes = list(segno.make_sequence(b"".join(frames), error="L", mode="byte", symbol_count=len(frames)))
    images = [_drawn(code, scale) for code in codes]
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    side, gap = images[0].width, 2 * QUIET * scale
    letters = max(14, 5 * scale)
    head = 2 * letters if caption else 0
    made = Pictures.new("L", (gap + columns * (side + gap), gap + head + rows * (side + gap)), 255)
    if caption:
        line = showable(caption if len(frames) == 1 else f"{caption} · {len(frames)} codes")
        font = font_for(line, letters)
        ImageDraw.Draw(made).text((gap, gap // 2), fitted(line, font, made.width - 2 * gap), INK, font)
    for i, image in enumerate(images):
        made.paste(image, (gap + i % columns * (side + gap), gap + head + i // columns * (side + gap)))
    return made


def mark(concept: bytes) -> str:
    """What the small code in a card's corner says: that this is a card, and of which concept file."""
    return f"ATOMDIFF:CARD:{hashlib.sha256(concept).hexdigest()[:12].upper()}"


def find(image: Image) -> Found:
    """The codes of atomdiff's in a picture, of any size and angle. Raises ConceptError, ImageError.

    The picture is searched as it is, and while something seems to be missing enlarged, reduced and with other
    thresholds.
    """
    import zxingcpp

    _check_size(image)
    kinds = zxingcpp.BarcodeFormats([zxingcpp.BarcodeFormat.QRCode])
    frames: dict[tuple[int, bytes], qr.Frame] = {}
    marks: set[str] = set()
    for tried, binarizer in _views(image.convert("L")):
        for code in zxingcpp.read_barcodes(tried, formats=kinds, binarizer=binarizer):
            frame = qr.parse_frame(bytes(code.bytes))
            sign = _MARK.fullmatch(bytes(code.bytes).decode("latin-1"))
            if frame:
                frames[frame.index, frame.part] = frame
            elif sign:
                marks.add(sign[1].lower())
        if not qr.missing(frames.values()) or (marks and not frames):
            break
    return Found(tuple(frames.values()), tuple(sorted(marks)))


def read(images: Sequence[Image]) -> bytes:
    """The concept file whose QR codes are in one picture or in several together.

    Raises ConceptError if there is none, or only a part of one. A card whose concept was lost still shows its
    mark; the error says so.
    """
    found = [find(image) for image in images]
    frames = [frame for one in found for frame in one.frames]
    if frames:
        return qr.join(frames)
    marks = sorted({mark for one in found for mark in one.marks})
    if marks:
        raise ConceptError(
            f"This is the card of the concept {marks[0]}…, but the concept in it was lost when the picture "
            "was saved anew on its way (by a site, or as a screenshot): get the original file of the card."
        )
    raise ConceptError(
        "The picture carries no concept and no QR code of one can be read in it; if it did once, a site "
        "saved it anew on the way: get the original file, or a sharper picture of the QR codes."
    )


def open_picture(data: bytes, name: str, mode: str = "L") -> Image:
    """A screenshot or photo, upright, in grey (or RGB); too large a one is refused undecoded. Raises
    ImageError."""
    from PIL import Image as Pictures

    from atomdiff.files.images import FORMATS, to_rgb

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of size and of odd EXIF; both are handled here
            Pictures.init()
            known = [kind for kind in FORMATS if kind in Pictures.OPEN]
            with Pictures.open(io.BytesIO(data), formats=known) as image:
                _check_size(image)
                image.load()
                return to_rgb(image).convert(mode)
    except ImageError:
        raise
    except Exception as error:  # decoders raise nearly anything on broken bytes
        kind = "it is no picture" if isinstance(error, Pictures.UnidentifiedImageError) else str(error)[:120]
        raise ImageError(f"{name!r} cannot be read as a picture ({kind}): give a PNG or JPEG.") from None


def _check_size(image: Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"The picture has {image.width} x {image.height} pixels, too many to search: make it "
            "smaller first."
        )


def _drawn(code: Any, scale: int) -> Image:
    from PIL import Image as Pictures

    rows = [bytes(0 if dark else 255 for dark in row) for row in code.matrix]
    small = Pictures.frombytes("L", (len(rows), len(rows)), b"".join(rows))
    return small.resize((len(rows) * scale, len(rows) * scale), Pictures.Resampling.NEAREST)


def _views(image: Image) -> Iterator[tuple[Image, Any]]:
    """The picture as it is and as it may be easier to read, the likeliest first."""
    import zxingcpp
    from PIL import Image as Pictures
    from PIL import ImageFilter, ImageOps

    local, globally = zxingcpp.Binarizer.LocalAverage, zxingcpp.Binarizer.GlobalHistogram
    yield image, local
    yield image, globally
    clear = ImageOps.autocontrast(image, cutoff=1)
    for factor in (2.0, 0.5, 3.0):
        width, height = round(image.width * factor), round(image.height * factor)
        if min(width, height) > 30 and width * height <= MAX_PIXELS:
            view = clear.resize((width, height), Pictures.Resampling.BICUBIC)
            yield view, local
            yield view.filter(ImageFilter.UnsharpMask(2 * factor, 200, 0)), local
