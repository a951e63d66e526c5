"""Concepts on the conditional branch of classifier-free guidance alone.

    ε = ε_base(n) + w (ε_concept(c) - ε_base(n)),    c the prompt, n the negative prompt, w the guidance scale

Usually concepts act in both places. Here what guidance steers away from is the plain base: its weights, and
the negative prompt as its own text encoders read it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atomdiff.core.inject import DeltaOf, fold
from atomdiff.models.base import Base, encode_prompts

BRANCHES = ("both", "conditional")
Weights = dict[nn.Module, nn.Parameter]
Negatives = Callable[[int], dict[str, Any]]
"""From a number of pictures to what the pipeline is told of their negative prompts."""


def negatives(base: Base, prompt: str, branches: str) -> Negatives:
    """The negative prompt for any number of pictures. To be asked while the text encoders are the base's own:
    for the conditional branch it is encoded at once."""
    if branches == "both":
        return lambda count: {"negative_prompt": [prompt] * count}
    hidden, pooled = encode_prompts(base, [prompt])

    def repeated(count: int) -> dict[str, Any]:
        told = {"negative_prompt_embeds": hidden.repeat(count, 1, 1)}
        return told if pooled is None else told | {"negative_pooled_prompt_embeds": pooled.repeat(count, 1)}

    return repeated


@contextlib.contextmanager
def folded(
    base: Base, deltas: Sequence[tuple[Mapping[str, DeltaOf | Tensor], float]], branches: str
) -> Iterator[None]:
    """Within: concepts are folded into the UNet, as `inject.fold` does. On the conditional branch alone, a
    guided batch is computed in its two halves, the first of them, the negative prompts, with the weights as
    they were: two passes of half the size in place of one."""
    unet = base.unet
    pristine = _weights(unet)
    with fold(unet, deltas):
        moved = {layer: own for layer, own in _weights(unet).items() if own is not pristine[layer]}
        if branches == "both" or not moved:
            yield
            return
        own = unet.forward
        unet.forward = _halved(base, own, {layer: pristine[layer] for layer in moved}, moved)
        try:
            yield
        finally:
            del unet.forward  # the method of its class is there again


def _halved(base: Base, whole: Callable[..., Any], pristine: Weights, moved: Weights) -> Callable[..., Any]:
    """The UNet's forward as the pipelines call it, with `pristine` weights for the first half of a batch."""

    def forward(
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        **others: Any,
    ) -> tuple[Tensor]:
        def half(which: int) -> Tensor:
            added = {key: value.chunk(2)[which] for key, value in (added_cond_kwargs or {}).items()}
            x, words = sample.chunk(2)[which], encoder_hidden_states.chunk(2)[which]
            return whole(x, timestep, words, added_cond_kwargs=added or None, **others)[0]

        if not base.pipe.do_classifier_free_guidance:  # the whole batch is conditional
            return whole(
                sample, timestep, encoder_hidden_states, added_cond_kwargs=added_cond_kwargs, **others
            )
        _set(pristine)
        try:
            plain = half(0)
        finally:
            _set(moved)
        return (torch.cat([plain, half(1)]),)

    return forward


def _weights(unet: nn.Module) -> Weights:
    """Layer -> the Parameter that is its weight now."""
    held = {layer: layer._parameters.get("weight") for layer in unet.modules()}
    return {layer: weight for layer, weight in held.items() if weight is not None}


def _set(weights: Weights) -> None:
    for layer, weight in weights.items():
        layer._parameters["weight"] = weight
