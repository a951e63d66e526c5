"""A concept's learned word as a textual inversion, as diffusers, A1111 and ComfyUI read one.

SD 1.x and 2.x: one tensor (n, d), named by the word. SDXL: `clip_l` (n, 768) and `clip_g` (n, 1280). The word
alone, without the filters, is less of a concept; it goes with a merged model, a diff or a LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from atomdiff.base.textual_inversion import ENCODERS
from atomdiff.concept.concept import Concept
from atomdiff.errors import ConceptError
from atomdiff.integrations.words import Learned, Vocabulary, learned_word

_KEYS = {"token": "clip_l", "token2": "clip_g"}  # of SDXL


def word_embeddings(concept: Concept, pipe: Any, strength: float = 1.0) -> dict[str, Tensor]:
    """Of each text encoder of the concept's base, "token" and "token2": the embeddings (n, d) that its word
    is read as, fp32 on the CPU. Raises ConceptError for a concept without a learned word."""
    if not concept.token:
        raise ConceptError(f"The concept {concept.title!r} has no learned word, so there is no embedding.")
    made = {}
    for key, vectors in concept.token.items():
        tokenizer, encoder = (getattr(pipe, name) for name in ENCODERS[key])
        known = Vocabulary(tokenizer, encoder)
        made[key] = embeddings_of(
            known.ids(concept.trigger),
            encoder.get_input_embeddings().weight,
            Learned(concept.trigger, vectors[:, 0], strength),
        )
    return made


def embeddings_of(word_ids: list[int], table: Tensor, learned: Learned) -> Tensor:
    """v + s Δv (n, d) fp32 for each token of a learned word: `word_ids` are the base's own tokens for it, and
    `table` (V, d) is the text encoder's. Raises ConceptError where they do not fit."""
    if learned.vectors.shape[1] != table.shape[1]:
        raise ConceptError(
            f"The learned word {learned.trigger!r} has vectors of {learned.vectors.shape[1]} numbers, but "
            f"this text encoder's have {table.shape[1]}: use the base it was made for."
        )
    word = learned_word(word_ids, [learned])
    return table[list(word.own)].detach().float().cpu() + word.change


def textual_inversion(trigger: str, embeddings: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the file."""
    if len(embeddings) == 1:
        return {trigger: next(iter(embeddings.values()))}
    return {_KEYS[key]: vectors for key, vectors in embeddings.items()}
