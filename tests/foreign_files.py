"""LoRAs and textual inversions such as other programs write, with random numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def save_lora(base: Any, path: Path, seed: int = 0) -> Path:
    """A LoRA of cross-attention, by PEFT, as diffusers' trainers write it."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        base.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    tensors = get_peft_model_state_dict(base.unet)
    base.unet.unload_lora()
    StableDiffusionPipeline.save_lora_weights(path.parent, tensors, weight_name=path.name)
    return path


def save_embedding(base: Any, path: Path, vectors: int = 2, fill: float | None = None) -> Path:
    """A textual inversion in A1111's form, SDXL's with both encoders."""
    generator, tensors = torch.Generator().manual_seed(1), {}
    for key, name in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2")):
        encoder = getattr(base.pipe, name, None)
        if encoder is not None:
            width = encoder.get_input_embeddings().weight.shape[1]
            tensors[key] = torch.randn(vectors, width, generator=generator)
    if len(tensors) == 1:
        tensors = {"emb_params": tensors["clip_l"]}
    if fill is not None:
        tensors = {key: torch.full_like(own, fill) for key, own in tensors.items()}
    save_file(tensors, path)
    return path
