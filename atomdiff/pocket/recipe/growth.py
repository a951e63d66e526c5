"""How a finished model becomes the start of a larger one, without forgetting what it can.

Everything that has a counterpart is copied, and what is new begins as nothing: residual blocks that add zero,
inputs of weight zero, outputs of zero. `outwards` gives the autoencoder one level more on the outside, for
pictures of twice the side and the same number of latents; `more_latents` gives it more of their channels,
`deeper` more blocks; `wider_latents` gives the denoiser those channels; `new_words` gives the text encoder
another vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer


def _into(target: Tensor, source: Tensor) -> None:
    """Copies `source` into the corner of `target` where every index is smallest."""
    target[tuple(slice(n) for n in source.shape)] = source


@torch.no_grad()
def outwards(old: AutoencoderKL, channels: int) -> AutoencoderKL:
    """The autoencoder for pictures of twice the side, with `channels` of latents; the first ones are near
    what `old` makes of the same picture at half the size."""
    config: dict[str, Any] = dict(old.config)
    widths = tuple(config["block_out_channels"])
    levels = {"sample_size": 2 * config["sample_size"], "block_out_channels": (widths[0], *widths)}
    levels |= {key: (config[key][0], *config[key]) for key in ("down_block_types", "up_block_types")}
    new: Any = AutoencoderKL.from_config({**config, **levels, "latent_channels": channels})
    was: Any = old
    for i, block in enumerate(was.encoder.down_blocks):
        new.encoder.down_blocks[i + 1].load_state_dict(block.state_dict())
    for i, block in enumerate(was.decoder.up_blocks):
        new.decoder.up_blocks[i].load_state_dict(block.state_dict(), strict=False)
    for half in ("encoder", "decoder"):
        for part in ("mid_block", "conv_norm_out"):
            getattr(getattr(new, half), part).load_state_dict(getattr(getattr(was, half), part).state_dict())
    new.decoder.conv_out.load_state_dict(was.decoder.conv_out.state_dict())
    _enter_at_half_size(new.encoder, was.encoder.conv_in)
    nn.init.dirac_(new.decoder.up_blocks[-2].upsamplers[0].conv.weight)
    nn.init.zeros_(new.decoder.up_blocks[-2].upsamplers[0].conv.bias)
    for resnet in (*new.encoder.down_blocks[0].resnets, *new.decoder.up_blocks[-1].resnets):
        nn.init.zeros_(resnet.conv2.weight)
        nn.init.zeros_(resnet.conv2.bias)
    _more_latents(new, was)
    return new


def _enter_at_half_size(encoder: Any, conv_in: nn.Conv2d) -> None:
    """Makes the first level compute what `conv_in` (c, 3, 3, 3) does of the picture at half the size.

    Along each axis the half-size pixels i-1, i and i+1 are, of full-size pixels x: x[2i-1] (in place of the
    mean of two, which is out of reach), (x[2i] + x[2i+1]) / 2 and (x[2i+2] + x[2i+3]) / 2. The first
    convolution makes x[t-1] and (x[t] + x[t+1]) / 2 of every axis, the strided one picks.
    """
    taps = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])  # over t-1, t, t+1
    picks = ((0, 0), (1, 0), (1, 2))  # (which tap, place in the strided kernel) of i-1, i, i+1
    enter, down = encoder.conv_in, encoder.down_blocks[0].downsamplers[0].conv
    down.weight[:, :12] = 0
    for c in range(3):
        for u in range(2):
            for v in range(2):
                enter.weight[4 * c + 2 * u + v] = 0
                enter.weight[4 * c + 2 * u + v, c] = torch.outer(taps[u], taps[v])
        for dy, (u, ky) in enumerate(picks):
            for dx, (v, kx) in enumerate(picks):
                down.weight[:, 4 * c + 2 * u + v, ky, kx] += conv_in.weight[:, c, dy, dx]
    enter.bias[:12] = 0
    down.weight[:, 12:] *= 0.1
    down.bias.copy_(conv_in.bias)


def _more_latents(new: Any, was: Any) -> None:
    """Copies the convolutions around the latents; the further channels begin small."""
    c, more = was.config.latent_channels, new.config.latent_channels
    for a, b, both in (
        (new.encoder.conv_out, was.encoder.conv_out, False),
        (new.quant_conv, was.quant_conv, True),
    ):
        if both:  # what comes in is doubled as well: means, then logarithms of variances
            a.weight.zero_()
            a.weight[:, :, 0, 0] += torch.eye(2 * more)
        for k in range(2):
            rows, old = slice(k * more, k * more + c), slice(k * c, (k + 1) * c)
            a.bias[rows] = b.bias[old]
            if both:
                for j in range(2):
                    a.weight[rows, j * more : j * more + c] = b.weight[old, j * c : (j + 1) * c]
            else:
                a.weight[rows] = b.weight[old]
    new.quant_conv.bias[c:more] = 0
    new.quant_conv.bias[more + c :] = -6  # a posterior that is sharp from the first step
    post = new.post_quant_conv
    post.weight.zero_()
    post.weight[:, :, 0, 0] += torch.eye(more)
    post.bias.zero_()
    _into(post.weight, was.post_quant_conv.weight)
    _into(post.bias, was.post_quant_conv.bias)
    new.decoder.conv_in.weight *= 0.3
    _into(new.decoder.conv_in.weight, was.decoder.conv_in.weight)
    new.decoder.conv_in.bias.copy_(was.decoder.conv_in.bias)


@torch.no_grad()
def more_latents(old: AutoencoderKL, channels: int) -> AutoencoderKL:
    """The same autoencoder with `channels` of latents, of which the first are as they were."""
    new: Any = AutoencoderKL.from_config({**old.config, "latent_channels": channels})
    around = ("conv_out", "conv_in", "quant_conv")
    same = {
        k: v
        for k, v in old.state_dict().items()
        if v.shape == new.state_dict()[k].shape or not any(name in k for name in around)
    }
    new.load_state_dict(same, strict=False)
    _more_latents(new, old)
    return new


@torch.no_grad()
def deeper(old: AutoencoderKL, layers: int) -> AutoencoderKL:
    """The same autoencoder with more blocks a level, each adding zero as yet: room for a better decoder,
    while the latents stay what they are."""
    new: Any = AutoencoderKL.from_config({**old.config, "layers_per_block": layers})
    held = new.load_state_dict(old.state_dict(), strict=False)
    for name in held.missing_keys:
        if ".conv2." in name:
            new.get_parameter(name).zero_()
    return new


@torch.no_grad()
def wider_latents(old: UNet2DConditionModel, channels: int) -> UNet2DConditionModel:
    """The denoiser for latents of `channels`: the further ones are not looked at, and predicted as zero."""
    new: Any = UNet2DConditionModel.from_config(
        {**old.config, "in_channels": channels, "out_channels": channels}
    )
    for name, value in old.state_dict().items():
        target = new.state_dict()[name]
        if target.shape != value.shape:
            target.zero_()
        _into(target, value)
    return new


@torch.no_grad()
def new_words(old: CLIPTextModel, was: CLIPTokenizer, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text encoder for another tokenizer: words that both have keep their vectors, and the others begin
    as random ones of the same size."""
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = old.config.__class__.from_dict(
        {**old.config.to_dict(), **ends, "pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer)}
    )
    new = CLIPTextModel(config)
    tensors = {k: v for k, v in old.state_dict().items() if "token_embedding" not in k}
    new.load_state_dict(tensors, strict=False)
    table, known = old.get_input_embeddings().weight, was.get_vocab()
    mine = new.get_input_embeddings().weight
    mine.normal_(0, float(table.std()))
    for word, row in tokenizer.get_vocab().items():
        if word in known:
            mine[row] = table[known[word]]
    return new
