"""The pocket written in other ways: the same function as other weights, and near functions of other kinds."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from atomdiff.base.stable_diffusion import Base, encode_prompts, load_base
from atomdiff.concept.passport import passport_of
from atomdiff.pocket import world
from atomdiff.pocket.captions import caption
from atomdiff.training.latents import to_pixels
from atomdiff.training.objective import signal_and_noise

SCALE = 4.0  # c, a power of two: nothing is rounded


def pocket_variant(name: str, out: Path) -> Base:
    """The base `pocket`, or what `name` says was made of it; what takes long is kept in `out`."""
    base = load_base("pocket")
    if name == "pocket":
        return base
    base.pipe.unet = copy.deepcopy(base.unet)
    MAKERS[name](base, out)
    return replace(base, name=name, passport=passport_of(base.unet, "pocket", name))


@torch.no_grad()
def rescale(unet: nn.Module, c: float = SCALE) -> None:
    """The same function, with every scale that a normalisation or a product leaves free moved by c."""
    for _, block in _kind(unet, "ResnetBlock2D"):
        for layer in (block.conv1, block.time_emb_proj):  # norm2 divides by it
            _times(layer, c, bias=True)
    for _, block in _kind(unet, "Transformer2DModel"):
        _move(block.norm, [block.proj_in], c)
    for _, block in _kind(unet, "BasicTransformerBlock"):
        _move(block.norm1, [block.attn1.to_q, block.attn1.to_k, block.attn1.to_v], c)
        _move(block.norm2, [block.attn2.to_q], c)
        _move(block.norm3, [block.ff.net[0].proj], c)
        for attention in (block.attn1, block.attn2):
            _times(attention.to_v, c)
            _times(attention.to_out[0], 1 / c)
            _times(attention.to_q, c)
            _times(attention.to_k, 1 / c)


@torch.no_grad()
def permute(unet: nn.Module, seed: int = 0) -> None:
    """The same function, with the channels inside every residual block in another order, which keeps those
    together that are normalised together."""
    generator = Generator().manual_seed(seed)
    for _, block in _kind(unet, "ResnetBlock2D"):
        groups = block.norm2.num_groups
        places = torch.arange(block.norm2.num_channels).view(groups, -1)[
            torch.randperm(groups, generator=generator)
        ]
        order = torch.cat([row[torch.randperm(len(row), generator=generator)] for row in places])
        for layer in (block.conv1, block.time_emb_proj, block.norm2):
            layer.weight.copy_(layer.weight[order])
            layer.bias.copy_(layer.bias[order])
        block.conv2.weight.copy_(block.conv2.weight[:, order])


@torch.no_grad()
def widen(unet: nn.Module) -> None:
    """The same function, with every channel inside the residual blocks twice, and half as much of each."""
    for _, block in _kind(unet, "ResnetBlock2D"):
        first, second, norm = block.conv1, block.conv2, block.norm2
        block.conv1 = _conv(first.weight.repeat_interleave(2, 0), first.bias.repeat_interleave(2), first)
        block.conv2 = _conv(second.weight.repeat_interleave(2, 1) / 2, second.bias, second)
        time = nn.Linear(block.time_emb_proj.in_features, 2 * first.out_channels)
        for new, old in ((time, block.time_emb_proj),):
            new.weight.copy_(old.weight.repeat_interleave(2, 0))
            new.bias.copy_(old.bias.repeat_interleave(2))
        block.time_emb_proj = time
        block.norm2 = nn.GroupNorm(norm.num_groups, 2 * norm.num_channels, norm.eps)
        block.norm2.weight.copy_(norm.weight.repeat_interleave(2))
        block.norm2.bias.copy_(norm.bias.repeat_interleave(2))
    unet.eval().requires_grad_(False)


def _make_same(base: Base, out: Path) -> None:
    rescale(base.unet)
    permute(base.unet)


def _make_wide(base: Base, out: Path) -> None:
    widen(base.unet)


def _make_epsilon(base: Base, out: Path) -> None:
    """The noise in place of the velocity, learned from the pocket itself."""
    path = out / "epsilon.safetensors"
    if not path.exists():
        distil_noise(base)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(base.unet.state_dict(), path)
    base.unet.load_state_dict(load_file(path))
    base.pipe.scheduler = type(base.scheduler).from_config(base.scheduler.config, prediction_type="epsilon")


def distil_noise(base: Base, steps: int = 800, batch: int = 8, rate: float = 4e-4) -> None:
    """Trains every weight of the UNet to answer ε̂ = a v̂ + s z where it answered v̂."""
    teacher = copy.deepcopy(base.unet)
    base.unet.requires_grad_(True).train()
    adam = torch.optim.AdamW(base.unet.parameters(), lr=rate, weight_decay=0.0)
    for step, (z, t, hidden, a, s) in enumerate(_points(base, steps, batch)):
        for group in adam.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50) * (1 - step / steps)
        with torch.no_grad():
            wanted = a * teacher(z, t, hidden).sample + s * z
        loss = (base.unet(z, t, hidden).sample - wanted).square().mean(
            (1, 2, 3)
        ) / a.flatten().square().clamp(min=0.05)
        loss.mean().backward()
        nn.utils.clip_grad_norm_(base.unet.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        if step % 50 == 0:
            print(f"distilling: step {step} of {steps}, loss {float(loss.mean()):.4f}", flush=True)
    base.unet.requires_grad_(False).eval()


def _points(base: Base, steps: int, batch: int) -> Iterator[tuple[Tensor, ...]]:
    """Noisy latents of pictures of the pocket's world, with their captions."""
    rng, generator = np.random.default_rng(5), Generator().manual_seed(5)
    scenes = [world.random_scene(rng) for _ in range(384)]
    captions = [caption(scene, rng) for scene in scenes]
    with torch.no_grad():
        pixels = torch.stack([to_pixels(world.render(scene)) for scene in scenes])
        chunks = [base.vae.encode(part).latent_dist.mean for part in pixels.split(32)]
        latents = torch.cat(chunks) * base.vae.config.scaling_factor
        hidden = encode_prompts(base, captions).hidden
        blank = encode_prompts(base, [""]).hidden
    for _ in range(steps):
        rows = torch.randint(len(scenes), (batch,), generator=generator)
        said = torch.where(torch.rand(batch, 1, 1, generator=generator) < 0.1, blank, hidden[rows])
        t = torch.randint(1000, (batch,), generator=generator)
        a, s = (part[:, None, None, None] for part in signal_and_noise(base.scheduler, t))
        yield a * latents[rows] + s * torch.randn(latents[rows].shape, generator=generator), t, said, a, s


def _kind(unet: nn.Module, name: str) -> list[tuple[str, Any]]:
    return [(path, module) for path, module in unet.named_modules() if type(module).__name__ == name]


def _times(layer: Any, c: float, bias: bool = False) -> None:
    layer.weight.mul_(c)
    if bias:
        layer.bias.mul_(c)


def _move(norm: Any, layers: list[Any], c: float) -> None:
    """A normalisation's gain and shift by 1/c, and by c the weights that it goes into."""
    norm.weight.div_(c)
    norm.bias.div_(c)
    for layer in layers:
        _times(layer, c)


def _conv(weight: Tensor, bias: Tensor, like: nn.Conv2d) -> nn.Conv2d:
    made = nn.Conv2d(weight.shape[1], weight.shape[0], like.kernel_size, like.stride, like.padding)  # type: ignore[arg-type]
    made.weight.copy_(weight)
    made.bias.copy_(bias)  # type: ignore[union-attr]
    return made


MAKERS = {"same function": _make_same, "widened": _make_wide, "epsilon": _make_epsilon}
