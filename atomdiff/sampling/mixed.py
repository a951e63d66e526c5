"""Mixed batches: every picture of a batch with concepts and strengths of its own, one call of the UNet.

The base's weights are never touched: its layers compute each row with the maps of that row's concepts (see
`core.mixed`), and each prompt is read with the learned words of its own concepts. Concepts act plainly, on
every step and on both branches of guidance.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from atomdiff.base.prompt_weights import Prompt, encode_weighted, pipeline_arguments, same_length
from atomdiff.base.stable_diffusion import Base, PromptEmbeds
from atomdiff.base.textual_inversion import added, convert_prompt, embeddings_of
from atomdiff.core.blocks import Strength, by_strength, of_words
from atomdiff.core.mixed import common
from atomdiff.core.mixing import LayerMaps, Mixing, mixing
from atomdiff.sampling.resident import Resident

Weighted = tuple[Resident, Strength]
ASKED_AGAIN = re.compile(r"(^|\.)attn2\.to_[kv]$")  # of the same text in every step


class Mixer:
    """Gives the rows of a pipeline's batch their concepts; made by `mixer`."""

    def __init__(self, base: Base, layers: Mixing) -> None:
        self._base, self._layers = base, layers

    def told(
        self,
        prompts: Sequence[str],
        each: Sequence[Sequence[Weighted]],
        negative: str | Sequence[str] = "",
    ) -> dict[str, Any]:
        """Prepares the UNet for these prompts, each with its own concepts (which may be none) and negative
        prompt (or one for all), and returns what the pipeline is to be told instead of prompts."""
        keys = [_key(some) for some in each]
        first = dict(zip(reversed(keys), reversed(each), strict=True))
        maps = {key: mixed_maps(some) for key, some in first.items()}
        self._layers.rows([maps[key] for key in keys])
        avoided = [negative] * len(prompts) if isinstance(negative, str) else list(negative)
        embeds = same_length(self._base, self._encoded([*prompts, *avoided], [*keys, *keys], first))
        return pipeline_arguments(embeds[: len(prompts)], embeds[len(prompts) :])

    def _encoded(
        self, texts: Sequence[str], owners: Sequence[Any], first: dict[Any, Sequence[Weighted]]
    ) -> list[PromptEmbeds]:
        """Every text, read with the words of the concepts of its owner."""
        found: dict[int, PromptEmbeds] = {}
        for key, some in first.items():
            mine = [i for i, owner in enumerate(owners) if owner == key]
            made = read(self._base, [texts[i] for i in mine], some)
            found |= zip(mine, made, strict=True)
        return [found[i] for i in range(len(texts))]


@contextlib.contextmanager
def mixer(base: Base) -> Iterator[Mixer]:
    """Within: the base's pipeline draws each row of a batch with its own concepts, as `Mixer.told` last said;
    until then with none."""
    with mixing(base.unet, lambda name: ASKED_AGAIN.search(name) is not None) as layers:
        yield Mixer(base, layers)


def read(base: Base, texts: Sequence[str], concepts: Sequence[Weighted]) -> list[PromptEmbeds]:
    """Embeddings of texts, a row each, as they are read with the learned words of some concepts."""
    worded: list[tuple[Any, float]] = [(r, of_words(strength)) for r, strength in concepts]
    learned = embeddings_of(base, worded)
    with added(base, learned):
        prompts = [Prompt.of(base, convert_prompt(text, learned)) for text in texts]
        return same_length(base, encode_weighted(base, prompts))


def mixed_maps(concepts: Sequence[Weighted]) -> LayerMaps:
    """Σ sᵢ Mᵢ, layer by layer, of concepts of one base; block maps over the coarsest blocks of any."""
    total: dict[str, Tensor] = {}
    for resident, strength in concepts:
        for layers, own in by_strength(resident.layer_maps(), strength):
            for name, M in layers.items():
                scaled = M if own == 1 else own * M
                if name in total:
                    before, scaled = common([total[name], scaled])
                    scaled = before + scaled
                total[name] = scaled
    return total


def _key(concepts: Sequence[Weighted]) -> tuple[Any, ...]:
    """Equal for rows that can share their maps."""
    return tuple((r.sha256, tuple(sorted(s.items())) if isinstance(s, Mapping) else s) for r, s in concepts)
