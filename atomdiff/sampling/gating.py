"""On what concepts act: everything, or only where they are called.

*Plain* is what any tool does with weights that are attached: concepts act on every prompt, on both branches
of classifier-free guidance, in every step. *Gated*, a concept is called by its trigger: prompts that do not
say it are the base's own. It acts on the conditional branch alone,

    ε = ε_base(n) + w (ε_concept(c) - ε_base(n)),    c the prompt, n the negative prompt, w the guidance scale

so that what guidance steers away from is the plain base: its weights, and the negative prompt as its own text
encoders read it. It acts on the UNet in the steps that lead to a place after GATE[0] on the way from pure
noise, 0, where a picture is laid out, to the finished picture, 1, measured by 1 - t/T. The last step, which
no other puts right, halves what concepts add to the weights: guidance would make too much of it, and of what
the subject was never seen with, a hat, say, too little. A learned trigger is read in any case.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from atomdiff.base.plain_unet import as_plain
from atomdiff.base.prompt_weights import Prompt, encode_weighted
from atomdiff.base.stable_diffusion import Base
from atomdiff.base.textual_inversion import (
    LearnedEmbedding,
    added,
    convert_prompt,
    embeddings_of,
    has_trigger,
)
from atomdiff.core.blocks import Strength, by_strength, of_words
from atomdiff.core.inject import DeltaOf, fold
from atomdiff.sampling.settings import USUAL

if TYPE_CHECKING:
    from atomdiff.concept.concept import Concept

GATE = 0.17, 0.99  # gated: from where on concepts act, and where the last step begins
Weights = dict[nn.Module, nn.Parameter]
Negatives = Callable[[int], dict[str, Any]]
"""From a number of pictures to what the pipeline is told of their negative prompts."""


def groups(
    prompts: Sequence[str], concepts: Sequence[Concept], how: str = USUAL
) -> dict[tuple[int, ...], list[int]]:
    """The places of the concepts that act together -> the places of the prompts that they act on: all, or
    gated those that say their triggers."""
    plain = how == "plain"
    found: dict[tuple[int, ...], list[int]] = {}
    for place, prompt in enumerate(prompts):
        called = (i for i, concept in enumerate(concepts) if plain or has_trigger(prompt, concept.trigger))
        found.setdefault(tuple(called), []).append(place)
    return found


@contextlib.contextmanager
def acting(
    base: Base, weighted: Sequence[tuple[Concept, Strength]], negative: str, how: str, keep: bool = True
) -> Iterator[Negatives]:
    """Within: these concepts act, on prompts that are converted for their learned words. Yields the negative
    prompt. Without `keep` the base is spent afterwards, see `inject.fold`. Raises ConceptError for a concept
    of another base."""
    unet = as_plain(base.unet)
    deltas = [part for item, strength in weighted for part in by_strength(item.deltas(unet), strength)]
    words = [(concept, of_words(strength)) for concept, strength in weighted]
    learned = embeddings_of(base, words)
    # The base alone is drawn in one way, bit for bit.
    gated = how == "gated" and any(strength for _, strength in [*deltas, *words])
    avoided = negatives(base, negative, gated, learned)
    with folded(base, deltas, gated, keep), added(base, learned):
        yield avoided


def negatives(base: Base, prompt: str, gated: bool, learned: Sequence[LearnedEmbedding]) -> Negatives:
    """The negative prompt for any number of pictures, as triggers are read. To be asked while the text
    encoders are the base's own: gated it is encoded at once, as it stands."""
    if not gated:
        return lambda count: {"negative_prompt": [convert_prompt(prompt, learned)] * count}
    hidden, pooled = encode_weighted(base, [Prompt.of(base, prompt)])[0]

    def repeated(count: int) -> dict[str, Any]:
        told = {"negative_prompt_embeds": hidden.repeat(count, 1, 1)}
        return told if pooled is None else told | {"negative_pooled_prompt_embeds": pooled.repeat(count, 1)}

    return repeated


@contextlib.contextmanager
def folded(
    base: Base,
    deltas: Sequence[tuple[Mapping[str, DeltaOf | Tensor], float]],
    gated: bool,
    keep: bool = True,
) -> Iterator[None]:
    """Within: concepts are folded into the UNet, as `inject.fold` does. Gated, its layers compute with the
    weights as they were for the negative prompts, the first half of a guided batch, and in the first steps.
    """
    unet = base.unet
    pristine = _weights(unet) if gated else {}
    with fold(as_plain(unet), deltas, keep), contextlib.ExitStack() as stack:
        if gated:
            moved = {layer: own for layer, own in _weights(unet).items() if own is not pristine[layer]}
            step = Step(base)
            stack.callback(unet.register_forward_pre_hook(step.begin).remove)
            for layer, own in moved.items():
                stack.enter_context(_by_parts(layer, pristine[layer], own, step))
        yield


class Step:
    """Which part of the batch of a step gated concepts act on, and `share`, how much of them."""

    def __init__(self, base: Base) -> None:
        self._pipe = base.pipe
        self._last = int(base.scheduler.config.num_train_timesteps) - 1
        self._within, self.share = True, 1.0

    def begin(self, unet: nn.Module, args: tuple[Any, ...]) -> None:
        """Hears of (latents, timestep, ...) before the UNet does."""
        time, times = float(args[1]), self._pipe.scheduler.timesteps.tolist()
        reached = 1 - max((t for t in times if t < time), default=0.0) / self._last
        self._within = reached > GATE[0]
        self.share = 0.5 if self._guided() and reached > GATE[1] else 1.0

    def first(self, count: int) -> int:
        """Of `count` rows, negative prompts first, the first that concepts act on."""
        if not self._within:
            return count
        return count // 2 if self._guided() else 0

    def _guided(self) -> bool:
        """Whether guidance multiplies what concepts add."""
        return bool(self._pipe.do_classifier_free_guidance)


@contextlib.contextmanager
def _by_parts(layer: nn.Module, plain: nn.Parameter, own: nn.Parameter, step: Step) -> Iterator[None]:
    """Within: the layer computes with `plain` on the rows before `step.first`, and on the others as it is, or
    with the mean of the two weights, to which it is linear."""
    usual = layer.forward

    def computed(rows: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        def by(weight: nn.Parameter, some: Tensor) -> Tensor:
            layer._parameters["weight"] = weight
            answer: Tensor = usual(some, *args, **kwargs)
            return answer

        first = step.first(len(rows))
        parts = [by(plain, rows[:first])] if first else []
        if first < len(rows):
            whole = by(own, rows[first:])
            parts.append(whole if step.share == 1 else torch.lerp(by(plain, rows[first:]), whole, step.share))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    replaced = vars(layer).get("forward")
    layer.forward = computed
    try:
        yield
    finally:
        layer._parameters["weight"] = own
        del layer.forward  # the method of its class is there again
        if replaced is not None:
            layer.forward = replaced


def _weights(unet: nn.Module) -> Weights:
    """Layer -> the Parameter that is its weight now."""
    held = {layer: layer._parameters.get("weight") for layer in unet.modules()}
    return {layer: weight for layer, weight in held.items() if weight is not None}
