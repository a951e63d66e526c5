"""A concept in a whole model: a diffusers folder, or a checkpoint with its original names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atomdiff.concept.concept import Concept
from atomdiff.errors import BaseError
from atomdiff.integrations import diffusers
from atomdiff.integrations.exports.weights import changed_weights


def save_folder(concept: Concept, pipe: Any, out: Path, strength: float = 1.0) -> None:
    """Writes an ordinary diffusers folder, in which the learned word works too, in the pipeline's dtype.

    The pipeline is as it was afterwards. Raises ConceptError for another base.
    """
    from atomdiff.base.loading import quiet

    handle = diffusers.load(pipe, concept, strength)
    try:
        diffusers.fuse(pipe)
        with quiet():
            pipe.save_pretrained(out)
    finally:
        diffusers.unfuse(pipe)
        handle.unload()


def checkpoint_tensors(
    concept: Concept, unet: nn.Module, checkpoint: dict[str, Tensor], strength: float = 1.0
) -> dict[str, Tensor]:
    """A checkpoint's tensors, under their names and in their dtypes, with the concept in the UNet's weights;
    the others are the same objects. `unet` is that of the checkpoint.

    A checkpoint has no place for new tokens: the learned word goes with it as an embedding. Raises BaseError
    where a layer is not found in the file.
    """
    names = original_names(checkpoint, unet)
    merged = dict(checkpoint)
    for layer, change in changed_weights(concept, unet, strength):
        key = names.get(f"{layer}.weight")
        if key is None or checkpoint[key].shape != change.shape:
            raise BaseError(
                f"The checkpoint has no tensor for the layer {layer!r} of its UNet: it is of a kind that "
                "atomdiff cannot write; export a diffusers folder instead."
            )
        own = checkpoint[key]
        merged[key] = (own.float() + change.cpu()).to(own.dtype)
    return merged


def original_names(checkpoint: dict[str, Tensor], unet: nn.Module) -> dict[str, str]:
    """diffusers' name of each weight of a UNet -> the checkpoint's, as diffusers itself maps them."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    marks = {key: torch.empty(0) for key in checkpoint}
    key_of = {id(mark): key for key, mark in marks.items()}
    found = convert_ldm_unet_checkpoint(marks, dict(unet.config))  # type: ignore[arg-type]
    return {name: key_of[id(mark)] for name, mark in found.items()}
