"""What a picture is about to become, seen while it is drawn: latents to small pictures, cheaply.

A small autoencoder (the pocket model's) simply decodes. A large one would cost as much as the drawing, so its
colours are read off the latents by a linear map, rgb = A z + a, one pixel a latent. A is fitted to the base's
own autoencoder once: least squares over smooth fields of colour and what they are encoded to.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from atomdiff.base import loading
from atomdiff.base.stable_diffusion import Base

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

SMALL = 5_000_000  # weights of an autoencoder that decodes within a step
SHARE = 6  # previews take at most about a part in SHARE + 1 of the time
FIELDS, CELLS = 16, 12  # pictures that the linear map is fitted to, latents a side of each


class Previewer:
    """Makes previews for one base, as often as `SHARE` allows."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._linear: Tensor | None = None
        self._rest_until = 0.0

    def pictures(self, latents: Tensor, limit: int = 4) -> list[Image]:
        """Previews of the first `limit` of the latents (b, c, h, w); [] while it is too soon for new ones."""
        from PIL import Image as Pictures

        start = time.monotonic()
        if start < self._rest_until:
            return []
        pixels = self._decoded(latents[:limit])  # (b, 3, h, w), -1 to 1
        levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        self._rest_until = time.monotonic() + SHARE * (time.monotonic() - start)
        return [Pictures.fromarray(picture) for picture in levels]

    def _decoded(self, latents: Tensor) -> Tensor:
        import torch

        base = self._base
        with torch.no_grad(), loading.quiet():
            if sum(weight.numel() for weight in base.vae.parameters()) <= SMALL:
                scaled = latents.to(base.vae.dtype) / base.vae.config.scaling_factor
                return base.vae.decode(scaled).sample.float()
            if self._linear is None:
                self._linear = linear_map(base)
            return torch.einsum("rc,bchw->brhw", self._linear, _with_one(latents.float().cpu()))


def linear_map(base: Base) -> Tensor:
    """The map (3, c + 1) from latents, and a one for the constant, to colours -1 to 1."""
    import torch
    from torch.nn import functional as F

    generator = torch.Generator().manual_seed(0)
    knots = torch.rand(FIELDS, 3, 3, 3, generator=generator) * 2 - 1
    side = CELLS * base.vae_factor
    fields = F.interpolate(knots, size=(side, side), mode="bicubic", align_corners=False).clamp(-1, 1)
    with torch.no_grad():
        encoded = base.vae.encode(fields.to(base.vae.device, base.vae.dtype)).latent_dist.mode()
    latents = _with_one(encoded.float().cpu() * base.vae.config.scaling_factor)
    colours = F.interpolate(fields, size=latents.shape[-2:], mode="area")
    z = latents.permute(1, 0, 2, 3).flatten(1)  # (c + 1, n)
    rgb = colours.permute(1, 0, 2, 3).flatten(1)  # (3, n)
    return torch.linalg.lstsq(z.T, rgb.T).solution.T


def _with_one(latents: Tensor) -> Tensor:
    """A channel of ones behind the others."""
    import torch

    return torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1)
