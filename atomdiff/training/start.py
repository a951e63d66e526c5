"""What a run starts in: the device and number format that accelerate chooses, the base, folders to write
to."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from atomdiff.base.stable_diffusion import Base, Choice, load_base
from atomdiff.errors import SettingsError
from atomdiff.files.images import check_folder
from atomdiff.training.checkpoint import find_checkpoint
from atomdiff.training.reporting import Reporter
from atomdiff.training.settings import TrainingSettings
from atomdiff.training.trackers import check_installed

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Silent(Reporter):
    """For all processes but the first."""

    def notice(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


def accelerated(settings: TrainingSettings) -> tuple[Any, TrainingSettings]:
    """An Accelerator in the precision asked for, and the settings with that precision filled in."""
    from datetime import timedelta

    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState

    precision = settings.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    settings = dataclasses.replace(settings, mixed_precision=precision)
    shared = AcceleratorState._shared_state
    if shared and shared.get("_mixed_precision") != precision:  # an earlier run in this process left its own
        AcceleratorState._reset_state()
    patience = InitProcessGroupKwargs(
        timeout=timedelta(hours=6)
    )  # class pictures may take long on one of many
    accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[patience])
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise SettingsError("--mixed_precision fp16 needs a GPU; on a CPU use bf16 or no.")
    if settings.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    return accelerator, settings


def base_for(settings: TrainingSettings, base: Base | None, accelerator: Any) -> Base:
    """The base, on the right device and frozen, in the run's number format."""
    if base is None:
        choice = Choice(
            settings.revision,
            settings.variant,
            settings.pretrained_vae_model_name_or_path,
            settings.prediction_type,
            settings.zero_terminal_snr,
        )
        base = load_base(
            settings.base,
            dtype=DTYPES[str(settings.mixed_precision)],
            device=accelerator.device,
            choice=choice,
        )
    elif base.device != accelerator.device:
        base.pipe.to(accelerator.device)
    if settings.text_encoder_use_attention_mask:
        if getattr(base.pipe, "text_encoder_2", None) is not None:
            raise SettingsError(
                "--text_encoder_use_attention_mask is not for SDXL, whose pipelines know no such mask: "
                "drop it."
            )
        base.pipe.text_encoder.config.use_attention_mask = True
    if settings.enable_xformers_memory_efficient_attention:
        _use_xformers(base)
    return base


def _use_xformers(base: Base) -> None:
    try:
        base.unet.enable_xformers_memory_efficient_attention()
    except (ImportError, ValueError, NotImplementedError, RuntimeError) as error:
        reasons = {ImportError: "is not installed", ValueError: "needs an NVIDIA GPU"}
        reason = next(
            (text for kind, text in reasons.items() if isinstance(error, kind)),
            "has no operators for this GPU and build of PyTorch",
        )
        raise SettingsError(
            f"--enable_xformers_memory_efficient_attention cannot be used: xformers {reason}. Drop the "
            "flag (PyTorch's own attention is about as fast) or install atomdiff[xformers]."
        ) from None


def check_before(settings: TrainingSettings) -> None:
    """What can be refused before anything heavy is loaded."""
    check_installed(settings.report_to)
    check_folder(settings.instance_data_dir)
    instance = Path(settings.instance_data_dir).expanduser().resolve()
    if settings.class_data_dir and Path(settings.class_data_dir).expanduser().resolve() == instance:
        raise SettingsError("--class_data_dir is the folder of the subject's pictures; give another or none.")
    if settings.resume_from_checkpoint:
        find_checkpoint(Path(settings.output_dir), settings.resume_from_checkpoint)
