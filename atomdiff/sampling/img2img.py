"""Picture to picture, and into a picture: drawing that starts from a picture instead of noise alone.

The picture is encoded, given the noise of a step `strength` of the way back to pure noise, and drawn from
there (SDEdit, arXiv 2108.01073): 0 changes nothing, 1 keeps nothing. With a mask only what is white in it
is drawn anew: a square around it is cut out, drawn at the base's own resolution and put back, so that the
rest of a photo of any size keeps its pixels. diffusers' own pipelines do it with the base's own components,
so concepts act as ever."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from atomdiff.errors import SettingsError

if TYPE_CHECKING:
    from PIL.Image import Image

    from atomdiff.base.stable_diffusion import Base
    from atomdiff.sampling.settings import DrawingSettings

MARGIN = 0.35  # of the masked part's sides, that is seen around it
FEATHER = 0.04  # of the square's side, over which new goes over into old
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Start:
    """A picture to start from, as the pipeline takes it: `image` (RGB) and `mask` (L, or None) of `size`,
    (width, height). `photo` and `box` say where a masked part is put back."""

    image: Image
    mask: Image | None
    strength: float
    photo: Image
    box: Box

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size

    def finished(self, drawn: Image) -> Image:
        """What was drawn, put back into the photo where there is a mask."""
        if self.mask is None:
            return drawn
        from PIL import Image as Pictures
        from PIL import ImageFilter

        left, top, right, bottom = self.box
        side = (right - left, bottom - top)
        soft = self.mask.resize(side, Pictures.Resampling.BILINEAR)
        soft = soft.filter(ImageFilter.GaussianBlur(FEATHER * max(side)))
        whole = self.photo.copy()
        whole.paste(drawn.resize(side, Pictures.Resampling.LANCZOS), (left, top), soft)
        whole.info = dict(drawn.info)
        return whole


def starts(
    base: Base,
    settings: DrawingSettings,
    image: Image | Sequence[Image] | None,
    mask: Image | None,
    count: int,
) -> list[Start]:
    """What each of `count` pictures starts from; none without an image. Raises SettingsError."""
    if image is None:
        if mask is not None:
            raise SettingsError("A mask says what of a picture to draw anew, but no picture was given.")
        return []
    assert settings.strength is not None
    if not isinstance(image, Sequence):
        return [start_from(base, image, mask, settings.strength, settings.size)] * count
    if len(image) != count:
        raise SettingsError(f"{len(image)} pictures to start from do not make {count}: give as many.")
    made = [start_from(base, one, mask, settings.strength, settings.size) for one in image]
    if len({one.size for one in made}) > 1:
        raise SettingsError("Pictures to start from have one shape, or a size is given.")
    return made


def start_from(
    base: Base, image: Image, mask: Image | None, strength: float, size: tuple[int, int] | None
) -> Start:
    """Prepares a picture, and what of it is to be drawn anew; `size` is of what is drawn, by default about
    the base's own area in the picture's shape. Raises SettingsError for what cannot work."""
    if not 0 < strength <= 1:
        raise SettingsError(
            f"How much of the picture may change is a number above 0 and up to 1, not {strength:g}: 0.6, say."
        )
    photo = image.convert("RGB")
    if mask is None:
        width, height = size or fitting(photo.size, base.resolution)
        return Start(_covering(photo, (width, height)), None, strength, photo, (0, 0, *photo.size))
    from PIL import Image as Pictures

    chosen = mask.convert("L").resize(photo.size, Pictures.Resampling.BILINEAR)
    chosen = chosen.point(lambda level: 255 if level >= 128 else 0)
    if chosen.getbbox() is None:
        raise SettingsError(
            "The mask is all black, so nothing would be drawn: paint white what is to change."
        )
    box = _around(chosen.getbbox(), photo.size)
    sides = size or fitting((box[2] - box[0], box[3] - box[1]), base.resolution)
    return Start(
        photo.crop(box).resize(sides, Pictures.Resampling.LANCZOS),
        chosen.crop(box).resize(sides, Pictures.Resampling.NEAREST),
        strength,
        photo,
        box,
    )


def with_pipeline(base: Base, inpaint: bool) -> Base:
    """The base with diffusers' pipeline for picture to picture, or for inpainting, around the same
    components."""
    import diffusers

    from atomdiff.base import loading

    name = type(base.pipe).__name__.removesuffix("Pipeline")
    kind = getattr(diffusers, f"{name}{'Inpaint' if inpaint else 'Img2Img'}Pipeline")
    with loading.quiet():
        pipe = kind.from_pipe(base.pipe)
    pipe.set_progress_bar_config(disable=True)
    return replace(base, pipe=pipe)


@contextlib.contextmanager
def blending(base: Base) -> Iterator[None]:
    """diffusers' inpainting tells by the UNet's input channels whether the model was made for it (9) or
    what is kept is blended in (4), and refuses any other count, as of a base of 16 latent channels: here
    they are called 4. How many latent channels there are it asks the autoencoder."""
    own = base.unet.config.in_channels
    base.unet.register_to_config(in_channels=4)
    try:
        yield
    finally:
        base.unet.register_to_config(in_channels=own)


def arguments(starts: Sequence[Start], steps: int) -> dict[str, Any]:
    """What the pipeline is told of the pictures to start from; at least one of its steps is done."""
    first = starts[0]
    told: dict[str, Any] = {
        "image": [start.image for start in starts],
        "strength": first.strength,
        "num_inference_steps": max(steps, math.ceil(1 / first.strength)),
    }
    if first.mask is not None:
        width, height = first.size
        told |= {"mask_image": [start.mask for start in starts], "width": width, "height": height}
    return told


def steps_done(steps: int, strength: float) -> int:
    """How many steps are done of `steps`."""
    return max(1, min(steps, int(steps * strength)))


def fitting(sides: tuple[int, int], resolution: int) -> tuple[int, int]:
    """(width, height) in the shape of `sides`, of about `resolution`² pixels, multiples of 8."""
    ratio = min(4.0, max(0.25, sides[0] / sides[1]))
    width = resolution * math.sqrt(ratio)
    return max(8, 8 * round(width / 8)), max(8, 8 * round(width / ratio / 8))


def _covering(image: Image, size: tuple[int, int]) -> Image:
    """The middle of the picture that fills `size`."""
    from PIL import Image as Pictures
    from PIL import ImageOps

    return ImageOps.fit(image, size, Pictures.Resampling.LANCZOS)


def _around(box: Box | None, size: tuple[int, int]) -> Box:
    """The part of a picture of `size` around a box: a square with a margin, as far as there is room."""
    assert box is not None
    left, top, right, bottom = box
    side = (1 + 2 * MARGIN) * max(right - left, bottom - top)
    parts = []
    for low, high, room in ((left, right, size[0]), (top, bottom, size[1])):
        length = min(room, max(8, math.ceil(side)))
        begin = min(max(0, round((low + high - length) / 2)), room - length)
        parts.append((begin, begin + length))
    return parts[0][0], parts[1][0], parts[0][1], parts[1][1]
