"""Are the numbers right: in half precisions against fp32, and of a mixed batch against each concept alone?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atomdiff.core.inject import AtomSpec, attach
from atomdiff.core.mixing import mixing
from atomdiff.sampling.mixed import mixed_maps
from atomdiff.sampling.resident import Residents

from ..mixed_batch import base_of, random_concepts
from .asked import Asked, asked, unet_of
from .setup import SPECS, Figures, Setup, apart


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
