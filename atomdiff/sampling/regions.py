"""Regions: a concept, or several, in a part of the picture each, with a prompt of its own.

Convolutions take the maps of the region that a pixel lies in (see `core.fields`). Attention is computed once
a region, with its maps, and blended: cross-attention with its prompt and words, self-attention among its own
pixels, so that a subject is laid out in each. Borders are soft. What no region covers is drawn with the whole
prompt and with those concepts alone that no region has.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pad

from atomdiff.base.prompt_weights import pipeline_arguments, same_length
from atomdiff.base.stable_diffusion import Base
from atomdiff.core.fields import FieldMaps, Masks
from atomdiff.core.mixed import RowMaps, common
from atomdiff.core.mixing import LayerMaps, Mixing, mixing
from atomdiff.sampling import img2img
from atomdiff.sampling.mixed import ASKED_AGAIN, Weighted, mixed_maps, read
from atomdiff.sampling.pipeline import Batches, Callback, with_scheduler
from atomdiff.sampling.region import Box, mask_of
from atomdiff.sampling.resident import Residents
from atomdiff.sampling.settings import DrawingSettings

if TYPE_CHECKING:
    from PIL.Image import Image

SOFT = 0.06  # width of a border, as a share of the picture
INSIDE = 0.1  # weight from which a place counts as in a region, for self-attention
_ATTENTION = re.compile(r"(^|\.)attn[12]$")
_JOINED = r"(?:\s*(?:,|\band\b|\bwith\b|\bbeside\b|\bnext to\b)\s*)"


def masks_of(places: Sequence[Box | str], height: int, width: int, soft: float = SOFT) -> Tensor:
    """(R + 1, height, width), summing to 1: the regions' weights on the latents' grid and, last, what none
    covers. Where regions overlap they share."""
    made = [
        _box(p, height, width, soft) if isinstance(p, tuple) else _mask(p, height, width, soft)
        for p in places
    ]
    masks = torch.stack(made)
    masks = masks / masks.sum(0).clamp(min=1)
    return torch.cat([masks, 1 - masks.sum(0, keepdim=True)])


def _box(box: Box, height: int, width: int, soft: float) -> Tensor:
    x0, y0, x1, y1 = box
    return _ramp(y0, y1, height, soft)[:, None] * _ramp(x0, x1, width, soft)


def _ramp(start: float, end: float, count: int, soft: float) -> Tensor:
    """1 from start to end of (0, 1), linear over `soft` around each unless that is the picture's own edge."""
    at = (torch.arange(count) + 0.5) / count
    width = max(soft, 1e-6)
    rise = torch.ones(count) if start <= 0 else ((at - start) / width + 0.5).clamp(0, 1)
    fall = torch.ones(count) if end >= 1 else ((end - at) / width + 0.5).clamp(0, 1)
    return rise * fall


def _mask(text: str, height: int, width: int, soft: float) -> Tensor:
    import numpy as np

    levels = torch.from_numpy(np.array(mask_of(text), np.float32) / 255)
    small = interpolate(levels[None, None], (height, width), mode="area")
    reach = round(soft * max(height, width) / 2)
    if reach:
        small = avg_pool2d(pad(small, (reach,) * 4, mode="replicate"), 2 * reach + 1, 1)
    return small[0, 0]


def prompts_of(prompt: str, called: Sequence[Sequence[tuple[str, str]]]) -> list[str]:
    """For each region, of whose concepts trigger and class word are given, the prompt without what the others
    are called; its own concepts are put first where it does not call them."""
    made = []
    for i, own in enumerate(called):
        text = prompt
        for j, others in enumerate(called):
            for name in others if j != i else ():
                if name not in own:
                    text = _mention(*name).sub(" ", text)
        text = re.sub(rf"^{_JOINED}+|\s+(?=,)", "", " ".join(text.split()))
        missing = [
            f"a {trigger} {word}".strip() for trigger, word in own if not _mention(trigger, word).search(text)
        ]
        made.append(" ".join([*(m for m in missing if m != "a"), text]).strip())
    return made


def _mention(trigger: str, word: str) -> re.Pattern[str]:
    """What a concept is called in a prompt, with what joins it to what stands before, or else after it."""
    if not trigger:
        return re.compile(r"(?!)")
    ending = rf"(?:\s+{re.escape(word)}\b)?" if word else ""
    name = rf"(?:\b(?:an?|the|my)\s+)?\b{re.escape(trigger)}\b{ending}"
    return re.compile(rf"{_JOINED}+{name}|{name}{_JOINED}*", re.IGNORECASE)


@contextlib.contextmanager
def regional(
    base: Base, prompt: str, each: Sequence[tuple[str, Sequence[Weighted]]], masks: Tensor,
    negative: str = "", everywhere: Sequence[Weighted] = (),
) -> Iterator[Callable[[int], dict[str, Any]]]:  # fmt: skip
    """Within: the base draws with these prompts and concepts in these regions, `masks` (R + 1, h, w), and
    with other concepts in all and outside them. Yields what the pipeline is to be told of a number of
    pictures."""
    each = [(text, [*concepts, *everywhere]) for text, concepts in each]
    whole = read(base, [prompt, negative], [*(pair for _, own in each for pair in own), *everywhere])
    texts = [read(base, [negative, text], concepts) for text, concepts in each]
    texts.append(same_length(base, [whole[1], read(base, [prompt], everywhere)[0]]))
    maps = [*(mixed_maps(concepts) for _, concepts in each), mixed_maps(everywhere)]
    where = Masks(masks.to(base.device))
    attentions = [name for name, _ in base.unet.named_modules() if _ATTENTION.search(name)]
    with (
        mixing(base.unet, lambda name: ASKED_AGAIN.search(name) is not None) as layers,
        contextlib.ExitStack() as stack,
    ):
        names = dict.fromkeys(name for own in maps for name in own)
        inside = {name for name in names if any(name.startswith(outer + ".") for outer in attentions)}
        layers.set({name: _field(name, maps, where) for name in names if name not in inside})
        for name in attentions:
            parts = [own for own in inside if own.startswith(name + ".")]
            attention = _RegionalAttention(
                base, name, layers, parts, maps, texts if name.endswith("2") else None, where
            )
            stack.enter_context(attention.acting())
        yield lambda count: pipeline_arguments([whole[0]] * count, [whole[1]] * count)


def _field(name: str, maps: Sequence[LayerMaps], where: Masks) -> FieldMaps:
    there = [own[name] for own in maps if name in own]
    nothing = torch.zeros_like(there[0])
    return FieldMaps(torch.stack(common([own.get(name, nothing) for own in maps])), where)


class _RegionalAttention:
    """An attention that is computed for each region, with its maps, and blended: on its text, or without
    texts on the tokens that lie in it."""

    def __init__(
        self, base: Base, name: str, layers: Mixing, parts: Sequence[str], maps: Sequence[LayerMaps],
        texts: Sequence[Any] | None, where: Masks,
    ) -> None:  # fmt: skip
        self._pipe, self._layers, self._where = base.pipe, layers, where
        self._module: nn.Module = base.unet.get_submodule(name)
        self._plain = self._module.forward
        self._own = [
            {part: RowMaps(own[part][None], (0,)) if part in own else None for part in parts} for own in maps
        ]
        # (2, tokens, d) each: avoided, asked
        self._texts = [torch.cat([hidden for hidden, _ in pair]) for pair in texts or ()]
        self._rows: dict[tuple[int, int], Tensor] = {}

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        self._module.forward = self._forward
        try:
            yield
        finally:
            del self._module.forward

    def _forward(
        self, hidden_states: Tensor, encoder_hidden_states: Any = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        weights = self._where.of_tokens(hidden_states.shape[1])[..., None].to(hidden_states.dtype)
        total = torch.zeros_like(hidden_states)
        for r, own in enumerate(self._own):
            if not weights[r].any():
                continue
            for part, maps in own.items():
                self._layers.choose(part, maps)
            seen = (
                self._text(r, len(hidden_states))
                if self._texts
                else hidden_states[:, weights[r, :, 0] > INSIDE]
            )
            made = self._plain(hidden_states, seen, *args, **kwargs)
            total = total + weights[r] * made
        return total

    def _text(self, region: int, count: int) -> Tensor:
        """The region's text for every row, the same tensor in every step."""
        if (region, count) not in self._rows:
            guided = bool(self._pipe.do_classifier_free_guidance)
            rows = self._texts[region] if guided else self._texts[region][1:]
            self._rows[region, count] = rows.repeat_interleave(count // len(rows), 0)
        return self._rows[region, count]


@contextlib.contextmanager
def placed(
    base: Base, settings: DrawingSettings, weighted: Sequence[Weighted]
) -> Iterator[tuple[Callable[[int], dict[str, Any]], DrawingSettings]]:
    """Within: the base draws the settings' prompt with `weighted`, their concepts, in their regions; they are
    filled in for the base. Yields what the pipeline is to be told of a number of pictures, and the settings
    with the prompt of every region."""
    factor = base.vae_factor
    inside = {i for region in settings.regions for i in region.concepts}
    everywhere = [pair for i, pair in enumerate(weighted) if i not in inside]
    own = [[weighted[i] for i in region.concepts] for region in settings.regions]
    called = [[(r.trigger, r.class_word) for r, _ in pairs] for pairs in own]
    width, height = settings.size or (0, 0)
    masks = masks_of([region.where for region in settings.regions], height // factor, width // factor)
    said = zip(settings.regions, prompts_of(settings.prompt, called), strict=True)
    regions = tuple(replace(region, prompt=region.prompt or text) for region, text in said)
    pairs = list(zip([region.prompt for region in regions], own, strict=True))
    with regional(base, settings.prompt, pairs, masks, settings.negative, everywhere) as told:
        yield told, replace(settings, regions=regions)


def draw_in_regions(
    base: Base, prompts: Sequence[str], settings: DrawingSettings, starts: Sequence[img2img.Start],
    limit: int, callback: Callback | None, preview: Callable[[Tensor], None] | None,
) -> list[Image]:  # fmt: skip
    """A picture of each prompt, each from its own of `starts` if there are any, by settings that have regions
    and are filled in for the base; pictures of one prompt in batches of at most `limit`."""
    held = Residents(base)
    weighted = [(held.add(concept), strength) for concept, strength in settings.concepts]
    those = {prompt: [i for i, text in enumerate(prompts) if text == prompt] for prompt in prompts}
    batches = sum(-(-len(places) // limit) for places in those.values())
    made = Batches(base, settings, batches, callback, starts)
    drawn: dict[str, DrawingSettings] = {}
    with with_scheduler(base, settings, preview):
        for prompt, places in those.items():
            with placed(base, replace(settings, prompt=prompt), weighted) as (told, drawn[prompt]):
                for start in range(0, len(places), limit):
                    some = places[start : start + limit]
                    made.draw(some, told(len(some)))
    return made.finished([drawn[prompt] for prompt in prompts])
