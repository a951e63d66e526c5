"""Learned words as real tokens of a pipeline: of its tokenizers, and of its text encoders' embeddings.

A trigger is trained as Δv added to the embeddings of its own tokens, the word being read r times over (see
`base.textual_inversion`). In a pipeline every vector has a token of its own, beyond the vocabulary, and the
tokenizer itself reads the word as all of them. So "a sks dog" means the same to whoever asks the tokenizer,
be it the pipeline, compel or a script of somebody's; nothing has to be converted, and no other prompt
changes. The row of such a token, v + Σ sᵢ Δvᵢ, is made when it is looked up: the table of the text encoder
stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from atomdiff.base.textual_inversion import find_end, places_of, word_pattern
from atomdiff.errors import ConceptError
from atomdiff.integrations.changes import override, restore

_MARK = "atomdiff"  # what our tokens begin with


@dataclass(frozen=True)
class Learned:
    """What one concept makes of its trigger in one text encoder: Δv (n, d), and its strength."""

    trigger: str
    vectors: Tensor
    strength: float = 1.0


@dataclass(frozen=True)
class Word:
    """A trigger in one text encoder, of all concepts that it calls: n tokens, each the base's own token
    `own[i]` with `change[i]` added to its embedding, (n, d) fp32."""

    trigger: str
    own: tuple[int, ...]
    change: Tensor


def learned_word(word_ids: Sequence[int], learned: Sequence[Learned]) -> Word:
    """The word that calls these concepts; `word_ids` are the tokens that the base reads it as.

    It is read as often as the concept with most vectors needs, and the others begin anew. Raises ConceptError
    where vectors do not fit the word.
    """
    tokens = list(dict.fromkeys(word_ids))
    for one in learned:
        if not tokens or not len(one.vectors) or len(one.vectors) % len(tokens):
            raise ConceptError(
                f"The learned word {one.trigger!r} has {len(one.vectors)} vectors, but this text encoder "
                f"reads it as {len(tokens)} different tokens: use the base it was made for."
            )
    own = tuple(word_ids) * (max(len(one.vectors) for one in learned) // len(tokens))
    change = torch.zeros(len(own), learned[0].vectors.shape[1])
    for one in learned:
        vectors = one.vectors.float().cpu()
        change += one.strength * (places_of(torch.tensor([own]), tokens, len(vectors))[0].float() @ vectors)
    return Word(learned[0].trigger, own, change)


class Vocabulary:
    """The words that concepts add to one tokenizer and its text encoder, until they are taken away."""

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
        self.tokenizer, self.encoder = tokenizer, encoder
        self._pristine = tokenizer.backend_tokenizer
        self._lookup: _Lookup | None = None
        self.users: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
        """UNet -> the concepts in it, where several share the text encoder."""

    def others(self, unet: nn.Module) -> list[Any]:
        """What is in the other UNets."""
        return [own for user, own in self.users.items() if user is not unet]

    def ids(self, text: str) -> list[int]:
        """The tokens that the base, without any learned word, reads a text as."""
        self._pristine.no_truncation()
        self._pristine.no_padding()
        return list(self._pristine.encode(text, add_special_tokens=False).ids)

    @property
    def width(self) -> int:
        """d, of an embedding."""
        return int(self.encoder.get_input_embeddings().weight.shape[1])

    def set(self, words: Sequence[Word]) -> None:
        """Takes other words; without any, tokenizer and text encoder are as they were."""
        longest_first = sorted(words, key=lambda word: -len(word.trigger))  # "sks dog" before "sks"
        named = [(word, _contents(i, word)) for i, word in enumerate(longest_first)]
        self.tokenizer._tokenizer = self._reader(named)
        if self.tokenizer._tokenizer is not self._pristine:
            getattr(self.tokenizer, "_wrap_decode_method_backend_tokenizer", lambda: None)()
        if self._lookup is not None:
            restore(self._lookup.table)
            self._lookup = None
        if named:
            ids = [self.tokenizer.convert_tokens_to_ids(name) for _, names in named for name in names]
            self._lookup = _Lookup(self.encoder.get_input_embeddings(), ids, longest_first)
            override(self._lookup.table, self._lookup.forward)
        find_end(self.encoder, self.tokenizer, more_tokens=bool(named))

    def rows(self) -> dict[int, Tensor]:
        """Token -> its embedding (d,) in the table's dtype, of every token that was added."""
        if self._lookup is None:
            return {}
        ids = self._lookup.ids.to(self._lookup.table.weight.device)
        return dict(zip(ids.tolist(), self._lookup.forward(ids).detach(), strict=True))

    def _reader(self, named: Sequence[tuple[Word, list[str]]]) -> Any:
        """The tokenizer's engine with the new tokens, and with the rule that turns words into them."""
        from tokenizers import AddedToken, Regex, Tokenizer, normalizers

        plain = self._pristine
        known = {token.content for token in _added(plain)}
        now = [t for t in _added(self.tokenizer.backend_tokenizer) if t.content not in known]
        # Tokens that somebody else added meanwhile, by textual inversion say, must keep their ids.
        kept = now if any(not token.content.startswith(_MARK) for token in now) else []
        there = {token.content for token in kept}
        ours = [name for _, names in named for name in names if name not in there]
        if not kept and not ours:
            return plain
        made = Tokenizer(plain.model)  # shared, not copied
        made.pre_tokenizer, made.decoder, made.post_processor = (
            plain.pre_tokenizer, plain.decoder, plain.post_processor,
        )  # fmt: skip
        rules = [
            normalizers.Replace(Regex(word_pattern(" ".join(word.trigger.split()))), " ".join(names))
            for word, names in named
        ]
        parts = ([] if plain.normalizer is None else [plain.normalizer]) + rules
        made.normalizer = normalizers.Sequence(parts)
        for token in [*_added(plain), *kept, *(AddedToken(name) for name in ours)]:
            (made.add_special_tokens if token.special else made.add_tokens)([token])
        return made


class _Lookup:
    """An embedding table with more rows than it holds."""

    def __init__(self, table: Any, ids: Sequence[int], words: Sequence[Word]) -> None:
        self.table: Any = table
        self.ids = torch.tensor(ids)  # (n,)
        self.own = torch.tensor([token for word in words for token in word.own])  # (n,)
        self.change = torch.cat([word.change for word in words])  # (n, d)

    def forward(self, input_ids: Tensor) -> Tensor:
        if self.ids.device != input_ids.device:
            self.ids, self.own, self.change = (
                part.to(input_ids.device) for part in (self.ids, self.own, self.change)
            )
        same = input_ids.unsqueeze(-1) == self.ids  # (..., n)
        ours, place = same.any(-1), same.int().argmax(-1)
        rows = type(self.table).forward(self.table, torch.where(ours, self.own[place], input_ids))
        moved = (rows.float() + self.change[place].to(rows.device)).to(rows.dtype)
        return torch.where(ours.unsqueeze(-1).to(rows.device), moved, rows)


def _added(engine: Any) -> list[Any]:
    """The tokens that were added to a vocabulary, in the order of their ids."""
    return [token for _, token in sorted(engine.get_added_tokens_decoder().items())]


def _contents(number: int, word: Word) -> list[str]:
    """What a word's tokens are called: ASCII letters alone, so that no trigger is found in a name, and no
    name changed by a tokenizer's rules."""
    letters = "".join(letter for letter in word.trigger.lower() if letter.isascii() and letter.isalpha())
    return [f"{_MARK}{letters}{_numeral(number)}{_numeral(i)}" for i in range(len(word.own))]


def _numeral(number: int) -> str:
    """aa, ab, ac, ..., zz."""
    return "".join(chr(ord("a") + digit) for digit in divmod(number, 26))
