"""Pictures and prompts -> what the training loop needs of them, computed once.

The autoencoder gives each picture a normal distribution of latents, not one latent: mean and deviation
are kept (32 KB a picture at 512²) and every step samples from them, so that nothing is lost by
caching. Afterwards neither the autoencoder nor the text encoders are needed for training.
"""

import math
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
    """Latent distributions of n pictures, fp32 on the CPU, already in the UNet's scale; each has its own h,
    w."""

    mean: Tensor | tuple[Tensor, ...]  # n x (flips, c, h, w); flips is 2 when mirrored pictures are kept too
    std: Tensor | tuple[Tensor, ...]  # like mean
    prompts: tuple[
        int | tuple[int, ...], ...
    ]  # (n,) row of `PromptTable` for each picture, or rows to draw from
    weights: tuple[Tensor | None, ...] = ()  # n x (1, h, w) of pictures with a mask; () where none has one
    dropout: float = 0.0  # the chance of a picture to be seen without its prompt
    empty: int = 0  # the row of the empty prompt, where there is such a chance

    def __len__(self) -> int:
        return len(self.mean)

    def sample(self, picture: int, flip: int, noise: Tensor) -> Tensor:
        """One latent (c, h, w) of a picture: mean + std * noise."""
        return self.mean[picture][flip] + self.std[picture][flip] * noise

    def weight(self, picture: int, flip: int) -> Tensor | None:
        """What each place of a picture counts, (1, h, w); None where all count alike."""
        found = self.weights[picture] if self.weights else None
        return found.flip(-1) if found is not None and flip else found

    def prompt(self, picture: int, generator: torch.Generator) -> int:
        """The row of a prompt for a picture; the generator is used only where there is a choice."""
        rows = self.prompts[picture]
        if self.dropout and float(torch.rand((), generator=generator)) < self.dropout:
            return self.empty
        if isinstance(rows, int) or len(rows) == 1:
            return rows if isinstance(rows, int) else rows[0]
        return rows[int(torch.randint(len(rows), (), generator=generator))]


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
        learned = self._token.embedding()
        with textual_inversion.added(self._base, [learned]):
            made = embed_prompts(self._base, [learned.convert_prompt(self._table.prompts[i]) for i in live])
        places = [n for n, i in enumerate(numbers) if i in self._live]
        chosen = [live.index(numbers[n]) for n in places]
        hidden = _put(hidden, places, made.hidden[chosen])
        if pooled is not None and made.pooled is not None:
            pooled = _put(pooled, places, made.pooled[chosen])
        return PromptEmbeds(hidden, pooled)


def encode_pictures(
    base: "Base",
    images: Sequence[Image.Image],
    prompts: Sequence[int | tuple[int, ...]],
    accelerator: Any,
    flips: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LatentCache:
    """Encode RGB pictures, one at a time in fp32, shared out over the processes.

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
    factor, channels = base.vae_factor, base.vae.config.latent_channels
    shapes = [(1 + flips, channels, image.height // factor, image.width // factor) for image in images]
    return LatentCache(
        _collect(means, shapes, accelerator), _collect(stds, shapes, accelerator), tuple(prompts)
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


def _collect(
    parts: dict[int, Tensor], shapes: Sequence[tuple[int, ...]], accelerator: Any
) -> tuple[Tensor, ...]:
    """Everyone's parts, n tensors on the CPU: a sum in which all others have zeros is exact."""
    if accelerator.num_processes == 1:
        return tuple(parts[i] for i in range(len(shapes)))
    own = [parts[i].flatten() if i in parts else torch.zeros(math.prod(s)) for i, s in enumerate(shapes)]
    whole = accelerator.reduce(torch.cat(own).to(accelerator.device), reduction="sum").cpu()
    split = whole.split([math.prod(shape) for shape in shapes])
    return tuple(part.view(shape) for part, shape in zip(split, shapes, strict=True))


def _put(rows: Tensor, places: list[int], new: Tensor) -> Tensor:
    return rows.index_put((torch.tensor(places, device=rows.device),), new.to(rows.dtype))
