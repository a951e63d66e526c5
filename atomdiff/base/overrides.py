"""What of a base is not taken from its own files: another autoencoder, another noise schedule."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomdiff.errors import BaseError, reason_of

if TYPE_CHECKING:
    import torch


def autoencoder(ref: str, dtype: torch.dtype) -> Any:
    """The autoencoder in a folder, in a .safetensors file or on the hub. Raises BaseError."""
    from diffusers import AutoencoderKL

    path = Path(ref).expanduser()
    if path.is_file() and path.suffix != ".safetensors":
        raise BaseError(
            f"The autoencoder {ref!r} is no .safetensors file, and other formats can run code when they are "
            "read: convert it first."
        )
    try:
        if path.is_file():
            return AutoencoderKL.from_single_file(str(path), torch_dtype=dtype)
        inside = {"subfolder": "vae"} if (path / "vae" / "config.json").is_file() else {}
        return AutoencoderKL.from_pretrained(
            str(path) if path.is_dir() else ref, use_safetensors=True, torch_dtype=dtype, **inside
        )
    except Exception as error:  # whatever a third-party loader raises on somebody's files
        if isinstance(error, MemoryError):
            raise
        raise BaseError(
            f"The autoencoder {ref!r} could not be loaded ({reason_of(error)}): give a diffusers folder, a "
            ".safetensors file or a hub id to --vae."
        ) from error


def reschedule(pipe: Any, prediction_type: str | None, zero_terminal_snr: bool, ref: str) -> None:
    """Give the pipeline a noise schedule that predicts something else, or ends in pure noise (Lin et al.
    2024, arXiv 2305.08891), as `from_config` makes it. Raises BaseError where that cannot be."""
    from diffusers import DDIMScheduler

    old = pipe.scheduler
    change: dict[str, Any] = {"prediction_type": prediction_type} if prediction_type else {}
    if zero_terminal_snr:
        change |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        if (prediction_type or old.config.get("prediction_type")) != "v_prediction":
            raise BaseError(
                f"The base {ref!r} predicts the noise, and pure noise has nothing else to predict: drop "
                "--zero_terminal_snr, or say --prediction_type v_prediction if it was trained for that."
            )
    if change:
        takes = inspect.signature(type(old).__init__).parameters
        kind = type(old) if all(name in takes for name in change) else DDIMScheduler
        pipe.scheduler = kind.from_config(old.config, **change)
