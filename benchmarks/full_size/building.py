"""Stable Diffusion 1.5, 2.1 and SDXL at their real size with random weights, written as files.

Shapes and configurations are those that the published models have; the tokenizer has CLIP's real
vocabulary, which open-clip-torch carries. No model is ever held in memory: each tensor is written as it is
made, in fp16.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atomdiff.errors import SettingsError

from ..shapes import SD15, SD21, SDXL, empty_unet
from . import original_names

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


def build(kind: str, folder: Path, variant: str = "") -> Path:
    """The diffusers folder of a model; `variant` goes into the names of its files."""
    from diffusers import AutoencoderKL, DDIMScheduler
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    what, ending = KINDS[kind], f".{variant}" if variant else ""
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if what.xl else "StableDiffusionPipeline"
    }
    for name, model in (
        ("unet", empty_unet(what.unet)), ("vae", _empty(AutoencoderKL, **what.vae)),
    ):  # fmt: skip
        model.save_config(folder / name)
        write(folder / name / f"diffusion_pytorch_model{ending}.safetensors", _shapes(model))
        index[name] = ["diffusers", type(model).__name__]
    for number, (shape, projection, activation) in enumerate(what.texts):
        suffix = "_2" if number else ""
        text = CLIPTextModelWithProjection if projection else CLIPTextModel
        config = _text_config(shape, projection, activation)
        model = _empty(text, config)
        config.architectures = [text.__name__]
        config.save_pretrained(folder / f"text_encoder{suffix}")
        write(folder / f"text_encoder{suffix}" / f"model{ending}.safetensors", _shapes(model))
        index[f"text_encoder{suffix}"] = ["transformers", text.__name__]
        write_tokenizer(folder / f"tokenizer{suffix}")
        index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"]
    DDIMScheduler(**SCHEDULE, prediction_type=what.prediction).save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    if not what.xl:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def build_single_file(folder: Path, file: Path) -> Path:
    """An SD 1.5 folder as one file under the names of the original checkpoint."""
    from diffusers import UNet2DConditionModel
    from safetensors import safe_open

    config = UNet2DConditionModel.load_config(folder / "unet")
    levels = len(VAE["block_out_channels"])
    shapes: list[tuple[str, tuple[int, ...]]] = []
    for part, rename in (
        ("unet", lambda name: "model.diffusion_model." + original_names.unet_name(name, _Config(config))),
        ("vae", lambda name: "first_stage_model." + original_names.vae_name(name, levels)),
        ("text_encoder", _text_name),
    ):
        (path,) = (folder / part).glob("*.safetensors")
        with safe_open(path, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                shape, new = tuple(opened.get_slice(name).get_shape()), rename(name)
                attention = ".mid.attn_1." in new and len(shape) == 2
                shapes.append((new, (*shape, 1, 1) if attention else shape))
    write(file, shapes)
    return file


def write(file: Path, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> None:
    """Random fp16 tensors as a safetensors file, one at a time: weights of variance 1 / fan-in, norms of
    one."""
    header: dict[str, Any] = {}
    place, all_shapes = 0, sorted(shapes)
    for name, shape in all_shapes:
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        out.write(len(head).to_bytes(8, "little") + head)
        for name, shape in all_shapes:
            for block in _blocks(name, shape):
                out.write(block)


def _blocks(name: str, shape: tuple[int, ...]) -> Iterator[bytes]:
    count = math.prod(shape)
    if len(shape) < 2:
        value = 1.0 if name.endswith("weight") else 0.0
        yield np.full(count, value, np.float16).tobytes()
        return
    scale = 1.0 if "embedding" in name else 0.5
    noise = _noise() * np.float32(
        scale * 0.02 if "embedding" in name else scale / math.sqrt(count / shape[0])
    )
    block = noise.astype(np.float16).tobytes()
    for start in range(0, count, len(noise)):
        yield block[: 2 * min(len(noise), count - start)]


def _noise(cache: list[np.ndarray] = []) -> np.ndarray:  # noqa: B006 - made once
    if not cache:
        cache.append(np.random.default_rng(0).standard_normal(1_000_003).astype(np.float32))
    return cache[0]


def write_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer, from the merges that open-clip-torch carries."""
    folder.mkdir(parents=True)
    lines = gzip.decompress(_vocabulary().read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(moved))]
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
        raise SettingsError("CLIP's vocabulary comes with open-clip-torch: install atomdiff[benchmarks].")
    return Path(found.origin).with_name("bpe_simple_vocab_16e6.txt.gz")


class _Config:
    """A configuration with attributes, as `unet_name` asks."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__ |= values


def _empty(kind: Any, *given: Any, **config: Any) -> Any:
    import torch

    with torch.device("meta"):
        return kind(*given, **config)


def _text_config(shape: dict[str, Any], projection: int, activation: str) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        **shape, vocab_size=49408, max_position_embeddings=77, hidden_act=activation,
        projection_dim=projection or 512, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip


def _shapes(model: Any) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]


def _text_name(name: str) -> str:
    prefix = "" if name.startswith("text_model.") else "text_model."
    return f"cond_stage_model.transformer.{prefix}{name}"
