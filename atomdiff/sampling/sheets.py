"""Pictures as files: with their settings inside, and side by side on a contact sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomdiff.errors import ImageError
from atomdiff.files import atomic
from atomdiff.files.fonts import fitted, font_for, showable

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
SMALLEST_CELL = 192  # pixels: smaller pictures are enlarged on a sheet, a native pocket picture is a stamp
GAP = 12
PAPER, INK = (250, 249, 247), (60, 58, 56)


def save_picture(
    image: Image, path: str | Path, parameters: str | None = None, concept: bytes | None = None
) -> Path:
    """Writes a PNG, JPEG or WebP, whole or not at all, with its generation text where A1111 and its kin look
    for it.

    That is a PNG text chunk `parameters`, or the EXIF user comment; the text is the picture's own unless
    given. `concept` is the bytes of a concept file that a PNG carries along. Raises ImageError for another
    suffix or if the file cannot be written.
    """
    path = Path(path)
    check_suffix(path, carries=concept is not None)
    data = picture_bytes(image, FORMATS[path.suffix.lower()], parameters)
    if concept is not None:
        from atomdiff.files.card import embed  # reads concepts, so it needs torch; pictures alone do not

        data = embed(data, concept)
    return atomic.write(path, data, "The picture", ImageError)


def picture_bytes(image: Image, kind: str = "PNG", parameters: str | None = None) -> bytes:
    """The bytes of a PNG, JPEG or WEBP with its generation text inside, see `save_picture`."""
    from atomdiff.files.images import encoded

    text = image.info.get("parameters", "") if parameters is None else parameters
    options: dict[str, Any] = {"quality": 95} if kind != "PNG" else {}
    if text and kind == "PNG":
        from PIL.PngImagePlugin import PngInfo

        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text("parameters", text)
    elif text:
        options["exif"] = _user_comment(text)
    return encoded(image, kind, **options)


def check_suffix(path: Path, carries: bool = False) -> None:
    """Raises ImageError if pictures (that carry a concept) cannot be written under this name."""
    if carries and path.suffix.lower() != ".png":
        raise ImageError(
            f"Only a PNG can carry a concept: name the picture {path.stem}.png, not {path.name}."
        )
    if path.suffix.lower() not in FORMATS:
        raise ImageError(
            f"Pictures are written as {', '.join(FORMATS)}, not {path.suffix or 'without a suffix'!r}."
        )


def contact_sheet(rows: Sequence[tuple[str, Sequence[Image]]]) -> Image:
    """Rows of pictures under their labels (an empty label takes no room), every picture in a cell of one
    size.

    Pictures below 192 pixels are enlarged by a whole factor. Raises ImageError without any picture.
    """
    from PIL import Image as Pictures
    from PIL import ImageDraw

    sizes = [image.size for _, images in rows for image in images]
    if not sizes:
        raise ImageError("A contact sheet needs at least one picture.")
    width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
    factor = max(1, math.ceil(SMALLEST_CELL / max(width, height)))
    width, height = width * factor, height * factor
    letters = max(14, height // 14)
    columns = max(len(images) for _, images in rows)
    label_height = letters + GAP
    total = GAP + sum(height + GAP + (label_height if label else 0) for label, _ in rows)
    sheet = Pictures.new("RGB", (GAP + columns * (width + GAP), total), PAPER)
    pen = ImageDraw.Draw(sheet)
    y = GAP
    for label, images in rows:
        if label:
            _write(pen, (GAP, y), label, letters, sheet.width - 2 * GAP)
            y += label_height
        for column, image in enumerate(images):
            shown = image.convert("RGB").resize(
                (image.width * factor, image.height * factor), Pictures.Resampling.LANCZOS
            )
            left = GAP + column * (width + GAP)
            sheet.paste(shown, (left + (width - shown.width) // 2, y + (height - shown.height) // 2))
        y += height + GAP
    return sheet


def labelled_grid(
    columns: Sequence[str], rows: Sequence[str], tables: Sequence[tuple[str, Sequence[Image]]]
) -> Image:
    """Tables of pictures, each (title, pictures row by row), under the names of the columns and beside
    those of the rows; empty names take no room.

    Raises ImageError if a table has another number of pictures than cells.
    """
    from PIL import Image as Pictures
    from PIL import ImageDraw

    if not tables or any(len(images) != len(columns) * len(rows) or not images for _, images in tables):
        raise ImageError(f"A grid of {len(columns)} × {len(rows)} needs a picture for every cell.")
    width, height = (max(image.size[axis] for _, images in tables for image in images) for axis in (0, 1))
    factor = max(1, math.ceil(SMALLEST_CELL / max(width, height)))
    width, height = width * factor, height * factor
    letters = max(14, min(width, height) // 14)
    line = letters + GAP
    widest = max(font_for(name, letters).getlength(showable(name)) for name in rows)
    left = GAP + (int(min(width, widest)) + GAP if any(rows) else 0)
    table_height = (line if any(columns) else 0) + len(rows) * (height + GAP) + GAP
    total = GAP + sum(table_height + (int(line * 1.25) if title else 0) for title, _ in tables)
    sheet = Pictures.new("RGB", (left + len(columns) * (width + GAP), total), PAPER)
    pen = ImageDraw.Draw(sheet)
    top = GAP
    for title, images in tables:
        if title:
            _write(pen, (GAP, top), title, letters * 1.25, sheet.width - 2 * GAP)
            top += int(line * 1.25)
        for x, name in enumerate(columns):
            _write(pen, (left + x * (width + GAP), top), name, letters, width)
        y = top + (line if any(columns) else 0)
        for i, image in enumerate(images):
            at = (left + i % len(columns) * (width + GAP), y + i // len(columns) * (height + GAP))
            size = (image.width * factor, image.height * factor)
            sheet.paste(image.convert("RGB").resize(size, Pictures.Resampling.LANCZOS), at)
        for i, name in enumerate(rows):
            middle = y + i * (height + GAP) + (height - letters) // 2
            _write(pen, (GAP, middle), name, letters, width)
        top += table_height
    return sheet


def grid(images: Sequence[Image]) -> Image:
    """All pictures on one sheet, about as wide as high."""
    columns = math.ceil(math.sqrt(len(images)))
    return contact_sheet([("", images[start : start + columns]) for start in range(0, len(images), columns)])


def _write(pen: Any, at: tuple[int, int], text: str, size: float, room: float) -> None:
    """A line of `size` pixels, in a font that has its letters, cut to `room` pixels."""
    font = font_for(text, size)
    pen.text(at, fitted(showable(text), font, room), fill=INK, font=font)


def _user_comment(text: str) -> Any:
    from PIL.ExifTags import IFD
    from PIL.Image import Exif

    exif = Exif()
    exif.get_ifd(IFD.Exif)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
    return exif
