"""Stable Diffusion 1.5, 2.1 and SDXL at their real size with random weights, written as files.

Shapes and configurations are those that the published models have; the tokenizer has CLIP's real
vocabulary, which open-clip-torch carries.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from atomdiff.errors import SettingsError

from ..shapes import SD15, SD21, SDXL, empty_unet, randomized
from .original_names import save_single_file

VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512], "latent_channels": 4, "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "sample_size": 512, "scaling_factor": 0.18215,
}  # fmt: skip
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One of the models; `texts` are its text encoders, with a projection of so many numbers, 0 for none."""

    unet: dict[str, Any]
    texts: tuple[tuple[dict[str, Any], int, str], ...]
    vae: dict[str, Any]
    prediction: str = "epsilon"

    @property
    def xl(self) -> bool:
        return len(self.texts) == 2


KINDS = {
    "sd15": Kind(SD15, ((CLIP_L, 0, "quick_gelu"),), VAE),
    "sd21": Kind(SD21, ((CLIP_H, 0, "gelu"),), VAE | {"sample_size": 768}, "v_prediction"),
    "sdxl": Kind(
        SDXL,
        ((CLIP_L, 0, "quick_gelu"), (CLIP_G, 1280, "gelu")),
        VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    ),
}


def components(what: Kind) -> dict[str, Any]:
    """The models of a pipeline, without weights, on torch's meta device."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        made = {"unet": empty_unet(what.unet), "vae": AutoencoderKL(**what.vae)}
        for number, (shape, projection, activation) in enumerate(what.texts):
            config = CLIPTextConfig(
                **shape, vocab_size=49408, max_position_embeddings=77, hidden_act=activation,
                projection_dim=projection or 512, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
            )  # fmt: skip
            text = CLIPTextModelWithProjection if projection else CLIPTextModel
            made["text_encoder_2" if number else "text_encoder"] = text(config)
    return made


def build(kind: str | Kind, folder: Path, variant: str = "") -> Path:
    """The diffusers folder of a model in fp16; `variant` goes into the names of its files."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
    from transformers import CLIPTokenizer

    what = kind if isinstance(kind, Kind) else KINDS[kind]
    parts = {
        name: randomized(model, "cpu", torch.float16, gain=0.5) for name, model in components(what).items()
    }
    with tempfile.TemporaryDirectory() as vocabulary:
        write_tokenizer(files := Path(vocabulary) / "clip")
        for name in [name for name in parts if name.startswith("text_encoder")]:
            parts[name.replace("text_encoder", "tokenizer")] = CLIPTokenizer.from_pretrained(files)
    parts["scheduler"] = DDIMScheduler(**SCHEDULE, prediction_type=what.prediction)
    if what.xl:
        pipe = StableDiffusionXLPipeline(**parts)
    else:
        none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = StableDiffusionPipeline(**parts, **none)
    pipe.save_pretrained(folder, variant=variant or None)
    return folder


def build_single_file(folder: Path, file: Path) -> Path:
    """A folder as one file under the names of the original checkpoint."""
    from diffusers import DiffusionPipeline

    file.parent.mkdir(parents=True, exist_ok=True)
    return save_single_file(DiffusionPipeline.from_pretrained(folder, dtype=torch.float16), file)


def write_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer, from the merges that open-clip-torch carries."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    folder.mkdir(parents=True)
    lines = gzip.decompress(_vocabulary().read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = bytes_to_unicode().values()
    words = [*letters, *(letter + "</w>" for letter in letters), *(line.replace(" ", "") for line in lines)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", "utf-8")
    special = {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1], "pad_token": words[-1]}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


def _vocabulary() -> Path:
    """CLIP's merges in open-clip-torch, which is not imported: it asks for torchvision. Raises
    SettingsError."""
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        raise SettingsError("CLIP's vocabulary is in open-clip-torch: pip install --no-deps open-clip-torch.")
    return Path(found.origin).with_name("bpe_simple_vocab_16e6.txt.gz")
