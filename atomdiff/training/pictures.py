"""A folder of anything -> the pictures of a run, each with its caption and its mask."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from atomdiff.errors import ImageError
from atomdiff.files.images import check_folder, open_picture
from atomdiff.training import captions, masks
from atomdiff.training.buckets import bucket_of, cut_off, fitted

TEXTS = (".txt", ".caption")  # as captions are usually named
STEP = 2  # latents: sides of buckets are multiples of it


@dataclass(frozen=True)
class Picture:
    """One usable picture: RGB, upright, in the size that is trained on."""

    path: Path
    image: Image.Image
    original_size: tuple[int, int]  # (width, height) as seen upright, before cropping
    caption: str = ""
    mask: Image.Image | None = None  # L, of the size of `image`

    @property
    def cut_off(self) -> float:
        """The share of the picture that is not trained on, from 0 to 1."""
        return cut_off(self.original_size, self.image.size)


@dataclass(frozen=True)
class Skipped:
    """A thing in the folder that is not used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Reading:
    """How a folder is read: pictures of about `resolution`², with sides that are multiples of `step`, or
    where that is None of exactly resolution², the middle of each."""

    resolution: int
    step: int | None = None
    caption_extension: str = ""
    caption_column: str = ""
    masks: bool = True


def load_folder(
    folder: str | Path,
    how: Reading,
    limit: int | None = None,
    keep: Callable[[Path], bool] = lambda path: True,
) -> tuple[list[Picture], list[Skipped]]:
    """Read every picture of `folder`, in the order of the names.

    `limit` stops after so many pictures; `keep` leaves out files by name, silently. Raises ImageError when
    the folder is missing, empty, or holds no usable picture, and then names the first reasons; and for
    captions and masks that cannot be used.
    """
    folder = Path(folder).expanduser()
    entries = [entry for entry in check_folder(folder) if keep(entry)]
    listed = captions.read_list(folder, how.caption_column)
    words = captions.of_folder(entries, listed, how.caption_extension)
    stems = {entry.stem for entry in entries if not captions.is_caption(entry, how.caption_extension)}
    pictures: list[Picture] = []
    skipped: list[Skipped] = []
    for entry in entries:
        if limit is not None and len(pictures) >= limit:
            break
        if _is_beside(entry, stems, how):
            continue
        if _is_unused_text(entry, entries):
            flag = f"--caption_extension {entry.suffix[1:]}"
            skipped.append(Skipped(entry, f"a text; {flag} takes it as the prompt of its picture"))
            continue
        try:
            pictures.append(_read(entry, words.get(entry, ""), how))
        except _Unusable as error:
            skipped.append(Skipped(entry, str(error)))
    if not pictures:
        raise ImageError(_nothing_usable(folder, skipped))
    return pictures, skipped


class _Unusable(Exception):
    pass


def _read(path: Path, caption: str, how: Reading) -> Picture:
    """One picture with its mask. Raises _Unusable for what is no picture, ImageError for a mask that is
    none."""
    if captions.is_caption(path, how.caption_extension):
        raise _Unusable("a caption without its picture")
    if masks.is_mask(path):
        raise _Unusable("a mask without its picture" if how.masks else "a mask, and masks are not used")
    try:
        image, alpha = open_picture(path)
    except ImageError as error:
        raise _Unusable(str(error)) from None
    bucket = (how.resolution, how.resolution)
    if how.step:
        bucket = bucket_of(image.size, how.resolution, how.step)
    mask = _mask(path, alpha, image.size) if how.masks else None
    return Picture(path, fitted(image, bucket), image.size, caption, mask and fitted(mask, bucket))


def _mask(path: Path, alpha: Image.Image | None, size: tuple[int, int]) -> Image.Image | None:
    beside = masks.beside(path)
    if not beside.is_file():
        return masks.of_transparency(alpha)
    try:
        mask = open_picture(beside).image.convert("L")
    except ImageError as error:
        raise ImageError(
            f"The mask '{beside.name}' cannot be used ({error}); make it anew or remove it."
        ) from None
    return masks.checked(mask, size, beside.name)


def _is_beside(entry: Path, stems: set[str], how: Reading) -> bool:
    """Whether a file belongs to a picture, as its caption, its mask, or the list of all captions."""
    if captions.is_caption(entry, how.caption_extension):
        return entry.stem in stems
    if masks.is_mask(entry) and how.masks:
        return entry.name[: -len(masks.ENDING)] in stems
    return entry.name == captions.LIST


def _is_unused_text(entry: Path, entries: Sequence[Path]) -> bool:
    """Whether a file is named like a caption though none were asked for."""
    return entry.suffix in TEXTS and any(e.stem == entry.stem and e.suffix not in TEXTS for e in entries)


def _nothing_usable(folder: Path, skipped: Sequence[Skipped]) -> str:
    reasons = "; ".join(f"{item.path.name}: {item.reason}" for item in skipped[:4])
    more = f"; and {len(skipped) - 4} more" if len(skipped) > 4 else ""
    found = (reasons or "nothing to read") + more
    return f"No usable picture in '{folder}' ({found}); put JPEG, PNG, WebP or HEIC pictures in it."
