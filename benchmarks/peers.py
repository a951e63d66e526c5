"""The peers: LoRA and Uni-LoRA through PEFT, each with a learned word, and DreamBooth, which trains every
weight. (Textual inversion is the tool's own recipe `word`.)"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from safetensors.numpy import load
from torch import nn

from atomdiff.base.stable_diffusion import Base
from atomdiff.base.textual_inversion import TriggerToken, added

from .handles import TRIGGER, Handle, Kept

ATTENTION = r".*attn\d\.to_(q|k|v|out\.0)"
WORDS = 1.25  # the rate of embeddings, as a multiple of LoRA's; searched with it
Attach = Callable[[Base], Handle]


class Adapted(Handle):
    """A base with a library's adapter in it; `adapter` is the library's object, which nothing else holds."""

    def __init__(self, base: Base, kept: Kept, trained: dict[str, nn.Parameter], adapter: nn.Module) -> None:
        super().__init__(base, kept, trained)
        self.adapter = adapter


def peft(config: str, targets: str, **options: Any) -> Attach:
    """An adapter of PEFT's class `config` in the layers whose whole name matches `targets`."""

    def attach(base: Base) -> Handle:
        import peft

        kept, before = Kept(base.unet), set(base.unet.parameters())
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice on options, which a benchmark sets on purpose
            torch.manual_seed(0)
            made = getattr(peft, config)(target_modules=targets, **options)
            model = peft.get_peft_model(base.unet, made)  # also holds what the layers share
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad and p not in before}
        return Adapted(base, kept, trained, model)

    return attach


def lora(rank: int) -> Attach:
    return peft("LoraConfig", ATTENTION, r=rank, lora_alpha=rank)


def uni_lora(numbers: int) -> Attach:
    return peft("UniLoraConfig", ATTENTION, r=4, theta_d_length=numbers)


def full(base: Base) -> Handle:
    """Every weight of the UNet, where it is."""
    kept = Kept(base.unet)
    trained = dict(base.unet.named_parameters())
    kept.values_of(list(trained.values()))
    base.unet.requires_grad_(True)
    return Handle(base, kept, trained)


def nothing(base: Base) -> Handle:
    """No weight: for words alone."""
    return Handle(base, Kept(base.unet), {})


class WithWords(Handle):
    """A peer together with two embeddings of the trigger, as advanced trainers of peers do it."""

    def __init__(self, base: Base, attach: Attach, rate: float = WORDS, vectors: int = 2) -> None:
        """`rate`: that of the embeddings, as a multiple of the peer's."""
        self.other = attach(base)
        trigger = TriggerToken(base, TRIGGER, vectors=vectors)
        relative = dict.fromkeys(trigger.vectors, rate)
        both = dict(trigger.vectors) | self.other.trained
        super().__init__(base, self.other.kept, both, relative, trigger)
        self.learned = trigger.embedding()

    @contextmanager
    def filed(self, data: bytes) -> Iterator[None]:
        vectors = {key: torch.from_numpy(load(data)[key]).float() for key in self.learned.vectors}
        moved = {key: vector.to(self.base.device) for key, vector in vectors.items()}
        with super().filed(data), added(self.base, [replace(self.learned, vectors=moved)]):
            yield

    def asked(self, prompt: str) -> str:
        return self.learned.convert_prompt(prompt)


def with_words(attach: Attach) -> Attach:
    return lambda base: WithWords(base, attach)


def textual_inversion(base: Base) -> Handle:
    """One embedding of the trigger alone."""
    return WithWords(base, nothing, rate=1.0, vectors=1)
