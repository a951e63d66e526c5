"""A folder of anything becomes the pictures of a run: shapes, captions and masks, each used or told."""

import json
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from atomdiff.errors import ImageError
from atomdiff.files.images import open_picture
from atomdiff.training.pictures import Reading, load_folder

SHAPES = Reading(64, 8)


def picture(width: int = 60, height: int = 60, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def test_pictures_keep_their_shapes_unless_a_square_is_asked_for(tmp_path):
    gradient(300, 200).save(tmp_path / "wide.png")
    gradient(90, 90).save(tmp_path / "square.png")
    (square, wide), _ = load_folder(tmp_path, SHAPES)
    assert (square.image.size, square.cut_off) == ((64, 64), 0)
    assert (wide.image.size, wide.original_size, wide.cut_off) == ((72, 48), (300, 200), 0)
    assert np.asarray(wide.image)[24, 0, 0] < 10 and np.asarray(wide.image)[24, -1, 0] > 245
    (_, wide), _ = load_folder(tmp_path, Reading(64))
    assert wide.image.size == (64, 64) and wide.cut_off == pytest.approx(1 / 3)
    assert np.asarray(wide.image)[32, 0, 0] > 35


@pytest.mark.parametrize("ending", ["heic", "HEIF"])
def test_pictures_of_iphones_are_read_upright(tmp_path, ending):
    exif = Image.Exif()
    exif[0x0112] = 6  # as a phone held upright writes it
    stored = gradient(96, 64)
    path = tmp_path / f"IMG_1.{ending}"
    pillow_heif.from_pillow(stored).save(str(path), quality=95, exif=exif.tobytes())
    image = open_picture(path).image
    upright = stored.transpose(Image.Transpose.ROTATE_270)
    assert image.size == upright.size == (64, 96)
    assert np.abs(np.asarray(image, float) - np.asarray(upright, float)).mean() < 6


def test_avif_is_read_and_a_broken_heic_is_told(tmp_path):
    gradient(64, 64).save(tmp_path / "a.avif", quality=90)
    (tmp_path / "b.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 200)
    pictures, skipped = load_folder(tmp_path, SHAPES)
    assert [p.path.name for p in pictures] == ["a.avif"]
    assert [item.path.name for item in skipped] == ["b.heic"]


def test_captions_masks_and_lists_belong_to_their_pictures(tmp_path):
    for name in ("a", "b", "c"):
        picture().save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("a sks dog", encoding="utf-16")
    (tmp_path / "orphan.txt").write_text("nothing to see")
    Image.new("L", (60, 60), 255).save(tmp_path / "b.mask.png")
    Image.new("L", (60, 60), 255).save(tmp_path / "z.mask.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "c.png", "text": "by list"}))
    found, skipped = load_folder(tmp_path, Reading(64, 8, "txt"))
    assert [(p.path.name, p.caption, p.mask is not None) for p in found] == [
        ("a.png", "a sks dog", False), ("b.png", "", True), ("c.png", "by list", False),
    ]  # fmt: skip
    assert {item.path.name: item.reason for item in skipped} == {
        "orphan.txt": "a caption without its picture",
        "z.mask.png": "a mask without its picture",
    }


def test_a_text_that_is_not_asked_for_is_told_with_the_flag(tmp_path):
    picture().save(tmp_path / "a.png")
    (tmp_path / "a.caption").write_text("a sks dog")
    found, skipped = load_folder(tmp_path, SHAPES)
    assert found[0].caption == ""
    assert skipped[0].reason == "a text; --caption_extension caption takes it as the prompt of its picture"


def test_masks_follow_their_pictures(tmp_path):
    shown = Image.new("L", (300, 200), 0)
    shown.paste(255, (0, 0, 150, 200))
    gradient(300, 200).save(tmp_path / "beside.png")
    shown.resize((150, 100)).save(tmp_path / "beside.mask.png")
    clear = gradient(300, 200).convert("RGBA")
    clear.putalpha(shown)
    clear.save(tmp_path / "clear.png")
    found, skipped = load_folder(tmp_path, SHAPES)
    assert not skipped
    for each in found:
        assert each.mask.size == each.image.size == (72, 48)
        left, right = np.asarray(each.mask)[:, :30], np.asarray(each.mask)[:, 42:]
        assert left.min() > 250 and right.max() < 5
    found, _ = load_folder(tmp_path, Reading(64, 8, masks=False))
    assert [each.mask for each in found] == [None, None]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no picture", r"The mask 'a\.mask\.png' cannot be used \(not a picture\); make it anew"),
        (None, "another shape"),
    ],
)
def test_a_broken_mask_ends_the_reading(tmp_path, content, said):
    picture().save(tmp_path / "a.png")
    if content:
        (tmp_path / "a.mask.png").write_bytes(content)
    else:
        Image.new("L", (50, 60), 255).save(tmp_path / "a.mask.png")
    with pytest.raises(ImageError, match=said):
        load_folder(tmp_path, SHAPES)


def test_a_folder_uses_what_it_can_and_tells_the_rest(tmp_path):
    picture().save(tmp_path / "b.png")
    picture().save(tmp_path / "a.jpg")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / "readme.txt").write_text("about")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "more").mkdir()
    pictures, skipped = load_folder(tmp_path, SHAPES)
    assert [picture.path.name for picture in pictures] == ["a.jpg", "b.png"]
    assert {item.path.name: item.reason for item in skipped} == {
        ".DS_Store": "a hidden file",
        ".ipynb_checkpoints": "a hidden file",
        "more": "a folder; only the pictures directly inside are used",
        "readme.txt": "not a picture",
    }


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(ImageError, match=r"does not exist; give a folder"):
        load_folder(tmp_path / "nowhere", SHAPES)
    with pytest.raises(ImageError, match="is empty; put a few pictures"):
        load_folder(tmp_path, SHAPES)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ImageError, match=r"No usable picture in .*notes\.txt: not a picture"):
        load_folder(tmp_path, SHAPES)
    (tmp_path / "dog.txt").write_text("a sks dog")
    with pytest.raises(ImageError, match=r"No usable picture in .*dog\.txt: a caption without its picture"):
        load_folder(tmp_path, Reading(64, 8, "txt"))
    with pytest.raises(ImageError, match="is a file; give the folder"):
        load_folder(tmp_path / "notes.txt", SHAPES)


PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "photos"


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the real photographs are not here")
@pytest.mark.parametrize("subject", ["cat", "dog", "teapot"])
def test_real_photographs(subject):
    pictures, skipped = load_folder(PHOTOS / subject, Reading(512, 16))
    assert len(pictures) == 5
    assert not skipped
    assert all(np.asarray(picture.image).std() > 10 for picture in pictures)
    assert all(picture.cut_off < 0.03 for picture in pictures)
