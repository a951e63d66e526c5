"""The base model that a concept is trained on and drawn with: loading it, turning prompts into conditions.

A base is a stock diffusers pipeline (Stable Diffusion 1.x, 2.x with either prediction type, SDXL, or the
bundled pocket model) together with its passport. Nothing here changes a weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from atomdiff.base import architectures, loading, overrides
from atomdiff.base.architectures import ALIASES
from atomdiff.base.hub import from_hub
from atomdiff.concept.passport import BasePassport, Match, passport_of
from atomdiff.errors import BaseError, SettingsError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "Base",
    "BasePassport",
    "Match",
    "PromptEmbeds",
    "added_conditions",
    "encode_prompts",
    "load_base",
    "truncated_part",
]


PREDICTIONS = ("epsilon", "v_prediction")


class PromptEmbeds(NamedTuple):
    """What the text encoders make of prompts."""

    hidden: Tensor
    """(b, tokens, d): for cross-attention."""
    pooled: Tensor | None
    """(b, p): SDXL's summary of the whole prompt; None for the others."""


@dataclass
class Base:
    """A loaded base model. `name` is how to ask for it again; `family` is pocket, sd1, sd2 or sdxl."""

    name: str
    family: str
    pipe: Any
    passport: BasePassport

    @property
    def unet(self) -> Any:
        """The denoiser, a UNet2DConditionModel."""
        return self.pipe.unet

    @property
    def vae(self) -> Any:
        """The autoencoder between pictures and latents."""
        return self.pipe.vae

    @property
    def scheduler(self) -> Any:
        """The noise schedule the base was trained with."""
        return self.pipe.scheduler

    @property
    def resolution(self) -> int:
        """Native side in pixels: 128 for pocket, 512 or 768 for SD, 1024 for SDXL."""
        size = self.unet.config.sample_size
        return int(size if isinstance(size, int) else size[0]) * self.vae_factor

    @cached_property
    def vae_factor(self) -> int:
        """Pixels a side of one latent: 8 for Stable Diffusion, 4 for pocket; known even when the
        autoencoder is dropped."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def prediction_type(self) -> str:
        """`epsilon` or `v_prediction`."""
        return str(self.scheduler.config.prediction_type)

    @property
    def device(self) -> torch.device:
        """Where the UNet lives."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """The UNet's number format."""
        return self.unet.dtype


@dataclass(frozen=True)
class Choice:
    """Which of several versions of a base is loaded, and what its files do not say."""

    revision: str = ""  # branch, tag or commit on the hub
    variant: str = ""  # of the files, fp16 say
    vae: str = ""  # another autoencoder: folder, .safetensors file or hub id
    prediction_type: str | None = None
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if self.prediction_type not in (None, *PREDICTIONS):
            raise SettingsError(
                f"--prediction_type must be one of {', '.join(PREDICTIONS)}, but {self.prediction_type!r} "
                "was given."
            )


def load_base(
    ref: str = "pocket",
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    choice: Choice | None = None,
) -> Base:
    """Loads `pocket`, `sd15`, `sd21`, `sdxl`, a diffusers folder, a .safetensors checkpoint or a hub id.

    Weights come frozen, in evaluation mode, in `dtype` (fp32 unless told). Raises BaseError, one sentence
    that says how to go on, when the base is missing, unreachable, damaged, pickled, or has no convolutional
    UNet.
    """
    import torch

    target, choice = _device(device), choice or Choice()
    pipe, name = _load_pipeline(str(ref), dtype or torch.float32, choice)
    overrides.reschedule(pipe, choice.prediction_type, choice.zero_terminal_snr, str(ref))
    _check_parts(pipe, str(ref))
    for part in loading.MODEL_PARTS:
        model = getattr(pipe, part, None)
        if model is not None:
            model.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    family = "pocket" if name == "pocket" else architectures.of_unet(pipe.unet.config)
    passport = passport_of(pipe.unet, family, name)
    with loading.quiet():
        return Base(name=name, family=family, pipe=pipe.to(target), passport=passport)


def encode_prompts(base: Base, prompts: list[str]) -> PromptEmbeds:
    """Embeddings of prompts, exactly as the pipeline's own sampling would make them; no gradient."""
    import torch

    with torch.no_grad():
        return embed_prompts(base, prompts)


def embed_prompts(base: Base, prompts: list[str]) -> PromptEmbeds:
    """The same with gradients, for where the text encoders are changed by something that learns."""
    with loading.quiet():
        made = require_text_encoders(base).pipe.encode_prompt(
            list(prompts), device=base.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    return PromptEmbeds(made[0], made[2] if len(made) == 4 else None)


def require_text_encoders(base: Base) -> Base:
    """The base. Raises BaseError where its text encoders were dropped, as training does to make room."""
    if base.pipe.text_encoder is None:
        raise BaseError(
            f"The text encoders of the base {base.name!r} were already dropped: load the base again."
        )
    return base


def truncated_part(base: Base, prompt: str) -> str:
    """The end of the prompt that the tokenizer has no room for (its own spelling); "" if everything fits."""
    tokenizer = base.pipe.tokenizer
    with loading.quiet():
        ids = tokenizer(prompt, truncation=False).input_ids
        kept = tokenizer.model_max_length - 1  # one place is the end mark's
        return "" if len(ids) <= kept + 1 else tokenizer.decode(ids[kept:-1]).strip()


def added_conditions(
    base: Base, embeds: PromptEmbeds, resolution: int | tuple[int, int] | None = None
) -> dict[str, Tensor] | None:
    """SDXL's `added_cond_kwargs` (pooled text and size conditioning); None for bases that take none.

    `resolution` is (height, width) or a side in pixels, native if not given. The size before cropping is told
    to be the same: a concept should not learn that its pictures were small.
    """
    import torch

    if base.unet.config.addition_embed_type != "text_time" or embeds.pooled is None:
        return None
    side = resolution or base.resolution
    target = (side, side) if isinstance(side, int) else side
    numbers = [*target, 0, 0, *target]  # size before cropping, top and left of the crop, size
    time_ids = torch.tensor([numbers], dtype=embeds.pooled.dtype, device=embeds.pooled.device)
    return {"text_embeds": embeds.pooled, "time_ids": time_ids.repeat(len(embeds.pooled), 1)}


def _load_pipeline(ref: str, dtype: torch.dtype, choice: Choice) -> tuple[Any, str]:
    """The pipeline that `ref` names, and the name under which others can ask for it too (no private path)."""
    parts = {"vae": overrides.autoencoder(choice.vae, dtype)} if choice.vae else {}
    if ref == "pocket":
        return loading.from_folder(_pocket(), dtype, ref, **parts), ref
    chosen = {"revision": choice.revision or None, "variant": choice.variant or None}
    if ref in ALIASES:
        return from_hub(ALIASES[ref].repository, dtype, ref, **chosen, **parts), ref
    path = Path(ref).expanduser()
    if path.is_dir():
        return loading.from_folder(path, dtype, ref, choice.variant or None, **parts), path.resolve().name
    if path.is_file():
        return loading.from_file(path, dtype, ref, **parts), path.name
    looks_local = ref.startswith((".", "/", "~")) or "\\" in ref or path.suffix in (".safetensors", ".ckpt")
    if loading.HUB_ID.fullmatch(ref) and not looks_local:
        return from_hub(ref, dtype, ref, **chosen, **parts), ref
    known = ", ".join(ALIASES)
    raise BaseError(
        f"There is no base {ref!r}: it is none of {known}, no folder and no file here, and no hub id of the "
        f"form owner/name; check the path, or {loading.GO_ON}."
    )


def _pocket() -> Path:
    from atomdiff import pocket

    folder = Path(pocket.path())
    if not (folder / "model_index.json").is_file():
        raise BaseError(
            "The bundled base 'pocket' is missing from this installation: install atomdiff again, or make "
            "the model with 'python -m atomdiff.pocket.build', or give another base."
        )
    return folder


def _check_parts(pipe: Any, ref: str) -> None:
    """Refuses what loads but cannot be tuned or drawn with."""
    latents = pipe.vae.config.latent_channels
    if 2 ** (len(pipe.vae.config.block_out_channels) - 1) != pipe.vae_scale_factor:
        raise BaseError(f"The autoencoder is not one for the base {ref!r}: give one of the same family.")
    if pipe.unet.config.in_channels != latents:
        raise loading.wrong_channels(ref, pipe.unet.config.in_channels)
    prediction = pipe.scheduler.config.get("prediction_type", "flow matching")
    if prediction not in PREDICTIONS:
        raise BaseError(
            f"The base {ref!r} predicts {prediction!r}; atomdiff knows 'epsilon' and 'v_prediction': "
            f"{loading.GO_ON}."
        )


def _device(device: str | torch.device) -> torch.device:
    import torch

    try:
        target = torch.device(device)
    except RuntimeError:
        raise SettingsError(f"There is no device {str(device)!r}: use cpu, cuda, cuda:0 or mps.") from None
    if target.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError("The device 'cuda' was asked for, but PyTorch sees no CUDA GPU here: use cpu.")
    if target.type == "mps" and not torch.backends.mps.is_available():
        raise SettingsError("The device 'mps' was asked for, but PyTorch sees no Apple GPU here: use cpu.")
    return target
