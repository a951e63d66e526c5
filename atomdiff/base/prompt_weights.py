"""Prompts as A1111 users write them: weights, parts, and no limit of length; encoded by compel.

    (sks:1.3) dog       the word weighs 1.3; (sks) weighs 1.1, ((sks)) 1.21, [sks] 1/1.1
    \\(sks\\)           brackets that are meant
    a dog BREAK a cat   parts that are encoded apart and put one after the other

A text encoder reads at most 77 tokens (the pocket's 40): longer prompts are cut at sentences, commas or words
into chunks that are encoded apart. A prompt with none of this is encoded by the pipeline itself, as ever.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atomdiff.base.stable_diffusion import (
    Base,
    PromptEmbeds,
    embed_prompts,
    encode_prompts,
    require_text_encoders,
)

STEP = 1.1  # what one pair of brackets is worth
MOST = 10.0  # of a weight, beyond which a text means nothing
_TOKENS = re.compile(r"\\[\\()\[\]]|[()\[\]]|:\s*([+-]?\d*\.?\d+)\s*\)|\bBREAK\b|[^\\()\[\]:B]+|[\s\S]")


@dataclass(frozen=True)
class Fragment:
    """Some text, and its weight."""

    text: str
    weight: float = 1.0


Parts = list[list[Fragment]]
"""A prompt: parts between BREAKs, of fragments each; one part, of one fragment of weight 1, is plain text."""


def parse(prompt: str) -> Parts:
    """A prompt's fragments, by A1111's rules. Brackets that no one closes reach to the end of the prompt;
    closing ones that no one opened are text."""
    fragments: list[Fragment | None] = []  # None: BREAK
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def weigh(start: int, factor: float) -> None:
        for i in range(start, len(fragments)):
            own = fragments[i]
            if own is not None:
                fragments[i] = Fragment(own.text, min(MOST, max(0.0, own.weight * factor)))

    for found in _TOKENS.finditer(prompt):
        token = found[0]
        if token in opened:
            opened[token].append(len(fragments))
        elif found[1] is not None and opened["("]:
            weigh(opened["("].pop(), float(found[1]))
        elif token == ")" and opened["("]:
            weigh(opened["("].pop(), STEP)
        elif token == "]" and opened["["]:
            weigh(opened["["].pop(), 1 / STEP)
        elif token == "BREAK":
            fragments.append(None)
        else:
            fragments.append(Fragment(token[1:] if token[0] == "\\" and len(token) > 1 else token))
    for start in opened["("]:
        weigh(start, STEP)
    for start in opened["["]:
        weigh(start, 1 / STEP)
    return _parts(fragments)


def _parts(fragments: Sequence[Fragment | None]) -> Parts:
    """Split at BREAKs; neighbours of one weight are one fragment."""
    parts: Parts = [[]]
    for own in fragments:
        if own is None:
            parts.append([])
        elif parts[-1] and parts[-1][-1].weight == own.weight:
            parts[-1][-1] = Fragment(parts[-1][-1].text + own.text, own.weight)
        else:
            parts[-1].append(own)
    parts = [[own for own in part if own.text] for part in parts]
    return [part for part in parts if any(own.text.strip() for own in part)] or [[Fragment("")]]


def plain_text(parts: Parts) -> str:
    """A prompt's words without weights and parts."""
    return " ".join("".join(own.text for own in part) for part in parts)


@dataclass(frozen=True)
class Prompt:
    """A prompt as text encoders take it. Where it is `plain`, with no weights or parts and not too long, the
    pipeline itself can encode it in full."""

    text: str  # its words
    parts: Parts
    plain: bool
    length: int  # tokens of its embeddings, a multiple of what text encoders read at once

    @classmethod
    def of(cls, base: Base, written: str) -> Prompt:
        """The prompt that somebody wrote, for a base."""
        parts = parse(written)
        text = plain_text(parts)
        if len(parts) == 1 and all(own.weight == 1 for own in parts[0]):
            count = len(base.pipe.tokenizer(text, truncation=False, verbose=False).input_ids)
            if count <= _room(base):
                return cls(text, parts, True, _room(base))
        reader = _readers(base)[0]
        chunks = [reader.get_token_ids_and_expand_weights(*_split(part), device="cpu")[0] for part in parts]
        return cls(text, parts, False, sum(map(len, chunks)))


def encode_weighted(base: Base, prompts: Sequence[Prompt]) -> list[PromptEmbeds]:
    """Each prompt's embeddings, (1, tokens, d), and SDXL's summary (1, p), which knows no weights; no
    gradient. Plain ones are the pipeline's own."""
    import torch

    if all(prompt.plain for prompt in prompts):
        hidden, pooled = encode_prompts(base, [prompt.text for prompt in prompts])
        rows = range(len(prompts))
        return [PromptEmbeds(hidden[i : i + 1], None if pooled is None else pooled[i : i + 1]) for i in rows]
    with torch.no_grad():
        return [_encode(base, prompt) for prompt in prompts]


def same_length(base: Base, some: Sequence[PromptEmbeds]) -> list[PromptEmbeds]:
    """The same, shorter ones followed by as many empty prompts as the longest one asks for."""
    import torch

    longest, made = max(own.hidden.shape[1] for own in some), []
    for own in some:
        missing = (longest - own.hidden.shape[1]) // _room(base)
        empty = encode_prompts(base, [""]).hidden.expand(len(own.hidden), -1, -1) if missing else own.hidden
        made.append(PromptEmbeds(torch.cat([own.hidden, *[empty] * missing], 1), own.pooled))
    return made


def batches(prompts: Mapping[int, Prompt], limit: int) -> list[list[int]]:
    """The places of prompts, at most `limit` together, and only such that are of one length: what a prompt is
    encoded to does not depend on its neighbours."""
    by_length: dict[int, list[int]] = {}
    for place, prompt in prompts.items():
        by_length.setdefault(prompt.length, []).append(place)
    return [some[i : i + limit] for some in by_length.values() for i in range(0, len(some), limit)]


def prompt_arguments(base: Base, prompts: Sequence[Prompt], avoided: Mapping[str, Any]) -> dict[str, Any]:
    """What a Stable Diffusion pipeline is told of prompts, and of negative ones, which are `negative_prompt`
    texts or embedded already: the texts where it can encode them itself."""
    texts = avoided.get("negative_prompt", [])
    embedded = avoided.get("negative_prompt_embeds")
    negative = {text: Prompt.of(base, text) for text in dict.fromkeys(texts)}
    short = embedded is None or embedded.shape[1] == _room(base)
    if short and all(prompt.plain for prompt in (*prompts, *negative.values())):
        told = {"negative_prompt": [negative[text].text for text in texts]} if texts else {}
        return {"prompt": [prompt.text for prompt in prompts], **avoided, **told}
    if embedded is not None:
        against = [PromptEmbeds(embedded, avoided.get("negative_pooled_prompt_embeds"))]
    else:
        known = {text: encode_weighted(base, [prompt])[0] for text, prompt in negative.items()}
        against = [known[text] for text in texts]
    same = same_length(base, [*encode_weighted(base, prompts), *against])
    return pipeline_arguments(same[: len(prompts)], same[len(prompts) :])


def pipeline_arguments(asked: Sequence[PromptEmbeds], avoided: Sequence[PromptEmbeds]) -> dict[str, Any]:
    """What a pipeline is told of embedded prompts and negative prompts, all of one length."""
    import torch

    given: dict[str, Any] = {}
    for prefix, embeds in (("", asked), ("negative_", avoided)):
        given[prefix + "prompt_embeds"] = torch.cat([hidden for hidden, _ in embeds])
        pooled = [own for _, own in embeds if own is not None]
        if pooled:
            given[prefix + "pooled_prompt_embeds"] = torch.cat(pooled)
    return given


def _encode(base: Base, prompt: Prompt) -> PromptEmbeds:
    import torch

    if prompt.plain:
        return embed_prompts(base, [prompt.text])
    readers = _readers(base)
    pooled = embed_prompts(base, [prompt.text]).pooled if len(readers) > 1 else None
    parts = []
    for part in prompt.parts:
        texts, weights = _split(part)
        made = [
            reader.get_embeddings_for_weighted_prompt_fragments([texts], [weights], device=base.device)
            for reader in readers
        ]
        parts.append(torch.cat(made, -1))  # (1, tokens, d), of all text encoders side by side
    return PromptEmbeds(torch.cat(parts, 1), pooled)


def _split(part: Sequence[Fragment]) -> tuple[list[str], list[float]]:
    return [own.text for own in part], [own.weight for own in part]


def _readers(base: Base) -> list[Any]:
    """What reads fragments with weights, for each text encoder."""
    from compel.embeddings_provider import EmbeddingsProvider, ReturnedEmbeddingsType

    pipe: Any = require_text_encoders(base).pipe
    kind = ReturnedEmbeddingsType.LAST_HIDDEN_STATES_NORMALIZED
    encoders = [(pipe.tokenizer, pipe.text_encoder)]
    if getattr(pipe, "text_encoder_2", None) is not None:
        kind = ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
        encoders.append((pipe.tokenizer_2, pipe.text_encoder_2))
    return [
        EmbeddingsProvider(*both, truncate=False, returned_embeddings_type=kind, device=base.device)
        for both in encoders
    ]


def _room(base: Base) -> int:
    """Tokens that a text encoder reads at once, with its marks of beginning and end."""
    return int(base.pipe.tokenizer.model_max_length)
