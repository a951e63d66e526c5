"""The checks, most important first. Each takes the setup and returns figures by name."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from atomdiff.core import functional, mixed
from atomdiff.core.inject import AtomSpec, attach
from atomdiff.core.mixing import Mixing, mixing
from atomdiff.sampling.mixed import ASKED_AGAIN, mixed_maps
from atomdiff.sampling.resident import Residents
from atomdiff.training.together import row_maps, unet_like

from ..mixed_batch import base_of, random_concepts
from .shapes import SD15, SDXL, TOY_SD15, TOY_SDXL, Asked, asked, unet_of

Figures = dict[str, float | str]
SPECS = {
    "atoms": AtomSpec(linear_atoms="none"),
    "atoms + Dc": AtomSpec(linear_atoms="attn2"),
    "recursive": AtomSpec(linear_atoms="none", conv_family="recursive", channel_groups=16),
}


@dataclass(frozen=True)
class Setup:
    """Where and how large: `toy` is the dry run."""

    device: str
    toy: bool
    rounds: int = 5

    @property
    def sd15(self) -> dict[str, Any]:
        return TOY_SD15 if self.toy else SD15

    @property
    def sdxl(self) -> dict[str, Any]:
        return TOY_SDXL if self.toy else SDXL

    def side(self, pixels: int) -> int:
        """The pixels of a check, in the dry run 64."""
        return 64 if self.toy else pixels

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    def seconds(self, call: Callable[[], object]) -> float:
        """Median of a few calls after two that do not count."""
        found = []
        for turn in range(self.rounds + 2):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            if turn >= 2:
                found.append(time.perf_counter() - start)
        return statistics.median(found)

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def fresh(self) -> None:
        """Forget peaks and free what is unused."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        """Peak GB since `fresh`; 0 where it is not known."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.cuda else 0.0


def apart(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖ in fp32."""
    return float((a.float() - b.float()).norm() / b.float().norm())


# --------------------------------------------------------------------------------------- correctness


def correctness(setup: Setup) -> Figures:
    """A step of a training in fp16, bf16 and tf32 against fp32: the answer, and the gradient of the atoms;
    the base's own error beside them."""
    found: Figures = {}
    exact: dict[str, tuple[Tensor, Tensor]] = {}
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for name, dtype, allowed in (
        ("fp32", torch.float32, False), ("tf32", torch.float32, True),
        ("bf16", torch.bfloat16, False), ("fp16", torch.float16, False),
    ):  # fmt: skip
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
        unet = unet_of(setup.sd15, setup.device, dtype)
        call = asked(unet, 2, setup.side(256))
        with torch.no_grad():
            exact.setdefault("base", (call.of(unet), torch.ones(1)))
            found[f"base answer, {name}"] = apart(call.of(unet), exact["base"][0])
        for kind in ("atoms", "atoms + Dc", "recursive"):
            for form in ("map", "weight"):
                answer, gradient = _answer_and_gradient(unet, call, SPECS[kind], form)
                wanted = exact.setdefault(kind, (answer, gradient))
                found[f"{kind} answer, {form} form, {name}"] = apart(answer, wanted[0])
                found[f"{kind} gradient, {form} form, {name}"] = apart(gradient, wanted[1])
        del unet
        setup.fresh()
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
    return found


def _answer_and_gradient(unet: Any, call: Asked, spec: AtomSpec, form: str) -> tuple[Tensor, Tensor]:
    attached = attach(unet, spec, form)
    try:
        g = torch.Generator().manual_seed(0)
        atoms = {name: 0.05 * torch.randn(a.shape, generator=g) for name, a in attached.read().items()}
        attached.write(atoms)
        answer = call.of(unet)
        answer.float().square().mean().backward()
        grads = [p.grad.flatten().clone() for p in attached.parameters() if p.grad is not None]
        return answer.detach(), torch.cat(grads)
    finally:
        attached.detach()


def mixed_correctness(setup: Setup) -> Figures:
    """A batch of different concepts against each alone, fp32 and fp16; and what batching alone does."""
    found: Figures = {}
    for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        unet = unet_of(setup.sd15, setup.device, dtype)
        base, call = base_of(unet), asked(unet, 4, setup.side(256))
        held = Residents(base)
        maps = [mixed_maps([(held.add(c, str(i)), 1.0)]) for i, c in enumerate(random_concepts(base, 3))] + [
            {}
        ]
        with torch.no_grad():
            alone = torch.cat([call.rows(slice(i, i + 1)).of(unet) for i in range(4)])
            found[f"batching alone, {name}"] = apart(call.of(unet), alone)
            with mixing(unet) as layers:
                each = []
                for i, own in enumerate(maps):
                    layers.rows([own])
                    each.append(call.rows(slice(i, i + 1)).of(unet))
                layers.rows(maps)
                found[f"mixed against each alone, {name}"] = apart(call.of(unet), torch.cat(each))
        del unet, base, held
        setup.fresh()
    return found


# ------------------------------------------------------------------------------------ steps, training


@contextlib.contextmanager
def trained(unet: Any, what: str) -> Iterator[list[nn.Parameter]]:
    """Within: the UNet trains this."""
    if what == "LoRA r=4":
        from peft import LoraConfig

        unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=r".*attn\d\.to_(q|k|v|out\.0)"))
        try:
            yield [p for p in unet.parameters() if p.requires_grad]
        finally:
            unet.unload_lora()
            unet.requires_grad_(False)
        return
    attached = attach(unet, SPECS[what])
    try:
        yield attached.parameters()
    finally:
        attached.detach()


def _step_figures(setup: Setup, unet: Any, call: Asked, what: str, found: Figures, how: str = "") -> None:
    """Seconds and peak GB of one training step."""
    unet.train()
    with trained(unet, what) as parameters:
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
        _guarded(found, what, partial(_step_figures, setup, unet, call, what, found))
    unet.enable_gradient_checkpointing()
    for what in ("atoms + Dc", "LoRA r=4"):
        _guarded(found, what, partial(_step_figures, setup, unet, call, what, found, ", checkpointing"))
    unet.disable_gradient_checkpointing()
    return found


def steps_sdxl(setup: Setup) -> Figures:
    """The same at SDXL's shape, 1024²."""
    found: Figures = {}
    unet = unet_of(setup.sdxl, setup.device, torch.bfloat16)
    call = asked(unet, 1, setup.side(1024))
    for what in ("atoms + Dc", "LoRA r=4", "atoms", "recursive"):
        _guarded(found, what, partial(_step_figures, setup, unet, call, what, found))
    unet.enable_gradient_checkpointing()
    how = ", checkpointing"
    _guarded(found, how, lambda: _step_figures(setup, unet, call, "atoms + Dc", found, how))
    return found


def xformers(setup: Setup) -> Figures:
    """A training step of the default with xformers' attention."""
    found: Figures = {}
    unet = unet_of(setup.sd15, setup.device, torch.bfloat16)
    call = asked(unet, 1, setup.side(512))
    _step_figures(setup, unet, call, "atoms + Dc", found, ", PyTorch's attention")
    unet.enable_xformers_memory_efficient_attention()
    _step_figures(setup, unet, call, "atoms + Dc", found, ", xformers")
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


# ------------------------------------------------------------------------------------ several at once


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
    _step_figures(setup, unet, call.rows(slice(0, 1)), "atoms + Dc", single)
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


def _guarded(found: Figures, name: str, call: Callable[[], None]) -> None:
    """One figure that cannot be had costs no other."""
    try:
        call()
    except Exception as error:
        found[f"{name}: error"] = f"{type(error).__name__}: {error}"[:300]


CHECKS: dict[str, Callable[[Setup], Figures]] = {
    "correctness": correctness,
    "mixed correctness": mixed_correctness,
    "mixed batch": mixed_batch,
    "steps, SD 1.5": steps_sd15,
    "trainings": trainings,
    "steps, SDXL": steps_sdxl,
    "xformers": xformers,
    "compiled": compiled,
}
