"""A peer attached to a base: trained in the benchmark's own loop, filed in fp16, drawn from, and taken out.

Every peer sees the pictures, noise and timesteps that the tool's own training would see at the same step, as
DreamBooth trains: class pictures beside the subject's, a constant rate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.numpy import load, save
from torch import Tensor, nn

from atomdiff.base.stable_diffusion import Base
from atomdiff.base.textual_inversion import TriggerToken
from atomdiff.training.batches import Sampler
from atomdiff.training.forward import TrainingData
from atomdiff.training.latents import LiveTable
from atomdiff.training.objective import diffusion_loss

TRIGGER = "sks"
DICTIONARIES = ("_modules", "_parameters", "_buffers")  # what adding or replacing a layer writes to


class Kept:
    """A model's modules as they are now, for `restore`: the same objects with the same numbers."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(module, type(module), _copied(vars(module))) for module in model.modules()]
        self._trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
        self._values: dict[nn.Parameter, Tensor] = {}

    def values_of(self, parameters: list[nn.Parameter]) -> None:
        """Also keep the numbers of these, which will be trained in place."""
        self._values |= {parameter: parameter.detach().clone() for parameter in parameters}

    def restore(self) -> None:
        """Undoes added and replaced layers, patched forwards, changed classes and trained numbers."""
        for module, kind, state in self._modules:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(_copied(state))
        for parameter, trainable in self._trainable.items():
            parameter.requires_grad_(trainable)
            parameter.grad = None
        for parameter, values in self._values.items():
            parameter.data.copy_(values)


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: dict(value) if key in DICTIONARIES else value for key, value in state.items()}


class Handle:
    """The numbers that are trained, by name; `relative` scales the rate of those whose name it holds, and
    `token` is the trigger's, if it is trained."""

    def __init__(
        self,
        base: Base,
        kept: Kept,
        trained: Mapping[str, nn.Parameter],
        relative: Mapping[str, float] | None = None,
        token: TriggerToken | None = None,
    ) -> None:
        self.base, self.kept, self.token = base, kept, token
        self.trained = dict(trained)
        self.relative = dict(relative or {})

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser."""
        rates: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.trained.items():
            rates.setdefault(self.relative.get(name, 1.0) * rate, []).append(parameter)
        return [{"params": parameters, "lr": lr} for lr, parameters in rates.items()]

    def numbers(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.trained.values())

    def to_bytes(self) -> bytes:
        """A safetensors file in fp16, under the library's names, as peers are shared."""
        return save({name: p.detach().half().cpu().numpy() for name, p in self.trained.items()})

    @contextmanager
    def filed(self, data: bytes) -> Iterator[None]:
        """Within: the base draws what the file says."""
        with torch.no_grad():
            for name, values in load(data).items():
                self.trained[name].copy_(torch.from_numpy(values))
        yield

    def asked(self, prompt: str) -> str:
        """The prompt as the base must be given it within `filed`."""
        return prompt

    def detach(self) -> None:
        """The base is as it was, bit for bit."""
        self.kept.restore()


def fit(handle: Handle, data: TrainingData, steps: int, batch: int, seed: int, rate: float) -> float:
    """Trains what the handle trains, on so many pictures a step and as many of the class, at a constant rate;
    returns the last loss. A loss that is no number ends it: what is there then is judged."""
    base, trained = handle.base, list(handle.trained.values())
    table = LiveTable(data.table, base, handle.token) if handle.token else data.table  # type: ignore[arg-type]
    adam = torch.optim.AdamW(handle.groups(rate), weight_decay=0.0)
    times = int(base.scheduler.config.num_train_timesteps)
    caches = ((data.instance, "instance"), (data.prior, "class"))
    samplers = [Sampler(cache, seed, name, times) for cache, name in caches if cache]
    loss = 0.0
    for step in range(steps):
        parts = [sampler.batch(step * batch, batch) for sampler in samplers]
        rows = [row for part in parts for row in part.prompts]
        total = diffusion_loss(
            base.unet,
            base.scheduler,
            torch.cat([part.latents for part in parts]).to(base.device),
            table.rows(rows, base.device).hidden,
            None,
            torch.cat([part.noise for part in parts]).to(base.device),
            torch.cat([part.timesteps for part in parts]).to(base.device),
            instances=batch,
            prior_weight=1.0,
        ).total
        total.backward()
        if not nn.utils.clip_grad_norm_(trained, 1.0).isfinite():
            break
        adam.step()
        adam.zero_grad()
        loss = float(total.detach())
    return loss


def fingerprint(model: nn.Module) -> str:
    """A digest of every weight and its name, to see that a model is what it was."""
    digest = hashlib.blake2b(digest_size=8)
    for name, values in model.state_dict().items():
        digest.update(name.encode())
        digest.update(values.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
