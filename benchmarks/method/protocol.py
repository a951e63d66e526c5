"""What a method is to the benchmark: it attaches to a base, is trained, becomes a file, and goes again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlencode

import torch
from PIL import Image
from torch import Tensor, nn

from atomdiff.base.stable_diffusion import Base
from atomdiff.base.textual_inversion import TriggerToken, calls
from atomdiff.concept.concept import Concept
from atomdiff.sampling.gating import USUAL, Step
from atomdiff.training.settings import TrainingSettings

from ..court import Drawing
from . import peer_file

TRIGGER = "sks"


@dataclass(frozen=True)
class Course:
    """What of a training is more than its pictures, noise and steps: see the settings of the same names."""

    with_prior_preservation: bool
    lr_scheduler: str
    snr_gamma: float


CLASSIC = Course(with_prior_preservation=True, lr_scheduler="constant", snr_gamma=0.0)
"""DreamBooth's own, which keeps the class: for what acts on every prompt."""
TOOL_COURSE = Course(*(getattr(TrainingSettings, item.name) for item in fields(Course)))
"""That of atomdiff, whose concepts act on the prompts that call them, on the conditional branch."""
AS_TOOL = urlencode(vars(TOOL_COURSE) | {"span": "-".join(map(str, USUAL)), "ending": "0.5"})
"""What tells results apart of what is trained and drawn as the tool does it."""
DICTIONARIES = ("_modules", "_parameters", "_buffers")  # what adding or replacing a layer writes to


@dataclass(frozen=True)
class Method:
    """`attach` gives a base its trainable numbers. `rate` is where the search of a learning rate starts, 0
    where nothing is trained. `family` is ours, peer, as ours or reference; `precisions` are the number
    formats of its files, each judged by itself after one training. `recipe` is what else tells results apart
    that were made under one name. `drawn` is what of the drawing is unlike the others'; what a peer learnt
    acts on all that is drawn, as by its library, or with `called` as atomdiff's concepts do. Methods of one
    `training` differ in their drawing alone."""

    name: str
    attach: Callable[[Base], Handle]
    rate: float
    family: str = "peer"
    precisions: tuple[str, ...] = ("fp16",)
    recipe: str = ""
    course: Course = CLASSIC
    called: bool = False
    drawn: Mapping[str, Any] = field(default_factory=dict)
    training: str = ""

    def label(self, precision: str) -> str:
        """The name of a row."""
        return self.name if len(self.precisions) == 1 else f"{self.name}, {precision}"


class Kept:
    """A model's modules as they are now, for `restore`: the same objects with the same numbers."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(module, type(module), _copied(vars(module))) for module in model.modules()]
        self._trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
        self._values: dict[nn.Parameter, Tensor] = {}

    def values_of(self, parameters: Sequence[nn.Parameter]) -> None:
        """Also keep the numbers of these, which will be trained in place."""
        self._values |= {parameter: parameter.detach().clone() for parameter in parameters}

    def value_of(self, parameter: nn.Parameter) -> Tensor:
        """What a parameter of `values_of` was."""
        return self._values[parameter]

    def restore(self) -> None:
        """Undoes added and replaced layers, patched forwards, changed classes and trained numbers."""
        for module, kind, state in self._modules:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(_copied(state))
        for parameter, trainable in self._trainable.items():
            parameter.requires_grad_(trainable)
            parameter.grad = None
        with torch.no_grad():
            for parameter, values in self._values.items():
                parameter.copy_(values)


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: dict(value) if key in DICTIONARIES else value for key, value in state.items()}


class Handle:
    """A method attached to a base: the numbers that are trained, by name, and all that is done with them.

    `relative` scales the rate of those whose name it holds; `token` is the trigger's, if it is trained.
    """

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

    def to_bytes(self, precision: str) -> bytes:
        """The file that keeps what was trained."""
        return peer_file.to_bytes(self.trained, precision)

    @contextmanager
    def filed(self, data: bytes) -> Iterator[list[Concept]]:
        """Within: the base draws what the file says, with the concepts that are handed out."""
        with self.holding(peer_file.from_bytes(data, self.trained)):
            yield []

    @contextmanager
    def holding(self, numbers: Mapping[str, Tensor]) -> Iterator[None]:
        """Within: the base draws with these numbers in place of those that were trained."""
        with torch.no_grad():
            for name, values in numbers.items():
                self.trained[name].copy_(values)
        yield

    @contextmanager
    def zeroed(self) -> Iterator[None]:
        """Within: the base is as it was without what was learnt."""
        learnt = {name: p.data for name, p in self.trained.items()}
        try:
            for name, parameter in self.trained.items():
                parameter.data = self.nothing(name)
            yield
        finally:
            for name, parameter in self.trained.items():
                parameter.data = learnt[name]

    def nothing(self, name: str) -> Tensor:
        """What this parameter is where nothing was learnt; of an adapter zeros."""
        return torch.zeros_like(self.trained[name])

    def asked(self, prompt: str) -> str:
        """The prompt as the base must be given it within `filed`."""
        return prompt

    def detach(self) -> None:
        """The base is as it was, bit for bit."""
        self.kept.restore()


@dataclass(frozen=True)
class Called(Drawing):
    """Draws what a handle learnt as atomdiff draws a concept, on a base without pooled embeddings: for
    prompts that say the trigger, on the conditional branch of guidance, within the span."""

    handle: Handle | None = None

    def __call__(
        self, base: Base, concepts: list[Concept], prompts: Sequence[str], seed: int, times: int = 1
    ) -> list[Image.Image]:
        assert self.handle
        with self._conditional(base) if calls(prompts[0], TRIGGER) else self.handle.zeroed():
            return super().__call__(base, concepts, prompts, seed, times)

    @contextmanager
    def _conditional(self, base: Base) -> Iterator[None]:
        whole, step = base.unet.forward, Step(base, self.branches, self.span)

        def forward(sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **others: Any) -> Any:
            assert self.handle
            step.begin(base.unet, (sample, timestep))
            first, made = step.first(len(sample)), []
            if first:
                with self.handle.zeroed():
                    made += whole(sample[:first], timestep, encoder_hidden_states[:first], **others)
            if first < len(sample):
                rest = sample[first:], timestep, encoder_hidden_states[first:]
                adapted = whole(*rest, **others)[0]
                if step.share < 1:
                    with self.handle.zeroed():
                        adapted = torch.lerp(whole(*rest, **others)[0], adapted, step.share)
                made.append(adapted)
            return (torch.cat(made),)

        base.unet.forward = forward
        try:
            yield
        finally:
            del base.unet.forward


def fingerprint(model: nn.Module) -> str:
    """A digest of every weight and its name, to see that a model is what it was."""
    digest = hashlib.blake2b(digest_size=8)
    for name, values in model.state_dict().items():
        digest.update(name.encode())
        digest.update(values.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
