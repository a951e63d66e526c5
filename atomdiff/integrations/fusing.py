"""Loaded concepts as weights: for a while nothing of atomdiff is left in a pipeline but what it now is.

Drawing then costs what the base's does, and `save_pretrained` writes an ordinary Stable Diffusion folder. The
parameters that were there are kept aside and come back as they were, the same objects, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from atomdiff.core.inject import put_back
from atomdiff.errors import SettingsError
from atomdiff.integrations.changes import LayerChange, restore
from atomdiff.integrations.words import Vocabulary


class Fused:
    """Concepts in the weights of layers and text encoders; until `undo`."""

    def __init__(self, layers: Iterable[LayerChange], vocabularies: Iterable[Vocabulary]) -> None:
        acting = [change for change in layers if change.acts]
        if any(change.layer.weight.is_meta for change in acting):
            raise SettingsError(
                "The weights of this pipeline are offloaded layer by layer: fuse concepts before "
                "enable_sequential_cpu_offload()."
            )
        made = [(change.layer, change.weight()) for change in acting]
        tables = [(words, _table(words)) for words in vocabularies if words.rows()]
        self._weights: list[tuple[nn.Module, nn.Parameter]] = []
        self._texts: list[_FusedText] = []
        for layer, weight in made:
            self._swap(layer, weight)
            restore(layer)
        for words, table in tables:
            self._swap(words.encoder.get_input_embeddings(), table)
            self._texts.append(_FusedText(words, len(table)))

    def undo(self) -> None:
        """The parameters that were there, on the device and in the dtype that the pipeline has now."""
        for layer, pristine in self._weights:
            put_back(layer, pristine)
        for text in self._texts:
            text.undo()
        self._weights, self._texts = [], []

    def _swap(self, layer: nn.Module, weight: torch.Tensor) -> None:
        pristine = layer._parameters["weight"]
        assert pristine is not None
        self._weights.append((layer, pristine))
        layer._parameters["weight"] = nn.Parameter(weight, requires_grad=False)


class _FusedText:
    """What a text encoder and its tokenizer say of themselves while their table has more rows."""

    def __init__(self, words: Vocabulary, rows: int) -> None:
        self._words, self._table = words, words.encoder.get_input_embeddings()
        self._config: Any = words.encoder.config
        self._said = {key: getattr(self._config, key) for key in ("vocab_size", "eos_token_id")}
        self._rows, self._kind = self._table.num_embeddings, type(words.tokenizer)
        restore(self._table)
        self._table.num_embeddings = self._config.vocab_size = rows
        self._config.eos_token_id = words.tokenizer.eos_token_id
        words.tokenizer.__class__ = _by_its_rules()

    def undo(self) -> None:
        self._table.num_embeddings = self._rows
        for key, value in self._said.items():
            setattr(self._config, key, value)
        self._words.tokenizer.__class__ = self._kind


def _table(words: Vocabulary) -> torch.Tensor:
    """The embeddings (V + n, d) with those of learned words."""
    own, rows = words.encoder.get_input_embeddings().weight.detach(), words.rows()
    table = own.new_zeros(max(len(own), max(rows) + 1), own.shape[1])
    table[: len(own)] = own
    for token, row in rows.items():
        table[token] = row
    return table


def _by_its_rules() -> type:
    """A tokenizer that is saved under a class that reads a word as its file tells: CLIPTokenizer would make
    the rules of the original again. Called as in every release of transformers, 4 or 5."""
    from transformers import PreTrainedTokenizerFast

    name = "PreTrainedTokenizerFast"
    return type(name, (PreTrainedTokenizerFast,), {"__module__": PreTrainedTokenizerFast.__module__})
