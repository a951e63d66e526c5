"""A learned trigger: vectors added to the embeddings of the tokens that the trigger word is made of.

As in textual inversion (Gal et al. 2022, arXiv 2208.01618), but from the word's own embedding on and together
with the atoms: v' = v + s Δv for every token of the trigger, in each text encoder (SDXL has two). Δv starts
at zero, so an untrained token is the base's, and like atoms it has a strength s and adds up. The embedding
table itself is never written to: the change is added to what comes out of it, while `applied` is entered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from atomdiff.errors import ConceptError, SettingsError
from atomdiff.models.base import Base

if TYPE_CHECKING:
    from atomdiff.concepts.concept import Concept

MAX_TOKENS = 8  # of a trigger: it is a word, not a prompt
_ENCODERS = {"token": ("tokenizer", "text_encoder"), "token2": ("tokenizer_2", "text_encoder_2")}

Vectors = dict[str, Tensor]
"""For each text encoder, "token" and "token2": Δv (n, 1, d) for the n tokens of a trigger, in order."""


class TriggerToken:
    """The vectors of a trigger, to be trained; zeros at first, fp32.

    Raises SettingsError for a trigger of no or too many tokens, or one that shares a token with a prompt of
    `spared`, which must keep its meaning.
    """

    def __init__(self, base: Base, trigger: str, spared: Sequence[str] = ()) -> None:
        self.trigger = trigger
        self.ids = token_ids(base, trigger)
        for key, own in self.ids.items():
            if not 1 <= len(own) <= MAX_TOKENS:
                raise SettingsError(
                    f"The trigger {trigger!r} is {len(own)} tokens long and a learned one has 1 to "
                    f"{MAX_TOKENS}: give a short word as the trigger."
                )
            for prompt in spared:
                if set(own) & set(_ids(base, key, prompt)):
                    raise SettingsError(
                        f"The trigger {trigger!r} shares a token with the prompt {prompt!r}, which would "
                        "change its meaning too: give another trigger, or train no token."
                    )
        self.vectors = {
            key: nn.Parameter(torch.zeros(len(own), 1, _table(base, key).weight.shape[1], device=base.device))
            for key, own in self.ids.items()
        }

    def read(self) -> Vectors:
        """A copy on the CPU."""
        return {key: vector.detach().cpu().clone() for key, vector in self.vectors.items()}

    def concerns(self, base: Base, prompt: str) -> bool:
        """Whether a prompt holds any token of the trigger."""
        return any(set(own) & set(_ids(base, key, prompt)) for key, own in self.ids.items())


@contextlib.contextmanager
def applied(base: Base, concepts: Sequence[tuple[Concept, float]]) -> Iterator[None]:
    """Within: the base's text encoders know the concepts' triggers, each at its strength. Raises ConceptError
    where a token does not fit the base."""
    changes = []
    for concept, strength in concepts:
        vectors = concept.token
        if not vectors or strength == 0:
            continue
        ids = token_ids(base, concept.trigger)
        wanted = {key: (len(own), 1, _table(base, key).weight.shape[1]) for key, own in ids.items()}
        shapes = {key: tuple(vector.shape) for key, vector in vectors.items()}
        if wanted != shapes:
            raise ConceptError(
                f"The learned trigger {concept.trigger!r} of {concept.title!r} has the shapes {shapes}, but "
                f"the text encoders of {base.name!r} need {wanted}: use the base it was made for."
            )
        changes.append((ids, vectors, strength))
    with added(base, changes):
        yield


@contextlib.contextmanager
def added(
    base: Base, changes: Sequence[tuple[Mapping[str, list[int]], Mapping[str, Tensor], float]]
) -> Iterator[None]:
    """Within: strength · Δv is added to the embeddings of the tokens of each (tokens, Δv, strength)."""
    handles = []
    try:
        for ids, vectors, strength in changes:
            for key, own in ids.items():
                handles.append(_table(base, key).register_forward_hook(_adder(own, vectors[key], strength)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def token_ids(base: Base, trigger: str) -> dict[str, list[int]]:
    """The different tokens of a trigger in order, for each text encoder of the base."""
    encoders = [key for key in _ENCODERS if getattr(base.pipe, _ENCODERS[key][1], None) is not None]
    return {key: list(dict.fromkeys(_ids(base, key, trigger))) for key in encoders}


def _ids(base: Base, key: str, text: str) -> list[int]:
    tokenizer = getattr(base.pipe, _ENCODERS[key][0])
    return list(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids)


def _table(base: Base, key: str) -> Any:
    return getattr(base.pipe, _ENCODERS[key][1]).get_input_embeddings()


def _adder(ids: list[int], vectors: Tensor, strength: float) -> Any:
    """A hook on an embedding table: Δv (n, 1, d) where token ids[i] stands, summed in fp32, rounded once."""

    def hook(table: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        places = torch.stack([args[0] == own for own in ids], -1)  # (b, tokens, n)
        if not places.any():
            return None
        moved = out.float() + strength * (places.float() @ vectors[:, 0].to(out.device))
        return torch.where(places.any(-1, keepdim=True), moved.to(out.dtype), out)

    return hook
