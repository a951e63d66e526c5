"""A learned trigger: vectors added to the embeddings of the tokens that the trigger word is made of.

As in textual inversion (Gal et al. 2022, arXiv 2208.01618), but from the word's own embedding on and together
with the atoms: v' = v + s Δv for every token of the trigger, in each text encoder (SDXL has two). Δv starts
at zero, so an untrained token is the base's, and like atoms it has a strength s and adds up. A trigger may
have more vectors than tokens: then the word is read several times over, each time with vectors of its own.
The embedding table itself is never written to: the change is added to what comes out of it, within `added`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from atomdiff.base.stable_diffusion import Base
from atomdiff.errors import ConceptError, SettingsError

if TYPE_CHECKING:
    from atomdiff.concept.concept import Concept

MAX_TOKENS = 8  # of a trigger: it is a word, not a prompt
ENCODERS = {"token": ("tokenizer", "text_encoder"), "token2": ("tokenizer_2", "text_encoder_2")}
"""Key of a concept's vectors -> what a pipeline calls tokenizer and text encoder."""

Vectors = dict[str, Tensor]
"""For each text encoder, "token" and "token2": Δv (n, 1, d), for the tokens of a trigger in order, and again
for each further time that it is read."""


class TriggerToken:
    """The vectors of a trigger, to be trained; zeros at first, fp32.

    There are at least `vectors` of them: a word of fewer tokens is read several times over. Raises
    SettingsError for a trigger of no or too many tokens, or one that shares a token with a prompt of
    `spared`, which must keep its meaning.
    """

    def __init__(self, base: Base, trigger: str, spared: Sequence[str] = (), vectors: int = 1) -> None:
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
        times = -(-vectors // min(map(len, self.ids.values())))
        self.vectors = {
            key: nn.Parameter(torch.zeros(times * len(own), 1, _width(base, key), device=base.device))
            for key, own in self.ids.items()
        }

    def embedding(self) -> LearnedEmbedding:
        """As prompts take it while it is trained."""
        return LearnedEmbedding(self.trigger, self.ids, self.vectors)

    def read(self) -> Vectors:
        """A copy on the CPU."""
        return {key: vector.detach().cpu().clone() for key, vector in self.vectors.items()}

    def concerns(self, base: Base, prompt: str) -> bool:
        """Whether a prompt holds any token of the trigger."""
        return any(set(own) & set(_ids(base, key, prompt)) for key, own in self.ids.items())


@dataclass(frozen=True)
class LearnedEmbedding:
    """A trigger in prompts: its t different tokens and its n = r t vectors for each text encoder.

    The word is said r times in succession, and its tokens take their vectors as `places_of` says.
    """

    trigger: str
    ids: Mapping[str, list[int]]
    vectors: Mapping[str, Tensor]
    strength: float = 1.0

    @property
    def repeats(self) -> int:
        """r, how often the word is said."""
        return next((len(self.vectors[key]) // len(own) for key, own in self.ids.items()), 1)

    def convert_prompt(self, prompt: str) -> str:
        """The prompt with the trigger said r times wherever it stands, letters of other words apart."""
        if self.repeats == 1:
            return prompt
        said = re.compile(word_pattern(self.trigger))
        return said.sub(lambda found: " ".join([found[0]] * self.repeats), prompt)


def has_trigger(prompt: str, trigger: str) -> bool:
    """Whether a prompt has a trigger, be it in capitals, letters of other words apart; "" it always has."""
    return not trigger or re.search(word_pattern(trigger), prompt) is not None


def embeddings_of(base: Base, concepts: Sequence[tuple[Concept, float]]) -> list[LearnedEmbedding]:
    """Of the concepts that have a learned trigger and a strength other than 0. Raises ConceptError where the
    vectors do not fit the base."""
    found = []
    for concept, strength in concepts:
        vectors = concept.token
        if not vectors or strength == 0:
            continue
        ids = token_ids(base, concept.trigger)
        shapes = {key: tuple(vector.shape) for key, vector in vectors.items()}
        some, own = next(iter(ids.items()))
        times = max(1, shapes.get(some, (1,))[0] // max(1, len(own)))
        wanted = {key: (times * len(own), 1, _width(base, key)) for key, own in ids.items()}
        if wanted != shapes:
            raise ConceptError(
                f"The learned trigger {concept.trigger!r} of {concept.title!r} has the shapes {shapes}, but "
                f"the text encoders of {base.name!r} need {wanted}: use the base it was made for."
            )
        found.append(LearnedEmbedding(concept.trigger, ids, vectors, strength))
    return found


def convert_prompt(prompt: str, learned: Sequence[LearnedEmbedding]) -> str:
    """The prompt as text encoders must be given it within `added`. A word that several concepts are called by
    is said as often as the one that needs it most."""
    by_repeats = sorted(learned, key=lambda one: one.repeats)
    for one in {one.trigger.lower(): one for one in by_repeats}.values():
        prompt = one.convert_prompt(prompt)
    return prompt


@contextlib.contextmanager
def added(base: Base, learned: Sequence[LearnedEmbedding]) -> Iterator[None]:
    """Within: strength · Δv is added to the embeddings of the tokens of each trigger. Prompts must be given
    as `convert_prompt` makes them."""
    handles = []
    try:
        for one in learned:
            for key, own in one.ids.items():
                hook = _adder(own, one.vectors[key], one.strength)
                handles.append(_table(base, key).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def token_ids(base: Base, trigger: str) -> dict[str, list[int]]:
    """The different tokens of a trigger in order, for each text encoder of the base."""
    encoders = [key for key in ENCODERS if getattr(base.pipe, ENCODERS[key][1], None) is not None]
    return {key: list(dict.fromkeys(_ids(base, key, trigger))) for key in encoders}


def word_pattern(trigger: str) -> str:
    """The regular expression that finds a word in prompts, be it in capitals, letters of other words apart;
    for Python and for the tokenizers library."""
    return rf"(?<![^\W\d_])(?i:{re.escape(trigger)})(?![^\W\d_])"


def places_of(ids: Tensor, own: Sequence[int], count: int) -> Tensor:
    """Which of a word's `count` = r t vectors the tokens of prompts, (b, tokens), take, (b, tokens, r t) of
    truth values: where the i-th of its t different tokens stands for the k-th time, row (k mod r) t + i."""
    here = torch.stack([ids == token for token in own], -1)  # (b, tokens, t)
    r = count // len(own)
    turn = (here.cumsum(1) - 1) % r
    return torch.cat([here & (turn == k) for k in range(r)], -1)


_WRONG_END = 2  # `eos_token_id` in the configuration of Stable Diffusion's text encoders


def find_end(encoder: Any, tokenizer: Any, more_tokens: bool) -> None:
    """Text encoders whose configuration does not know the token that ends a text take the one of the highest
    number for it, which is not so any more where there are `more_tokens` than the base has."""
    ends = (_WRONG_END, tokenizer.eos_token_id)
    for part in encoder.modules():
        own = getattr(getattr(part, "config", None), "eos_token_id", None)
        if own == _WRONG_END and getattr(part, "eos_token_id", None) in ends:
            part.eos_token_id = ends[more_tokens]


def _ids(base: Base, key: str, text: str) -> list[int]:
    tokenizer = getattr(base.pipe, ENCODERS[key][0])
    return list(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids)


def _table(base: Base, key: str) -> Any:
    return getattr(base.pipe, ENCODERS[key][1]).get_input_embeddings()


def _width(base: Base, key: str) -> int:
    return int(_table(base, key).weight.shape[1])


def _adder(ids: list[int], vectors: Tensor, strength: float) -> Any:
    """A hook on an embedding table: adds the vectors Δv (r t, 1, d) of a word's tokens, summed in fp32,
    rounded once."""

    def hook(table: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        places = places_of(args[0], ids, len(vectors))
        if not places.any():
            return None
        moved = out.float() + strength * (places.float() @ vectors[:, 0].to(out.device))
        return torch.where(places.any(-1, keepdim=True), moved.to(out.dtype), out)

    return hook
