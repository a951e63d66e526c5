"""The concepts of atomdiff: a recipe a line, each judged from its own file in every precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any
from urllib.parse import urlencode

import torch
from torch import nn

from atomdiff.base.stable_diffusion import Base
from atomdiff.base.textual_inversion import TriggerToken
from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import BasePassport
from atomdiff.core import inject
from atomdiff.core.inject import AtomSpec
from atomdiff.core.layers import AtomConv2d
from atomdiff.files import safetensors_file
from atomdiff.sampling.gating import WHOLE
from atomdiff.training.defaults import POCKET
from atomdiff.training.loop import spec_of
from atomdiff.training.settings import TrainingSettings

from .protocol import AS_TOOL, TOOL_COURSE, TRIGGER, Handle, Kept, Method

PRECISIONS = ("fp16", "int8", "int4")
DEFAULT = TrainingSettings()
LINEAR_RATE = POCKET.linear_learning_rate / POCKET.learning_rate
VECTORS = DEFAULT.num_vectors if DEFAULT.train_token else 0
TOKEN_RATE = POCKET.token_learning_rate / POCKET.learning_rate
# What the tool writes beside the numbers, so that a file here is as large as one of the tool's.
ABOUT: dict[str, Any] = {
    "trigger": TRIGGER,
    "class_word": "dog",
    "name": "dog",
    "training": {
        "steps": 300,
        "learning_rate": POCKET.learning_rate,
        "linear_learning_rate": POCKET.linear_learning_rate,
        "pictures": 5,
        "class_pictures": POCKET.num_class_images if DEFAULT.with_prior_preservation else 0,
        "resolution": 64,
        "seed": 0,
        "instance_prompt": f"a {TRIGGER} dog",
        "class_prompt": "a dog",
    },
}


class Concepts(Handle):
    """A base with atoms, which goes through the concept file to be drawn."""

    def __init__(self, base: Base, spec: AtomSpec, vectors: int, linear_rate: float = LINEAR_RATE) -> None:
        """`linear_rate`: the rate of linear atoms, as a multiple of that of conv atoms."""
        kept = Kept(base.unet)
        self.attached = inject.attach(base.unet, spec)
        token = TriggerToken(base, TRIGGER, vectors=vectors) if vectors else None
        words: Mapping[str, nn.Parameter] = token.vectors if token else {}
        super().__init__(
            base, kept, self.attached.named_atoms() | dict(words), self._relative(words, linear_rate), token
        )

    def _relative(self, words: Mapping[str, nn.Parameter], linear_rate: float) -> dict[str, float]:
        """Rates relative to that of conv atoms."""
        layers = self.attached.layers
        rates = {
            name: 1.0 if isinstance(layers.get(name.partition("#")[0]), AtomConv2d) else linear_rate
            for name in self.attached.named_atoms()
        }
        return rates | dict.fromkeys(words, TOKEN_RATE)

    def to_bytes(self, precision: str) -> bytes:
        concept = Concept.of(
            self.base.unet,
            self.attached.spec,
            self.attached.read(),
            self.base.passport,
            token=self.token.read() if self.token else None,
            **ABOUT,
        )
        return safetensors_file.to_bytes(concept, precision)

    @contextmanager
    def filed(self, data: bytes) -> Iterator[list[Concept]]:
        self.attached.detach()
        try:
            yield [safetensors_file.from_bytes(data)]
        finally:
            self.attached.reattach()

    def detach(self) -> None:
        self.attached.detach()
        super().detach()


def _method(
    name: str, spec: AtomSpec, vectors: int, rate: float, linear_rate: float, precisions: tuple[str, ...]
) -> Method:
    text = f"{recipe(spec, vectors, linear_rate)}&{AS_TOOL}"

    def attach(base: Base) -> Concepts:
        return Concepts(base, spec, vectors, linear_rate)

    return Method(name, attach, rate, "ours", precisions, text, TOOL_COURSE)


def _ours(name: str, vectors: int = 0, rate: float = POCKET.learning_rate, **spec: Any) -> Method:
    """Where nothing else is said: m=9 DCT atoms and Dc kc=4 on cross-attention at one rate, whatever the
    tool's default is."""
    plain: dict[str, Any] = {"num_atoms": 9, "basis": "dct", "linear_atoms": "attn2", "linear_block": 4}
    return _method(name, AtomSpec(**(plain | spec)), vectors, rate, 1.0, PRECISIONS)


def recipe(spec: AtomSpec, vectors: int, linear_rate: float) -> str:
    """What is trained, as text: the first choices always, later families where they are used, and the rates
    of linear atoms and token relative to the convolutions'; a token's vectors where there are several."""
    chosen = {item.name: getattr(spec, item.name) for item in fields(spec)}
    always = ("num_atoms", "basis", "conv_layers", "linear_atoms", "linear_block")
    used = {key: value for key, value in chosen.items() if key in always or value != getattr(AtomSpec, key)}
    token = {"token": f"{TOKEN_RATE:g}"} if vectors else {}
    several = {"vectors": str(vectors)} if vectors > 1 else {}
    return urlencode(used | {"linear_rate": f"{linear_rate:g}"} | token | several)


TOOL = _method(
    "atomdiff's default",
    spec_of(DEFAULT),
    VECTORS,
    POCKET.learning_rate,
    LINEAR_RATE,
    (DEFAULT.precision,),
)
TOOL = replace(TOOL, training=TOOL.name)
EVERYWHERE = replace(TOOL, name="the same, on every prompt", drawn={"always": True})
STYLED = replace(
    _method(
        "for styles: shared Dc on all, both branches",
        spec_of(replace(DEFAULT, linear_atoms="all")),
        VECTORS,
        POCKET.learning_rate,
        LINEAR_RATE,
        (DEFAULT.precision,),
    ),
    drawn={"branches": "both", "span": WHOLE},
)
OURS = (
    TOOL,
    EVERYWHERE,
    STYLED,
    _ours("atoms m=9", linear_atoms="none"),
    _ours("atoms m=6", num_atoms=6, linear_atoms="none"),
    _ours("atoms m=4", num_atoms=4, linear_atoms="none"),
    _ours("atoms m=9 svd", basis="svd", linear_atoms="none"),
    _ours("Dc kc=2, attn2", num_atoms=0, linear_block=2),
    _ours("Dc kc=4, attn2", num_atoms=0),
    _ours("Dc kc=4, attn2 k v", num_atoms=0, linear_atoms="attn2_kv"),
    _ours("Dc kc=2, attn", num_atoms=0, linear_atoms="attn", linear_block=2),
    _ours("Dc kc=4, attn", num_atoms=0, linear_atoms="attn"),
    _ours("atoms m=9 + Dc kc=2, attn2", linear_block=2),
    _ours("atoms m=9 + Dc kc=4, attn2 k v", linear_atoms="attn2_kv"),
    _ours("atoms m=4 + Dc kc=4, attn2", num_atoms=4),
    _ours("atoms m=9 + Dc kc=4, attn2", num_atoms=9),
    _ours("recursive G=1", conv_family="recursive", linear_atoms="none"),
    _ours("recursive G=16", conv_family="recursive", channel_groups=16, linear_atoms="none"),
    _ours("recursive, each channel", conv_family="recursive", channel_groups=0, linear_atoms="none"),
    _ours("sparse m=9", conv_family="sparse", linear_atoms="none"),
    _ours("sparse m=12", conv_family="sparse", num_atoms=12, linear_atoms="none"),
    _ours("atoms m=9 + Dc kc=2 on α", coef_block=2, linear_atoms="none"),
    _ours("Kronecker kc=4, attn2", num_atoms=0, linear_family="kronecker"),
    _ours("Kronecker kc=8, attn2", num_atoms=0, linear_family="kronecker", linear_block=8),
    _ours(
        "Kronecker kc=8, attn", num_atoms=0, linear_atoms="attn", linear_family="kronecker", linear_block=8
    ),
    _ours("atoms m=4 + Kronecker kc=8, attn2", num_atoms=4, linear_family="kronecker", linear_block=8),
    _ours("Dc kc=4, attn2 + token", vectors=1, num_atoms=0),
    _ours("Kronecker kc=8, attn2 + token", 1, num_atoms=0, linear_family="kronecker", linear_block=8),
    _ours("Dc kc=4, attn2 + 2 vectors", vectors=2, num_atoms=0),
    _ours("Dc kc=4, attn2 + 4 vectors", vectors=4, num_atoms=0),
    _ours("atoms m=1 + Dc kc=4, attn2 + token", vectors=1, num_atoms=1),
    _ours("atoms m=1 + Dc kc=4, attn2 + 2 vectors", vectors=2, num_atoms=1),
    _ours("atoms m=4 + Dc kc=4, attn2 + token", vectors=1, num_atoms=4),
    _ours("atoms m=9 + Dc kc=4, attn2 + token", vectors=1),
)


def default_bytes_on_sd15() -> int:
    """The size of a concept of the tool's default recipe for a UNet of Stable Diffusion 1.5's shape.

    The weights are never touched, so they take no memory. A vector of a learned trigger is 768 numbers.
    """
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    unet.to_empty(device="cpu")
    attached = inject.attach(unet, spec_of(DEFAULT))
    generator = torch.Generator().manual_seed(0)
    atoms = {name: 0.01 * torch.randn(t.shape, generator=generator) for name, t in attached.read().items()}
    token = {"token": 0.01 * torch.randn(VECTORS, 1, 768, generator=generator)} if VECTORS else None
    passport = BasePassport(architecture="sd1-00000000", sketch=(0.5,) * 16, name="sd15")
    concept = Concept.of(unet, attached.spec, atoms, passport, token=token, **ABOUT)
    return len(safetensors_file.to_bytes(concept, DEFAULT.precision))
