"""Small random pipelines of the real architectures, each built in well under a second.

`pipeline("sd1" | "sd2" | "sdxl")` is the whole family in miniature: the same block types, head layout,
projections, prediction type, text encoders and size conditioning, with a few channels; native size 64 x 64.
`save_single_file` writes such a pipeline in the layout of the original Stable Diffusion checkpoints, and
`save_pictures` random pictures to train on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.full_size.original_names import save_single_file

__all__ = ["pipeline", "save_folder", "save_pictures", "save_single_file", "unet"]
KINDS = ("sd1", "sd2", "sdxl")
WIDTH = 32  # of every text encoder


def pipeline(kind: str = "sd1", seed: int = 0) -> Any:
    """A random StableDiffusionPipeline (sd1: eps, sd2: v-prediction) or StableDiffusionXLPipeline, fp32."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts: dict[str, Any] = {"vae": _vae(kind), "unet": _unet(kind), "tokenizer": tokenizer()}
        parts["text_encoder"] = _text_encoder(parts["tokenizer"])
        if kind == "sdxl":
            parts["tokenizer_2"] = tokenizer()
            parts["text_encoder_2"] = _text_encoder(parts["tokenizer_2"], with_projection=True)
    parts["scheduler"] = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction" if kind == "sd2" else "epsilon",
    )
    if kind == "sdxl":
        pipe = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        pipe = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    for model in (pipe.unet, pipe.vae, pipe.text_encoder):
        model.eval().requires_grad_(False)
    return pipe


def save_folder(kind: str, folder: Path, seed: int = 0, **save_options: Any) -> Path:
    """A tiny pipeline as a diffusers folder."""
    pipeline(kind, seed).save_pretrained(folder, **save_options)
    return folder


def save_pictures(folder: Path, count: int, width: int, height: int) -> Path:
    """A folder of random pictures."""
    folder.mkdir()
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def unet(kind: str = "sd1", seed: int = 0) -> Any:
    """Only the UNet of `pipeline(kind, seed)`'s shape."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _unet(kind).eval().requires_grad_(False)


def _unet(kind: str) -> Any:
    from diffusers import UNet2DConditionModel

    shared: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 8,
    }
    if kind == "sdxl":
        return UNet2DConditionModel(
            **shared,
            block_out_channels=(16, 32, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2),
            attention_head_dim=(2, 4, 4),
            use_linear_projection=True,
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        )
    cross, plain = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    heads: dict[str, Any] = {"attention_head_dim": 8}
    if kind == "sd2":
        heads = {"attention_head_dim": (2, 4, 4, 4), "use_linear_projection": True}
    return UNet2DConditionModel(
        **shared,
        **heads,
        block_out_channels=(16, 32, 32, 32),
        down_block_types=tuple(cross),
        up_block_types=tuple(plain),
        cross_attention_dim=WIDTH,
    )


def _vae(kind: str) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.13025 if kind == "sdxl" else 0.18215,
        force_upcast=kind == "sdxl",
    )


def _text_encoder(tokens: Any, with_projection: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act="gelu" if with_projection else "quick_gelu",
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    return (CLIPTextModelWithProjection if with_projection else CLIPTextModel)(config)


def tokenizer() -> Any:
    """A real CLIPTokenizer whose vocabulary is the 256 bytes (also as word ends) and a few merges."""
    import tempfile

    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode().values()
    merges = [("s", "k"), ("sk", "s</w>"), ("d", "o"), ("do", "g</w>")]
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), "utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (path / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
        special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
        settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
        (path / "tokenizer_config.json").write_text(
            json.dumps({**settings, "pad_token": "<|endoftext|>"}), "utf-8"
        )
        return CLIPTokenizer.from_pretrained(folder)
