"""Methods that no library at hand offers for a UNet, and what brackets all: the base and full fine-tuning."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from atomdiff.base.stable_diffusion import Base
from atomdiff.base.textual_inversion import TriggerToken, added

from .peers import ATTENTION, lora, uni_lora
from .protocol import AS_TOOL, TOOL_COURSE, TRIGGER, Handle, Kept, Method


class InPlace(Handle):
    """Those of the UNet's own parameters whose name is chosen, trained where they are."""

    def __init__(self, base: Base, chosen: Callable[[str], bool]) -> None:
        kept = Kept(base.unet)
        trained = {name: p for name, p in base.unet.named_parameters() if chosen(name)}
        kept.values_of(list(trained.values()))
        for parameter in trained.values():
            parameter.requires_grad_(True)
        super().__init__(base, kept, trained)

    def nothing(self, name: str) -> Tensor:
        return self.kept.value_of(self.trained[name])


def _in_place(chosen: Callable[[str], bool]) -> Callable[[Base], Handle]:
    return partial(InPlace, chosen=chosen)


# ------------------------------------------------------------------------------------ textual inversion


class Words(Handle):
    """The embeddings of the trigger's tokens, trained; the UNet stays as it is (arXiv 2208.01618)."""

    def __init__(self, base: Base, vectors: int = 1) -> None:
        trigger = TriggerToken(base, TRIGGER, vectors=vectors)
        super().__init__(base, Kept(base.unet), trigger.vectors, token=trigger)
        self.reading = trigger.reading()

    @contextmanager
    def holding(self, numbers: Mapping[str, Tensor]) -> Iterator[None]:
        vectors = {key: vector.to(self.base.device) for key, vector in numbers.items()}
        with added(self.base, [replace(self.reading, vectors=vectors)]):
            yield

    def asked(self, prompt: str) -> str:
        return self.reading.spoken(prompt)


class WordsAnd(Words):
    """The trigger's embeddings trained together with another method, as advanced trainers of peers do."""

    def __init__(self, base: Base, attach: Callable[[Base], Handle], words: float, vectors: int = 1) -> None:
        """`words`: the rate of the embeddings, as a multiple of the other method's."""
        other = attach(base)
        super().__init__(base, vectors)
        self.other, self.kept = other, other.kept
        self.relative = dict.fromkeys(self.trained, words)
        self.trained |= other.trained

    @contextmanager
    def zeroed(self) -> Iterator[None]:
        with self.other.zeroed():  # the words are in no prompt that does not call them
            yield

    @contextmanager
    def holding(self, numbers: Mapping[str, Tensor]) -> Iterator[None]:
        others = {name: values for name, values in numbers.items() if name in self.other.trained}
        words = {name: values for name, values in numbers.items() if name not in others}
        with self.other.holding(others), super().holding(words):
            yield


# ----------------------------------------------------------------------------------------------- SVDiff


class Shifted(nn.Module):
    """W' = W + U (relu(σ + δ) − σ) Vᵀ for W = U diag(σ) Vᵀ, as a matrix (c_out, everything else)."""

    U: Tensor
    S: Tensor
    Vh: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        for name, part in zip(["U", "S", "Vh"], torch.linalg.svd(weight.flatten(1), False), strict=True):
            self.register_buffer(name, part)
        self.shift = nn.Parameter(torch.zeros_like(self.S))

    def forward(self, weight: Tensor) -> Tensor:
        change = torch.relu(self.S + self.shift) - self.S
        return weight + ((self.U * change) @ self.Vh).view_as(weight)


def _svdiff(base: Base) -> Handle:
    """Spectral shifts of every weight matrix of the UNet (arXiv 2303.11305, equation 5)."""
    kept = Kept(base.unet)
    trained = {}
    for name, module in list(base.unet.named_modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            shifted = Shifted(module.weight.detach())
            parametrize.register_parametrization(module, "weight", shifted)
            trained[name] = shifted.shift
    return Handle(base, kept, trained)


# ---------------------------------------------------------------------------------------------- LoRA-XS


class Inner(nn.Module):
    """W' = W + U_r diag(σ_r) R V_rᵀ: R (r, r) between the r first singular directions of W."""

    left: Tensor
    right: Tensor

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        left, sigma, right = torch.linalg.svd(weight, False)
        self.register_buffer("left", left[:, :rank] * sigma[:rank])
        self.register_buffer("right", right[:rank])
        self.R = nn.Parameter(torch.zeros(rank, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.left @ self.R @ self.right


def lora_xs(rank: int) -> Callable[[Base], Handle]:
    """LoRA-XS on the attention layers (arXiv 2405.17604, equation 2)."""

    def attach(base: Base) -> Handle:
        kept = Kept(base.unet)
        trained = {}
        for name, module in list(base.unet.named_modules()):
            if isinstance(module, nn.Linear) and re.search(ATTENTION, name):
                inner = Inner(module.weight.detach(), rank)
                parametrize.register_parametrization(module, "weight", inner)
                trained[name] = inner.R
        return Handle(base, kept, trained)

    return attach


def _nothing(base: Base) -> Handle:
    return Handle(base, Kept(base.unet), {})


AS_OURS = "as ours"
WORD_RATE = 5e-3  # of embeddings beside a peer
EQUAL_BYTES = ("fp16", "int4")  # of the strongest peers: as they are shared, and as atomdiff writes its own


def _with_words(name: str, attach: Callable[[Base], Handle], rate: float, vectors: int) -> Method:
    """A peer together with embeddings, which learn at WORD_RATE when the peer does at `rate`."""
    words = WORD_RATE / rate
    worded = partial(WordsAnd, attach=attach, words=words, vectors=vectors)
    return Method(name, worded, rate, precisions=EQUAL_BYTES)


def _as_ours(method: Method) -> Method:
    """A peer trained and drawn as atomdiff does it: what is left is what its numbers are."""
    name = f"{method.name}, {AS_OURS}"
    return replace(method, name=name, family=AS_OURS, recipe=AS_TOOL, course=TOOL_COURSE, called=True)


BASE = Method("base", _nothing, 0.0, "reference")
# Its rate is better than 3e-4 on tuning subjects, and than 3e-5 on those of `benchmarks.likeness`.
FULL = Method("full fine-tuning", _in_place(lambda name: True), 1e-4, "reference")
_full = replace(_with_words("full fine-tuning + 2 words", FULL.attach, FULL.rate, 2), precisions=("fp16",))
_FULL_WORDED = tuple(replace(method, family="reference") for method in (_full, _as_ours(_full)))
WORDED_FULL = tuple(method.name for method in _FULL_WORDED)
WORDED = (
    _with_words("LoRA r=1, attention + word", lora(1, ATTENTION), 4e-3, 1),
    _with_words("LoRA r=1, attention + 2 words", lora(1, ATTENTION), 4e-3, 2),
    _with_words("LoRA r=4, attention + 2 words", lora(4, ATTENTION), 4e-3, 2),
    _with_words("Uni-LoRA 4608 + 2 words", uni_lora(4608), 4e-2, 2),
    _with_words("LoRA-XS r=8, attention + 2 words", lora_xs(8), 5e-3, 2),
)
TWO_VECTORS = Method("textual inversion, 2 vectors", partial(Words, vectors=2), 1e-2)
HANDMADE = (
    *_FULL_WORDED,
    Method("textual inversion", Words, 1e-2),
    TWO_VECTORS,
    _as_ours(TWO_VECTORS),
    Method("textual inversion, 4 vectors", partial(Words, vectors=4), 1e-2),
    *WORDED,
    *map(_as_ours, WORDED),
    Method("LoRA-XS r=8, attention", lora_xs(8), 5e-3),
    Method("BitFit", _in_place(lambda name: name.endswith("bias")), 1e-3),
    Method("SVDiff", _svdiff, 1e-2),
)
