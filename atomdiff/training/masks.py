"""Masks: which part of a picture is the subject, so that the loss counts there and less around it.

A mask is the picture's own transparency, or a picture `NAME.mask.png` beside it, white where the subject is;
one beside it goes before. At the latents' resolution it gives each place the weight

    w = u + (1 - u) m,    m the mean of the mask over the place's pixels, u the weight outside,

and the loss of a sample is Σ w e² / Σ w (see `objective`), so a small subject counts as much as a large one.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from atomdiff.errors import ImageError

ENDING = ".mask.png"


def beside(path: Path) -> Path:
    """The mask file of a picture: `1.jpg` -> `1.mask.png`."""
    return path.with_name(path.stem + ENDING)


def is_mask(path: Path) -> bool:
    """Whether a file is named as masks are."""
    return path.name.lower().endswith(ENDING)


def checked(mask: Image.Image, size: tuple[int, int], name: str) -> Image.Image:
    """A mask (L) in the size of its picture. Raises ImageError for one of another shape or without a
    subject."""
    if abs(mask.width * size[1] - mask.height * size[0]) > 0.01 * mask.width * size[1]:
        raise ImageError(
            f"The mask '{name}' is {mask.width} x {mask.height}, of another shape than its picture, which is "
            f"{size[0]} x {size[1]}; make it of the same size, or remove it."
        )
    if int(np.asarray(mask).max()) < 128:
        raise ImageError(
            f"The mask '{name}' shows no subject; make the subject white and all else black, or remove it."
        )
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


def of_transparency(alpha: Image.Image | None) -> Image.Image | None:
    """A picture's alpha channel (L) as its mask; None where it hides nothing, or all."""
    if alpha is None:
        return None
    values = np.asarray(alpha)
    return alpha if values.min() < 255 and values.max() >= 128 else None


def weights(mask: Image.Image, factor: int, outside: float) -> Tensor:
    """Mask (L) of w x h pixels -> (1, h / factor, w / factor) fp32, from `outside` to 1."""
    inside = torch.from_numpy(np.array(mask, dtype=np.float32))[None] / 255
    return outside + (1 - outside) * functional.avg_pool2d(inside, factor)
