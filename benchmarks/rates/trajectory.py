"""A short training with fixed pictures, noise and timesteps, for comparing where bases lead it."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from atomdiff.base.stable_diffusion import Base, encode_prompts
from atomdiff.core.inject import attach
from atomdiff.core.layers import AtomConv2d
from atomdiff.training.calibration import Calibration, groups_of
from atomdiff.training.objective import diffusion_loss
from atomdiff.training.probes import denoising_probes

from .searching import SPEC

EPSILON = 1e-3  # Adam's: with a smaller one a gradient of nearly nothing would take a step of either sign


def trained_atoms(base: Base, found: Calibration, steps: int) -> Tensor:
    """The conv atoms after `steps` steps on a picture of the base's own, all in one vector."""
    hidden = encode_prompts(base, ["a dog"])
    _, picture = denoising_probes(base, encode_prompts(base, [""]), base.resolution, seed=3)
    attached, generator = attach(base.unet, SPEC), Generator().manual_seed(4)
    rates = {"conv": found.learning_rate, "linear": found.linear_learning_rate}
    groups = [{"params": own, "lr": rates[name]} for name, own in groups_of(attached).items()]
    adam = torch.optim.AdamW(groups, weight_decay=0.0, eps=EPSILON)
    try:
        for _ in range(steps):
            noise = torch.randn(picture.shape, generator=generator)
            time = torch.randint(1000, (1,), generator=generator)
            loss = diffusion_loss(
                base.unet, base.scheduler, picture, hidden.hidden, None, noise, time, instances=1
            )  # fmt: skip
            loss.total.backward()
            adam.step()
            adam.zero_grad()
        layers = [layer for layer in attached.layers.values() if isinstance(layer, AtomConv2d)]
        return torch.cat([layer.atoms.detach().flatten() for layer in layers])
    finally:
        attached.detach()
