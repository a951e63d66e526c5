"""Short trainings with fixed pictures, noise and timesteps, also on the shapes of Stable Diffusion 1.5 and
SDXL with random weights: how far LoRA and atoms get, where bases lead."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from atomdiff.base.stable_diffusion import Base, PromptEmbeds, added_conditions, encode_prompts
from atomdiff.concept.passport import BasePassport
from atomdiff.core.inject import attach
from atomdiff.training.calibration import LORA_RATE, Calibration
from atomdiff.training.objective import diffusion_loss
from atomdiff.training.optimiser import groups_of
from atomdiff.training.probes import denoising_probes, noise_prediction, relative_change
from atomdiff.training.recipes import DEFAULT

from ..full_size.building import SCHEDULE
from ..shapes import SHAPES, empty_unet

SPEC = DEFAULT.spec
STEPS = 8  # of real training, by which two speeds are compared
EPSILON = 1e-3  # Adam's: with a smaller one a gradient of nearly nothing would take a step of either sign


def full_size_base(kind: str, dtype: torch.dtype, seed: int = 0) -> Base:
    """A base of the shape `kind`, its UNet's weights as torch makes them: uniform within ±1/√(inputs)."""
    from diffusers import DDIMScheduler

    unet = nn.Module.to(empty_unet(SHAPES[kind]), dtype)
    unet.to_empty(device="cpu")
    generator = Generator().manual_seed(seed)
    with torch.no_grad():
        for module in unet.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                bound = module.weight[0].numel() ** -0.5
                for part in module.parameters(recurse=False):
                    part.uniform_(-bound, bound, generator=generator)
            elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
    scheduler = DDIMScheduler(**SCHEDULE)
    vae = SimpleNamespace(config=SimpleNamespace(block_out_channels=(0,) * 4))
    pipe = SimpleNamespace(unet=unet.eval().requires_grad_(False), vae=vae, scheduler=scheduler)
    family = {"sd15": "sd1"}.get(kind, kind)
    return Base(kind, family, pipe, BasePassport(f"{family}-00000000", (0.5,) * 16, kind))


def random_prompt(base: Base, seed: int) -> PromptEmbeds:
    """An embedding of the size that CLIP's last normalisation gives: rms 1."""
    generator = Generator().manual_seed(seed)
    hidden = torch.randn(1, 77, base.unet.config.cross_attention_dim, generator=generator).to(base.dtype)
    pooled = torch.randn(1, 1280, generator=generator).to(base.dtype)
    return PromptEmbeds(hidden, pooled if base.unet.config.addition_embed_type else None)


@contextmanager
def atoms(base: Base, found: Calibration) -> Iterator[list[dict[str, Any]]]:
    """Within: the base has atoms; yields parameter groups at the rates that were found."""
    attached = attach(base.unet, SPEC)
    rates = {"conv": found.learning_rate, "linear": found.linear_learning_rate}
    try:
        yield [{"params": own, "lr": rates[name]} for name, own in groups_of(attached).items()]
    finally:
        attached.detach()


@contextmanager
def lora(base: Base) -> Iterator[list[dict[str, Any]]]:
    """Within: the base has the LoRA of diffusers' DreamBooth example, through PEFT."""
    from peft import LoraConfig

    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    torch.manual_seed(0)
    base.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets))
    trained = [parameter for parameter in base.unet.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    try:
        yield [{"params": trained, "lr": LORA_RATE}]
    finally:
        base.unet.unload_lora()
        gc.collect()


def change_after(base: Base, groups: Sequence[dict[str, Any]], resolution: int) -> float:
    """The relative change of the noise prediction that STEPS steps of AdamW make, on noise for pictures."""
    prompt = random_prompt(base, 0)
    probes, _ = denoising_probes(base, prompt, resolution)
    before = noise_prediction(base, probes)
    adam, generator = torch.optim.AdamW(groups, weight_decay=0.0), Generator().manual_seed(1)
    side = resolution // base.vae_factor
    for _ in range(STEPS):
        picture = torch.randn(1, 4, side, side, generator=generator)
        _step(base, adam, prompt, picture, resolution, generator)
    return relative_change(noise_prediction(base, probes), before)


def trained_atoms(base: Base, found: Calibration, steps: int) -> Tensor:
    """The conv atoms after `steps` steps on a picture of the base's own, all in one vector."""
    prompt = encode_prompts(base, ["a dog"])
    _, picture = denoising_probes(base, encode_prompts(base, [""]), base.resolution, seed=3)
    generator = Generator().manual_seed(4)
    with atoms(base, found) as groups:
        adam = torch.optim.AdamW(groups, weight_decay=0.0, eps=EPSILON)
        for _ in range(steps):
            _step(base, adam, prompt, picture, base.resolution, generator)
        return torch.cat([parameter.detach().flatten() for parameter in groups[0]["params"]])


def _step(
    base: Base,
    adam: torch.optim.Optimizer,
    prompt: PromptEmbeds,
    picture: Tensor,
    resolution: int,
    generator: Generator,
) -> None:
    """One step on a picture, with noise and a time from the generator."""
    noise = torch.randn(picture.shape, generator=generator)
    time = torch.randint(1000, (1,), generator=generator)
    added = added_conditions(base, prompt, resolution)
    loss = diffusion_loss(
        base.unet, base.scheduler, picture, prompt.hidden, added, noise, time, instances=1
    )  # fmt: skip
    loss.total.backward()
    adam.step()
    adam.zero_grad()
