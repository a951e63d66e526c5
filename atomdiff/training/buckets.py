"""Aspect-ratio buckets: the size at which a picture of any shape is trained on, and what that cuts off.

As in NovelAI's bucketing, which kohya's trainers follow: at most `resolution`² pixels, sides that are
multiples of `step`, of all such sizes the one whose shape is nearest the picture's. The step is finer here
than the usual 64 pixels, 16 for Stable Diffusion, so that a photograph of any usual shape loses under 2 %.
"""

import math
from functools import lru_cache

from PIL import Image, ImageOps

FEWEST = 0.75  # of the resolution's pixels that a bucket has
UNUSED = 0.2  # what a pixel that is not used counts, against one that is cut off
LONGEST = 2  # times the resolution: the longest side of a bucket, so about 5:1 is the most extreme shape

Size = tuple[int, int]
"""(width, height) in pixels."""


@lru_cache(maxsize=64)
def sizes(resolution: int, step: int) -> tuple[Size, ...]:
    """All buckets: resolution², and sides of whole steps, at most `LONGEST` times the resolution, with
    `FEWEST` to 1 of its pixels."""
    area, longest = resolution * resolution, LONGEST * resolution
    sides = range(step, longest + 1, step)
    found = {(w, h) for w in sides for h in sides if FEWEST * area <= w * h <= area}
    return tuple(sorted(found | {(resolution, resolution)}))


def bucket_of(size: Size, resolution: int, step: int) -> Size:
    """The bucket of a picture of `size`: little of it is cut off, and nearly all of the pixels are used.
    A square picture's is resolution²."""
    area = resolution * resolution

    def lost(bucket: Size) -> tuple[float, int]:
        unused = 1 - bucket[0] * bucket[1] / area
        return round(cut_off(size, bucket) + UNUSED * unused, 9), abs(bucket[0] - bucket[1])

    return min(sizes(resolution, step), key=lost)


def cut_off(size: Size, bucket: Size) -> float:
    """The share of a picture that does not fit into the shape of its bucket, from 0 to 1."""
    change = math.log(size[0] * bucket[1] / (size[1] * bucket[0]))
    return 1 - math.exp(-abs(change))


def fitted(image: Image.Image, bucket: Size) -> Image.Image:
    """Resize (LANCZOS) so that the bucket is filled, and cut off what stands over, on both sides alike."""
    return ImageOps.fit(image, bucket, Image.Resampling.LANCZOS)
