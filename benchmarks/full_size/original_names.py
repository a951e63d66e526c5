"""The names of weights in the original Stable Diffusion checkpoints, from diffusers' names."""

from pathlib import Path
from typing import Any

_FIXED = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_OPEN_CLIP = (  # within a text encoder; the projections of attention are one matrix there
    ("embeddings.token_embedding", "token_embedding"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("encoder.layers", "transformer.resblocks"),
    ("final_layer_norm", "ln_final"),
    ("layer_norm", "ln_"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
)
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet_name(name: str, config: Any) -> str:
    """`down_blocks.0.resnets.0.conv1.weight` -> `input_blocks.1.0.in_layers.2.weight`, and so on."""
    for ours, theirs in _FIXED.items():
        if name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    place, _, rest = name.partition(".")
    per_level = config.layers_per_block + 1
    if place == "mid_block":
        kind, index, tail = rest.split(".", 2)
        slot = 1 if kind == "attentions" else 2 * int(index)
        return f"middle_block.{slot}." + (tail if kind == "attentions" else _resnet(tail))
    level_text, kind, index, tail = rest.split(".", 3)
    level = int(level_text)
    if place == "down_blocks":
        if kind == "downsamplers":  # tail: "conv.weight"
            return f"input_blocks.{per_level * (level + 1)}.0.op.{tail.split('.')[1]}"
        block = f"input_blocks.{1 + per_level * level + int(index)}"
    elif kind == "upsamplers":
        has_attention = "CrossAttn" in config.up_block_types[level]
        return f"output_blocks.{per_level * (level + 1) - 1}.{1 + has_attention}.{tail}"
    else:
        block = f"output_blocks.{per_level * level + int(index)}"
    return f"{block}.1.{tail}" if kind == "attentions" else f"{block}.0.{_resnet(tail)}"


def _resnet(tail: str) -> str:
    part, end = tail.rsplit(".", 1)
    return f"{_RESNET[part]}.{end}"


def vae_name(name: str, levels: int) -> str:
    """`decoder.up_blocks.0.resnets.1.conv1.weight` -> `decoder.up.3.block.1.conv1.weight`, and so on."""
    for ours, theirs in (
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
        ("mid_block.attentions.0.to_q", "mid.attn_1.q"),
        ("mid_block.attentions.0.to_k", "mid.attn_1.k"),
        ("mid_block.attentions.0.to_v", "mid.attn_1.v"),
        ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        ("resnets.", "block."),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
        ("down_blocks.", "down."),
    ):
        name = name.replace(ours, theirs)
    if ".up_blocks." in name:
        head, tail = name.split(".up_blocks.")
        level, rest = tail.split(".", 1)
        name = f"{head}.up.{levels - 1 - int(level)}.{rest}"
    return name


def open_clip(weights: dict[str, Any]) -> dict[str, Any]:
    """A text encoder of CLIP's kind under OpenCLIP's names: `layers.0.self_attn.q_proj.weight` and those of k
    and v -> `transformer.resblocks.0.attn.in_proj_weight`, and so on."""
    import torch

    found = {}
    for name, weight in weights.items():
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            found["text_projection"] = weight.T
        elif ".self_attn.q_proj." in name:
            three = [weights[full] for full in _attention(weights, name)]
            block, kind = name.split(".self_attn.q_proj.")
            found[_renamed(f"{block}.attn.in_proj_{kind}")] = torch.cat(three)
        elif not any(f".self_attn.{part}_proj." in name for part in "kv"):
            found[_renamed(name)] = weight
    return found


def _attention(weights: dict[str, Any], name: str) -> list[str]:
    """The full names of the projections to queries, keys and values."""
    prefix = "" if name in weights else "text_model."
    return [prefix + name.replace("q_proj", f"{part}_proj") for part in "qkv"]


def _renamed(name: str) -> str:
    for ours, theirs in _OPEN_CLIP:
        name = name.replace(ours, theirs)
    return name


def save_single_file(pipe: Any, path: Path) -> Path:
    """The pipeline's weights under the names of the original checkpoints of SD 1.x, 2.x or SDXL."""
    from safetensors.torch import save_file

    state: dict[str, Any] = {}
    for name, weight in pipe.unet.state_dict().items():
        state["model.diffusion_model." + unet_name(name, pipe.unet.config)] = weight
    for name, weight in pipe.vae.state_dict().items():
        original = vae_name(name, len(pipe.vae.config.block_out_channels))
        as_conv = original.startswith(("encoder.mid.attn", "decoder.mid.attn")) and weight.ndim == 2
        state["first_stage_model." + original] = weight[:, :, None, None] if as_conv else weight
    text = pipe.text_encoder.state_dict()
    second = getattr(pipe, "text_encoder_2", None)
    if second is None and pipe.unet.config.use_linear_projection:  # SD 2.x
        state |= {f"cond_stage_model.model.{name}": weight for name, weight in open_clip(text).items()}
    else:
        place = "cond_stage_model" if second is None else "conditioner.embedders.0"
        for name, weight in text.items():
            prefix = "" if name.startswith("text_model.") else "text_model."
            state[f"{place}.transformer.{prefix}{name}"] = weight
    if second is not None:
        more = open_clip(second.state_dict())
        state |= {f"conditioner.embedders.1.model.{name}": weight for name, weight in more.items()}
    save_file({name: weight.contiguous() for name, weight in state.items()}, path)
    return path
