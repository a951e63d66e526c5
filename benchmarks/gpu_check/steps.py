"""What one step takes, in time and memory: of a training, with xformers and checkpointing, and compiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..step_time import ATTENTION, atoms, lora
from .asked import Asked, asked, unet_of
from .setup import SPECS, Figures, Setup, apart

TRAINED = {name: atoms(spec, "auto") for name, spec in SPECS.items()} | {"LoRA r=4": lora(ATTENTION)}


def guarded(found: Figures, name: str, call: Callable[[], None]) -> None:
    """One figure that cannot be had costs no other."""
    try:
        call()
    except Exception as error:
        found[f"{name}: error"] = f"{type(error).__name__}: {error}"[:300]


def step_figures(setup: Setup, unet: Any, call: Asked, what: str, found: Figures, how: str = "") -> None:
    """Seconds and peak GB of one training step."""
    unet.train()
    with TRAINED[what](unet) as parameters:
        adam = torch.optim.AdamW(parameters, lr=1e-4)

        def step() -> None:
            call.of(unet).float().square().mean().backward()
            adam.step()
            adam.zero_grad(set_to_none=True)

        setup.fresh()
        found[f"{what}{how}: step s"] = setup.seconds(step)
        found[f"{what}{how}: peak GB"] = setup.peak()
    unet.eval()


def steps_sd15(setup: Setup) -> Figures:
    """One training step, 512², bf16: what is trained, with PyTorch's attention; then variations of the
    default."""
    found: Figures = {}
    unet = unet_of(setup.sd15, setup.device, torch.bfloat16)
    call = asked(unet, 1, setup.side(512))
    for what in (*SPECS, "LoRA r=4"):
        guarded(found, what, partial(step_figures, setup, unet, call, what, found))
    unet.enable_gradient_checkpointing()
    for what in ("atoms + Dc", "LoRA r=4"):
        guarded(found, what, partial(step_figures, setup, unet, call, what, found, ", checkpointing"))
    unet.disable_gradient_checkpointing()
    return found


def steps_sdxl(setup: Setup) -> Figures:
    """The same at SDXL's shape, 1024²."""
    found: Figures = {}
    unet = unet_of(setup.sdxl, setup.device, torch.bfloat16)
    call = asked(unet, 1, setup.side(1024))
    for what in ("atoms + Dc", "LoRA r=4", "atoms", "recursive"):
        guarded(found, what, partial(step_figures, setup, unet, call, what, found))
    unet.enable_gradient_checkpointing()
    how = ", checkpointing"
    guarded(found, how, lambda: step_figures(setup, unet, call, "atoms + Dc", found, how))
    return found


def xformers(setup: Setup) -> Figures:
    """A training step of the default with xformers' attention."""
    found: Figures = {}
    unet = unet_of(setup.sd15, setup.device, torch.bfloat16)
    call = asked(unet, 1, setup.side(512))
    step_figures(setup, unet, call, "atoms + Dc", found, ", PyTorch's attention")
    unet.enable_xformers_memory_efficient_attention()
    step_figures(setup, unet, call, "atoms + Dc", found, ", xformers")
    return found


def compiled(setup: Setup) -> Figures:
    """Drawing with a folded concept and training the default under `torch.compile`."""
    found: Figures = {}
    unet = unet_of(setup.sd15, setup.device, torch.bfloat16)
    call = asked(unet, 2, setup.side(512))
    with torch.no_grad():
        found["drawing step s"] = setup.seconds(lambda: call.of(unet))
        start = time.perf_counter()
        fast = torch.compile(unet, backend="eager" if setup.toy else "inductor")
        wanted = call.of(unet)
        found["apart"] = apart(call.of(fast), wanted)
        found["compiling s"] = time.perf_counter() - start
        found["drawing step s, compiled"] = setup.seconds(lambda: call.of(fast))
    return found
