"""Several at once: pictures of different concepts, and trainings, in one batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from atomdiff.core import functional, mixed
from atomdiff.core.inject import attach
from atomdiff.core.mixing import Mixing, mixing
from atomdiff.sampling.mixed import ASKED_AGAIN, mixed_maps
from atomdiff.sampling.resident import Residents
from atomdiff.training.together import row_maps, unet_like

from ..mixed_batch import base_of, random_concepts
from .asked import Asked, asked, unet_of
from .setup import SPECS, Figures, Setup
from .steps import step_figures


def mixed_batch(setup: Setup) -> Figures:
    """Eight concepts in one batch, 512², fp16, guided (16 rows): beside the base; either form of the
    convolutions for all; swaps; pictures a second of 25 steps."""
    unet = unet_of(setup.sd15, setup.device, torch.float16)
    base, count = base_of(unet), 8
    held = Residents(base)
    resident = [held.add(c, str(i)) for i, c in enumerate(random_concepts(base, count))]
    half = asked(unet, count, setup.side(512))
    call = Asked(half.latents.repeat(2, 1, 1, 1), half.times.repeat(2), half.text.repeat(2, 1, 1), None)
    found: Figures = {}
    with torch.no_grad(), mixing(unet, lambda name: ASKED_AGAIN.search(name) is not None) as layers:
        found["base: step s"] = setup.seconds(lambda: call.of(unet))
        for name, plan in _PLANS.items():
            with _planned(plan):
                layers.rows([mixed_maps([(r, 1.0)]) for r in resident])
                setup.fresh()
                found[f"8 concepts, {name}: step s"] = setup.seconds(lambda: call.of(unet))
                found[f"8 concepts, {name}: peak GB"] = setup.peak()
        swap = lambda: layers.rows([mixed_maps([(r, 1.0)]) for r in resident[::-1]])  # noqa: E731
        found["swap of all, s"] = setup.seconds(swap)
        seconds = found["8 concepts, auto: step s"]
        assert isinstance(seconds, float) and isinstance(found["base: step s"], float)
        found["8 concepts × base"] = seconds / found["base: step s"]
        found["pictures a second, 25 steps, UNet alone"] = count / (25 * seconds)
    return found


_PLANS = {
    "auto": None,
    "weight form": functional.Plan("weight", "weight"),
    "map form": functional.Plan("map", "map"),
}


@contextlib.contextmanager
def _planned(plan: functional.Plan | None) -> Iterator[None]:
    """Within: every convolution takes this form."""
    usual = mixed.row_plan
    if plan is not None:
        mixed.row_plan = lambda *args: plan
    try:
        yield
    finally:
        mixed.row_plan = usual


def trainings(setup: Setup) -> Figures:
    """Four trainings, a picture each, 512², bf16: one after another, and in one batch."""
    unet = unet_of(setup.sd15, setup.device, torch.bfloat16)
    call, count, spec = asked(unet, 4, setup.side(512)), 4, SPECS["atoms + Dc"]
    found: Figures = {}
    single: Figures = {}
    step_figures(setup, unet, call.rows(slice(0, 1)), "atoms + Dc", single)
    alone = single["atoms + Dc: step s"]
    several = [attach(unet_like(unet), spec) for _ in range(count)]
    joint = Mixing(unet)
    adam = torch.optim.AdamW([p for own in several for p in own.parameters()], lr=1e-4)

    def step() -> None:
        joint.set(row_maps(several, range(count)))
        call.of(unet).float().square().mean((1, 2, 3)).sum().backward()
        adam.step()
        adam.zero_grad(set_to_none=True)

    setup.fresh()
    assert isinstance(alone, float)
    found["four alone: s"] = 4 * alone
    found["in one batch: s"] = together = setup.seconds(step)
    found["in one batch: peak GB"] = setup.peak()
    found["× alone"] = together / (4 * alone)
    joint.close()
    return found
