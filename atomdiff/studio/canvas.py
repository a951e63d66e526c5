"""The canvas on which one paints where each concept is: a colour for each, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atomdiff.sampling.region import Region, mask_of, packed
from atomdiff.studio import html

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = ("#0d9488", "#ea580c", "#7c3aed", "#ca8a04", "#2563eb")  # of the first concepts
LONG = 512  # pixels of the canvas's longer side
PAPER = "#d6d3d1"


def blank(size: tuple[int, int]) -> dict[str, Any]:
    """An empty canvas in the shape of pictures of this size."""
    return painted((), size)


def painted(regions: Sequence[Region], size: tuple[int, int]) -> dict[str, Any]:
    """The canvas, as an image editor holds it, with these regions; those of many concepts have the colour of
    the first."""
    from PIL import Image as Pictures

    scale = LONG / max(size)
    paper = Pictures.new("RGB", (max(1, round(scale * size[0])), max(1, round(scale * size[1]))), PAPER)
    layer = Pictures.new("RGBA", paper.size)
    for region in regions:
        first = region.concepts[0] if region.concepts else 0
        if first < len(COLOURS):
            layer.paste(Pictures.new("RGBA", paper.size, COLOURS[first]), mask=_mask(region, paper.size))
    composite = paper.copy()
    composite.paste(layer, mask=layer)
    return {"background": paper, "layers": [layer] if regions else [], "composite": composite}


def _mask(region: Region, size: tuple[int, int]) -> Image:
    """Where a region is, white on black."""
    from PIL import Image as Pictures
    from PIL import ImageDraw

    if isinstance(region.where, str):
        return mask_of(region.where).resize(size, Pictures.Resampling.NEAREST)
    mask, sides = Pictures.new("L", size), (size[0], size[1], size[0], size[1])
    box = [round(share * side) for share, side in zip(region.where, sides, strict=True)]
    ImageDraw.Draw(mask).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return mask


def regions_of(value: Any, concepts: int) -> tuple[Region, ...]:
    """What an image editor holds: the i-th colour is where the i-th of so many concepts is. A brush's soft
    edge counts where it is more colour than not, as the colour that it is most like."""
    if not isinstance(value, Mapping) or not value.get("layers"):
        return ()
    import numpy as np
    from PIL import Image as Pictures
    from PIL import ImageColor

    palette = np.array([ImageColor.getrgb(colour) for colour in COLOURS], np.int32)
    found: dict[int, Any] = {}
    for layer in value["layers"]:
        pixels = np.asarray(layer.convert("RGBA"), np.int32)
        nearest = ((pixels[..., None, :3] - palette) ** 2).sum(-1).argmin(-1)
        for i in range(min(concepts, len(COLOURS))):
            here = (nearest == i) & (pixels[..., 3] > 127)
            if here.any():
                found[i] = found.get(i, False) | here
    masks = {i: Pictures.fromarray(np.uint8(255) * here.astype(np.uint8)) for i, here in found.items()}
    return tuple(Region(packed(mask), (i,)) for i, mask in sorted(masks.items()))


def reordered(regions: Sequence[Region], before: Sequence[str], now: Sequence[str]) -> tuple[Region, ...]:
    """The regions of concepts, ids `before`, as they are among those of `now`, without those gone."""
    there = [(region, before[region.concepts[0]]) for region in regions]
    return tuple(Region(region.where, (now.index(one),)) for region, one in there if one in now)


def legend(names: Sequence[str]) -> str:
    """Which colour is which concept's."""
    return html.swatches(list(zip(COLOURS, names, strict=False)))
