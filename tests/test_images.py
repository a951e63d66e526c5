"""What people really keep in folders: every kind of file is read the right way up, or refused and told."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atomdiff.errors import ImageError
from atomdiff.files.images import read_picture


def corners(image: Image.Image) -> tuple[tuple[int, int, int], ...]:
    """Colours near the four corners: top left, top right, bottom left, bottom right."""
    far = image.width - 3
    return tuple(tuple(int(v) for v in image.getpixel(at)) for at in ((2, 2), (far, 2), (2, far), (far, far)))


def quarters(size: int = 64) -> Image.Image:
    """Red, green / blue, white: its orientation can be read from the corners."""
    pixels = np.zeros((size, size, 3), np.uint8)
    half = size // 2
    pixels[:half, :half], pixels[:half, half:] = (255, 0, 0), (0, 255, 0)
    pixels[half:, :half], pixels[half:, half:] = (0, 0, 255), (255, 255, 255)
    return Image.fromarray(pixels)


def near(colour: tuple[int, int, int], expected: tuple[int, int, int], tolerance: int = 12) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(colour, expected, strict=True))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def reason(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        read_picture(path, 32)
    return str(caught.value)


def test_crops_the_centre_and_resizes(tmp_path):
    wide = Image.new("RGB", (300, 100), "black")
    wide.paste(quarters(100), (100, 0))
    wide.save(tmp_path / "wide.png")
    image, size = read_picture(tmp_path / "wide.png", 32)
    assert (image.size, image.mode, size) == ((32, 32), "RGB", (300, 100))
    assert [near(a, b) for a, b in zip(corners(image), corners(quarters(32)), strict=True)] == [True] * 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path, orientation):
    t = Image.Transpose
    turns = (
        t.FLIP_LEFT_RIGHT,
        t.ROTATE_180,
        t.FLIP_TOP_BOTTOM,
        t.TRANSPOSE,
        t.ROTATE_90,
        t.TRANSVERSE,
        t.ROTATE_270,
    )
    stored = quarters() if orientation == 1 else quarters().transpose(turns[orientation - 2])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    image, _ = read_picture(tmp_path / "turned.jpg", 32)
    assert all(near(a, b, 25) for a, b in zip(corners(image), corners(quarters(32)), strict=True))


def test_sixteen_bit_grey_keeps_its_levels(tmp_path):
    values = np.full((32, 32), 32768, np.uint16)
    Image.fromarray(values).save(tmp_path / "grey16.png")
    Image.fromarray(values).save(tmp_path / "grey16.tiff")
    for name in ("grey16.png", "grey16.tiff"):
        image, _ = read_picture(tmp_path / name, 32)
        assert near(image.getpixel((5, 5)), (128, 128, 128), 1)


def test_a_dark_sixteen_bit_picture_stays_dark(tmp_path):
    Image.fromarray(np.full((32, 32), 200, np.uint16)).save(tmp_path / "dark.png")
    assert read_picture(tmp_path / "dark.png", 32)[0].getpixel((5, 5)) == (1, 1, 1)


def test_float_tiff(tmp_path):
    Image.fromarray(np.full((32, 32), 0.5, np.float32)).save(tmp_path / "float.tiff")
    assert near(read_picture(tmp_path / "float.tiff", 32)[0].getpixel((5, 5)), (128, 128, 128), 1)


def test_cmyk_palette_bilevel_and_grey(tmp_path):
    quarters().convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    quarters().quantize(8).save(tmp_path / "palette.png")
    quarters().convert("L").save(tmp_path / "grey.png")
    quarters().convert("1").save(tmp_path / "bilevel.png")
    for name in ("cmyk.jpg", "palette.png"):
        image, _ = read_picture(tmp_path / name, 32)
        assert all(near(a, b, 30) for a, b in zip(corners(image), corners(quarters(32)), strict=True)), name
    for name in ("grey.png", "bilevel.png"):
        assert read_picture(tmp_path / name, 32)[0].mode == "RGB"


def test_transparency_is_laid_on_white(tmp_path):
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    clear.paste((255, 0, 0, 255), (10, 10, 30, 30))
    clear.save(tmp_path / "rgba.png")
    clear.convert("LA").save(tmp_path / "la.png")
    palette = clear.convert("RGB").quantize(4)
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    clear.save(tmp_path / "clear.webp", lossless=True)
    for name in ("rgba.png", "la.png", "palette.png", "clear.webp"):
        image, _ = read_picture(tmp_path / name, 40)
        assert near(image.getpixel((1, 1)), (255, 255, 255)), name
    assert near(read_picture(tmp_path / "rgba.png", 40)[0].getpixel((20, 20)), (255, 0, 0))


def test_an_animation_counts_by_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    for name in ("moving.gif", "moving.webp"):
        assert near(read_picture(tmp_path / name, 32)[0].getpixel((5, 5)), (255, 0, 0)), name


def test_a_broken_colour_profile_is_no_reason_to_refuse(tmp_path):
    quarters().save(tmp_path / "odd.jpg", icc_profile=b"not a profile", quality=95)
    assert near(read_picture(tmp_path / "odd.jpg", 32)[0].getpixel((3, 3)), (255, 0, 0), 25)


def test_a_huge_png_is_refused_from_its_header(tmp_path):
    (tmp_path / "huge.png").write_bytes(png_header(30_000, 30_000))
    assert reason(tmp_path / "huge.png") == (
        "900,000,000 pixels, more than 128,000,000 pixels; make it smaller first"
    )
    (tmp_path / "large.png").write_bytes(png_header(12_000, 12_000))
    assert reason(tmp_path / "large.png").startswith("12000 x 12000, more than 128,000,000 pixels")


def test_broken_files_are_named_for_what_they_are(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    noise.save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "phone.HEIC").write_bytes(b"\0" * 30)
    (tmp_path / "raw.DNG").write_bytes(b"\0" * 30)
    Image.new("RGB", (3, 3)).save(tmp_path / "dot.png")
    assert reason(tmp_path / "cut.jpg") == "the file is cut short"
    assert reason(tmp_path / "empty.png") == "an empty file"
    assert reason(tmp_path / "notes.txt") == "not a picture"
    assert reason(tmp_path / "phone.HEIC") == "not a picture"
    assert reason(tmp_path / "raw.DNG") == "raw camera files cannot be read; convert it to JPEG"
    assert reason(tmp_path / "dot.png") == "only 3 x 3 pixels"
