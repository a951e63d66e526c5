"""A file of any kind -> a checked, upright RGB picture.

Whatever people put into a folder of photographs is either made into an RGB picture or refused with a reason:
nothing here lets Pillow's exceptions out, and no pixel is decoded before the header has been checked.
"""

import contextlib
import io
import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from atomdiff.errors import ImageError

MAX_PIXELS = 128_000_000  # above any camera in common use; three bytes each is what decoding costs
MIN_SIDE = 16  # a picture smaller than this shows nothing
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "ICO", "HEIF")
UNREADABLE = {  # containers that phones and cameras write and that Pillow alone cannot read
    ".dng": "raw camera files cannot be read; convert it to JPEG",
    ".cr2": "raw camera files cannot be read; convert it to JPEG",
    ".nef": "raw camera files cannot be read; convert it to JPEG",
    ".svg": "vector drawings cannot be read; convert it to PNG",
    ".pdf": "PDF cannot be read; convert it to PNG",
    ".mp4": "films cannot be read; save a few frames as pictures",
    ".mov": "films cannot be read; save a few frames as pictures",
}


class Opened(NamedTuple):
    """What a file holds, upright, in its own size."""

    image: Image.Image  # RGB, transparency on white
    alpha: Image.Image | None  # L, where the file has transparency


def read_picture(path: Path, resolution: int) -> tuple[Image.Image, tuple[int, int]]:
    """One file -> (RGB picture of resolution², its size before the crop); ImageError says only why."""
    image = open_picture(path).image
    return centre_square(image, resolution), image.size


def open_picture(path: Path) -> Opened:
    """One file -> upright RGB picture and its transparency; ImageError says only why not."""
    if path.name.startswith("."):
        raise ImageError("a hidden file")
    if path.is_dir():
        raise ImageError("a folder; only the pictures directly inside are used")
    if not path.is_file():
        raise ImageError("not a regular file")
    if path.suffix.lower() in UNREADABLE:
        raise ImageError(UNREADABLE[path.suffix.lower()])
    try:
        return _decode(path)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("an empty file" if path.stat().st_size == 0 else "not a picture") from None
    except Image.DecompressionBombError as error:  # Pillow's own limit, which says how many pixels
        count = re.search(r"\d{6,}", str(error))
        found = f"{int(count[0]):,} pixels, " if count else ""
        raise ImageError(f"{found}more than {MAX_PIXELS:,} pixels; make it smaller first") from None
    except PermissionError:
        raise ImageError("may not be read (permission denied)") from None
    except Exception as error:  # decoders raise nearly anything on broken bytes
        cut = "truncated" in str(error).lower() or isinstance(error, EOFError)
        detail = " ".join(str(error).split())[:120]
        raise ImageError("the file is cut short" if cut else f"cannot be decoded ({detail})") from None


def open_start(path: Path, name: str = "") -> Image.Image:
    """A picture to draw from, which is called `name` in the sentence of an ImageError."""
    try:
        return open_picture(path).image
    except ImageError as error:
        raise ImageError(f"{name or str(path)!r} cannot be drawn from: {error}.") from None


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture as a file of a kind; `options` are Pillow's."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def centre_square(image: Image.Image, resolution: int) -> Image.Image:
    """Crop the largest centred square and resize it (LANCZOS) to resolution x resolution."""
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode -> upright RGB: 16 bits and float to 8, transparency on white, colours to sRGB."""
    with contextlib.suppress(Exception):  # an unreadable EXIF block is no reason to refuse the picture
        image = ImageOps.exif_transpose(image)
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return _eight_bits(image).convert("RGB")
    profile = image.info.get("icc_profile")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return _to_srgb(Image.alpha_composite(white, rgba).convert("RGB"), profile)
    return _to_srgb(image, profile).convert("RGB")


def check_folder(folder: str | Path) -> list[Path]:
    """What lies directly in `folder`, sorted; ImageError when there is no such folder or nothing in it."""
    folder = Path(folder).expanduser()
    if not folder.exists():
        raise ImageError(f"The picture folder '{folder}' does not exist; give a folder with a few pictures.")
    if not folder.is_dir():
        raise ImageError(f"'{folder}' is a file; give the folder that holds the pictures.")
    try:
        entries = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise ImageError(f"The picture folder '{folder}' cannot be listed: {error.strerror}.") from None
    if not entries:
        raise ImageError(f"The picture folder '{folder}' is empty; put a few pictures of the subject in it.")
    return entries


def _decode(path: Path) -> Opened:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of size and of odd EXIF; both are handled here
        _register()
        with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            width, height = image.size  # the header only: no pixel is decoded yet
            if width * height > MAX_PIXELS:
                raise ImageError(
                    f"{width} x {height}, more than {MAX_PIXELS:,} pixels; make it smaller first"
                )
            if min(width, height) < MIN_SIDE:
                raise ImageError(f"only {width} x {height} pixels")
            image.seek(0)  # an animation counts by its first frame
            image.load()
            return Opened(to_rgb(image), _alpha(image))


@lru_cache(maxsize=1)
def _register() -> None:
    """Make the formats of this build of Pillow known, and HEIC; `formats` of `Image.open` may name no
    other."""
    import pillow_heif  # no other picture needs it

    Image.init()
    pillow_heif.register_heif_opener()


def _alpha(image: Image.Image) -> Image.Image | None:
    """The transparency of a picture, upright, L."""
    if not image.has_transparency_data:
        return None
    with contextlib.suppress(Exception):
        image = ImageOps.exif_transpose(image)
    return image.convert("RGBA").getchannel("A")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits -> 8 bits, by the range the values use (1, 255, 65,535, or their maximum)."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0).clip(min=0)
    top = float(values.max(initial=0.0))
    sixteen = image.mode.startswith("I;16")
    full = next((r for r in (1.0, 255.0, 65535.0) if top <= r and not (sixteen and r < 65535.0)), top)
    if image.mode == "I" and full == 1.0:
        full = 255.0
    return Image.fromarray((values * (255.0 / full) + 0.5).astype(np.uint8), mode="L")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Apply an embedded colour profile, such as a phone's Display P3 or a printer's CMYK, unless sRGB."""
    if not profile or image.mode not in ("RGB", "CMYK", "L"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return image
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):  # a broken profile: the plain conversion must do
        return image
    return converted or image
