"""The checks, most important first. Each takes the setup and returns figures by name."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from atomdiff.core import functional, mixed
from atomdiff.core.inject import AtomSpec, attach
from atomdiff.core.mixing import mixing
from atomdiff.sampling.mixed import mixed_maps
from atomdiff.sampling.resident import Residents

from .. import mixed_batch as batches
from ..shapes import DTYPES, SD15, SDXL, TOY_SD15, TOY_SDXL, Asked, Clock, apart, asked, random_unet
from ..step_time import ATTENTION, atoms, lora, stepper

Figures = dict[str, float | str]
SPECS = {
    "atoms": AtomSpec(linear_atoms="none"),
    "atoms + Dc": AtomSpec(linear_atoms="attn2"),
    "recursive": AtomSpec(linear_atoms="none", conv_family="recursive", channel_groups=16),
}
TRAINED = {name: atoms(spec) for name, spec in SPECS.items()} | {"LoRA r=4": lora(ATTENTION)}
PLANS = {"auto": None} | {form: functional.Plan(form, form) for form in ("weight", "map")}


@dataclass(frozen=True)
class Setup:
    """Where and how large: `toy` is the dry run."""

    device: str
    toy: bool
    rounds: int = 5

    def unet(self, dtype: torch.dtype, xl: bool = False) -> Any:
        shape = (TOY_SDXL if xl else TOY_SD15) if self.toy else (SDXL if xl else SD15)
        return random_unet(shape, self.device, dtype)

    def asked(self, unet: Any, count: int, side: int) -> Asked:
        """Samples of pictures with so many pixels a side, in the dry run 64."""
        return asked(unet, count, 64 if self.toy else side)

    @property
    def clock(self) -> Clock:
        return Clock(self.device, wall=True)

    def seconds(self, call: Callable[[], object]) -> float:
        """Median of a few calls after two that do not count."""
        return median([self.clock(call) for _ in range(self.rounds + 2)][2:])

    def fresh(self) -> None:
        """Forget peaks and free what is unused."""
        gc.collect()
        if self.clock.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        """Peak GB since `fresh`; 0 where it is not known."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.clock.cuda else 0.0


# --------------------------------------------------------------------------------- are the numbers right


def correctness(setup: Setup) -> Figures:
    """A step of a training in fp16, bf16 and tf32 against fp32: the answer, and the gradient of the atoms;
    the base's own error beside them."""
    found: Figures = {}
    exact: dict[str, tuple[Tensor, Tensor]] = {}
    backends: tuple[Any, Any] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for name in ("fp32", "tf32", "bf16", "fp16"):
        for backend in backends:
            backend.allow_tf32 = name == "tf32"
        unet = setup.unet(DTYPES.get(name, torch.float32))
        call = setup.asked(unet, 2, 256)
        with torch.no_grad():
            exact.setdefault("base", (call.of(unet), torch.ones(1)))
            found[f"base answer, {name}"] = apart(call.of(unet), exact["base"][0])
        for kind, spec in SPECS.items():
            for form in ("map", "weight"):
                answer, gradient = _answer_and_gradient(unet, call, spec, form)
                wanted = exact.setdefault(kind, (answer, gradient))
                found[f"{kind} answer, {form} form, {name}"] = apart(answer, wanted[0])
                found[f"{kind} gradient, {form} form, {name}"] = apart(gradient, wanted[1])
        del unet
        setup.fresh()
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed
    return found


def _answer_and_gradient(unet: Any, call: Asked, spec: AtomSpec, form: str) -> tuple[Tensor, Tensor]:
    attached = attach(unet, spec, form)
    try:
        g = torch.Generator().manual_seed(0)
        attached.write({n: 0.05 * torch.randn(a.shape, generator=g) for n, a in attached.read().items()})
        answer = call.of(unet)
        answer.float().square().mean().backward()
        grads = [p.grad.flatten().clone() for p in attached.parameters() if p.grad is not None]
        return answer.detach(), torch.cat(grads)
    finally:
        attached.detach()


def mixed_correctness(setup: Setup) -> Figures:
    """A batch of different concepts against each alone, fp32 and fp16; and what batching alone does."""
    found: Figures = {}
    for name in ("fp32", "fp16"):
        unet = setup.unet(DTYPES[name])
        held, call = Residents(batches.base_of(unet)), setup.asked(unet, 4, 256)
        some = [held.add(c, str(i)) for i, c in enumerate(batches.random_concepts(held.base, 3))]
        maps = [*(mixed_maps([(resident, 1.0)]) for resident in some), {}]
        rows = [call.rows(slice(i, i + 1)) for i in range(4)]
        with torch.no_grad():
            alone = torch.cat([row.of(unet) for row in rows])
            found[f"batching alone, {name}"] = apart(call.of(unet), alone)
            with mixing(unet) as layers:
                each = []
                for row, own in zip(rows, maps, strict=True):
                    layers.rows([own])
                    each.append(row.of(unet))
                layers.rows(maps)
                found[f"mixed against each alone, {name}"] = apart(call.of(unet), torch.cat(each))
        del unet, held
        setup.fresh()
    return found


# ------------------------------------------------------------------------------------- several at once


def mixed_batch(setup: Setup) -> Figures:
    """Eight concepts in one batch, 512², fp16, guided (16 rows): beside the base; either form of the
    convolutions for all; swaps; pictures a second of 25 steps."""
    unet, count = setup.unet(torch.float16), 8
    held = Residents(batches.base_of(unet))
    some = [held.add(c, str(i)) for i, c in enumerate(batches.random_concepts(held.base, count))]
    call, found = setup.asked(unet, 2 * count, 512), Figures()
    for form, plan in PLANS.items():
        with torch.no_grad(), _planned(plan):
            setup.fresh()
            times = batches.steps(unet, some, call, setup.rounds, setup.clock)
            found |= {f"{name}, {form}: s": seconds for name, seconds in times.items()}
            found[f"peak GB, {form}"] = setup.peak()
        if form == "auto":
            seconds = times[f"{count} concepts"]
            found[f"{count} concepts × base"] = seconds / times["the base"]
            found["pictures a second, 25 steps, UNet alone"] = count / (25 * seconds)
    return found


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
    unet = setup.unet(torch.bfloat16)
    call = setup.asked(unet, 4, 512)
    setup.fresh()
    times = batches.trainings(unet, call, setup.rounds, setup.clock)
    found: Figures = {f"{name}: s": seconds for name, seconds in times.items()}
    return found | {"peak GB": setup.peak(), "together × alone": times["together"] / times["alone"]}


# --------------------------------------------------------------------------------- one step of a training


def _step(setup: Setup, unet: Any, call: Asked, what: str, found: Figures, how: str = "") -> None:
    """Seconds and peak GB of one training step; one that cannot be had costs no other."""
    try:
        with TRAINED[what](unet.train()) as parameters:
            setup.fresh()
            found[f"{what}{how}: step s"] = setup.seconds(stepper(unet, call, parameters))
            found[f"{what}{how}: peak GB"] = setup.peak()
    except Exception as error:
        found[f"{what}{how}: error"] = f"{type(error).__name__}: {error}"[:300]
    unet.eval()


def steps_sd15(setup: Setup, xl: bool = False) -> Figures:
    """One training step, bf16: what is trained, with PyTorch's attention, then with checkpointing; at 512²,
    for SDXL at 1024²."""
    found, unet = Figures(), setup.unet(torch.bfloat16, xl)
    call = setup.asked(unet, 1, 1024 if xl else 512)
    for what in ("atoms + Dc", "LoRA r=4", "atoms", "recursive"):
        _step(setup, unet, call, what, found)
    unet.enable_gradient_checkpointing()
    for what in ("atoms + Dc", "LoRA r=4"):
        _step(setup, unet, call, what, found, ", checkpointing")
    return found


def steps_sdxl(setup: Setup) -> Figures:
    """The same at SDXL's shape."""
    return steps_sd15(setup, xl=True)


def xformers(setup: Setup) -> Figures:
    """A training step of the default with xformers' attention."""
    found, unet = Figures(), setup.unet(torch.bfloat16)
    call = setup.asked(unet, 1, 512)
    _step(setup, unet, call, "atoms + Dc", found, ", PyTorch's attention")
    unet.enable_xformers_memory_efficient_attention()
    _step(setup, unet, call, "atoms + Dc", found, ", xformers")
    return found


def compiled(setup: Setup) -> Figures:
    """Drawing under `torch.compile`."""
    unet = setup.unet(torch.bfloat16)
    call = setup.asked(unet, 2, 512)
    with torch.no_grad():
        found: Figures = {"drawing step s": setup.seconds(lambda: call.of(unet))}
        fast, wanted = torch.compile(unet, backend="eager" if setup.toy else "inductor"), call.of(unet)
        found["compiling s"] = setup.clock(lambda: found.update(apart=apart(call.of(fast), wanted)))
        found["drawing step s, compiled"] = setup.seconds(lambda: call.of(fast))
    return found


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
