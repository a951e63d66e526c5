"""Pictures and prompts -> what the training loop needs of them, computed once.

The autoencoder gives each picture a normal distribution of latents, not one latent: mean and deviation
are kept (32 KB a picture at 512²) and every step samples from them, so that nothing is lost by
caching. Afterwards neither the autoencoder nor the text encoders are needed for training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atomdiff.base import loading, textual_inversion
from atomdiff.base.stable_diffusion import PromptEmbeds, embed_prompts, encode_prompts

if TYPE_CHECKING:
    from atomdiff.base.stable_diffusion import Base
    from atomdiff.base.textual_inversion import TriggerToken


@dataclass(frozen=True)
class LatentCache:
    """Latent distributions of n pictures, fp32 on the CPU, already in the UNet's scale."""

    mean: Tensor  # (n, flips, c, h, w); flips is 2 when mirrored pictures are kept too
    std: Tensor  # like mean
    prompts: tuple[int, ...]  # (n,) row of `PromptTable` for each picture

    def __len__(self) -> int:
        return len(self.mean)

    def sample(self, picture: int, flip: int, noise: Tensor) -> Tensor:
        """One latent (c, h, w) of a picture: mean + std * noise."""
        return self.mean[picture, flip] + self.std[picture, flip] * noise


@dataclass(frozen=True)
class PromptTable:
    """Each different prompt once, with its embedding, on the CPU."""

    prompts: tuple[str, ...]
    embeds: PromptEmbeds

    def rows(self, numbers: Sequence[int], device: Any) -> PromptEmbeds:
        """Embeddings for a batch, on `device`."""
        index = list(numbers)
        hidden, pooled = self.embeds
        return PromptEmbeds(
            hidden[index].to(device), pooled[index].to(device) if pooled is not None else None
        )


class LiveTable:
    """A `PromptTable` whose prompts with the trigger are embedded anew each time, with gradients."""

    def __init__(self, table: PromptTable, base: "Base", trigger: "TriggerToken") -> None:
        self._table, self._base, self._token = table, base, trigger
        self._live = {i for i, prompt in enumerate(table.prompts) if trigger.concerns(base, prompt)}

    def rows(self, numbers: Sequence[int], device: Any) -> PromptEmbeds:
        """Embeddings for a batch, on `device`."""
        hidden, pooled = self._table.rows(numbers, device)
        live = sorted(self._live & set(numbers))
        if not live:
            return PromptEmbeds(hidden, pooled)
        reading = self._token.reading()
        with textual_inversion.added(self._base, [reading]):
            made = embed_prompts(self._base, [reading.spoken(self._table.prompts[i]) for i in live])
        places = [n for n, i in enumerate(numbers) if i in self._live]
        chosen = [live.index(numbers[n]) for n in places]
        hidden = _put(hidden, places, made.hidden[chosen])
        if pooled is not None and made.pooled is not None:
            pooled = _put(pooled, places, made.pooled[chosen])
        return PromptEmbeds(hidden, pooled)


def encode_pictures(
    base: "Base",
    images: Sequence[Image.Image],
    prompts: Sequence[int],
    accelerator: Any,
    flips: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LatentCache:
    """Encode RGB pictures of one size, one at a time in fp32, shared out over the processes.

    fp32 since SDXL's autoencoder overflows in fp16; one at a time so that memory does not depend on
    the folder.
    """
    vae, kept = base.vae, base.vae.dtype
    _cast(vae, torch.float32)
    means: dict[int, Tensor] = {}
    stds: dict[int, Tensor] = {}
    mine = range(accelerator.process_index, len(images), accelerator.num_processes)
    for done, i in enumerate(mine):
        progress(done, len(mine))
        means[i], stds[i] = _encode(vae, images[i], flips)
    _cast(vae, kept)
    if mine:
        progress(len(mine), len(mine))
    return LatentCache(
        _collect(means, len(images), base, accelerator),
        _collect(stds, len(images), base, accelerator),
        tuple(prompts),
    )


def encode_table(base: "Base", prompts: Sequence[str]) -> PromptTable:
    """Embed each different prompt once."""
    different = tuple(dict.fromkeys(prompts))
    hidden, pooled = encode_prompts(base, list(different))
    return PromptTable(different, PromptEmbeds(hidden.cpu(), pooled.cpu() if pooled is not None else None))


def release_encoders(base: "Base", text: bool = True) -> None:
    """Drop the autoencoder and, with `text`, the text encoders from memory; the base can then train but not
    draw."""
    for part in ("vae", "text_encoder", "text_encoder_2") if text else ("vae",):
        if getattr(base.pipe, part, None) is not None:
            setattr(base.pipe, part, None)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def to_pixels(image: Image.Image) -> Tensor:
    """RGB picture -> (3, h, w) fp32 in [-1, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


@torch.no_grad()
def _encode(vae: Any, image: Image.Image, flips: bool) -> tuple[Tensor, Tensor]:
    """Mean and deviation of one picture's latents, each (flips, c, h, w) fp32 on the CPU."""
    pixels = to_pixels(image)
    both = [pixels, pixels.flip(-1)] if flips else [pixels]
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    scale = vae.config.scaling_factor
    means, stds = [], []
    for view in both:
        normal = vae.encode(view[None].to(vae.device)).latent_dist
        means.append((normal.mean - shift) * scale)
        stds.append(normal.std * scale)
    return torch.cat(means).float().cpu(), torch.cat(stds).float().cpu()


def _cast(model: Any, dtype: torch.dtype) -> None:
    """Cast a model, without diffusers' warning about a list of exceptions that is empty."""
    if model.dtype != dtype:
        with loading.quiet():
            model.to(dtype)


def _collect(parts: dict[int, Tensor], n: int, base: "Base", accelerator: Any) -> Tensor:
    """Everyone's parts in one tensor (n, ...) on the CPU: a sum in which all others have zeros is exact."""
    if accelerator.num_processes == 1:
        return torch.stack([parts[i] for i in range(n)])
    shape = (
        accelerator.gather(torch.tensor([_shape(parts)], device=accelerator.device))
        .max(dim=0)
        .values.tolist()
    )
    whole = torch.zeros((n, *shape), device=accelerator.device)
    for i, part in parts.items():
        whole[i] = part.to(accelerator.device)
    return accelerator.reduce(whole, reduction="sum").cpu()


def _shape(parts: dict[int, Tensor]) -> list[int]:
    """Shape of a part; zeros for a process that had no picture to encode."""
    return list(next(iter(parts.values())).shape) if parts else [0, 0, 0, 0]


def _put(rows: Tensor, places: list[int], new: Tensor) -> Tensor:
    return rows.index_put((torch.tensor(places, device=rows.device),), new.to(rows.dtype))
