"""Between the form on Draw and a request: what a browser sends is read with care, both ways."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atomdiff.core.blocks import Strength, parse_strength, strength_text
from atomdiff.errors import SettingsError
from atomdiff.sampling.settings import USUAL, parse_size
from atomdiff.studio import canvas
from atomdiff.studio.draw_request import DrawRequest, random_seed

if TYPE_CHECKING:
    from PIL.Image import Image

ROWS = 16  # concepts at a time on the page; the API takes any number
STRENGTHS = tuple(f"strength_{i}" for i in range(ROWS))
LORA_STRENGTHS = tuple(f"lora_strength_{i}" for i in range(6))  # LoRAs at a time on the page


def request_from(form: Mapping[str, Any]) -> DrawRequest:
    """The request that the form's values mean. Raises SettingsError."""
    chosen = list(form["concepts"] or [])
    if len(chosen) > ROWS:
        raise SettingsError(f"The page takes {ROWS} concepts at a time; {len(chosen)} are chosen.")
    image, mask = start_of(form["start"])
    return DrawRequest(
        base=str(form["base"]),
        prompt=str(form["prompt"] or ""),
        concepts=tuple(
            (str(ident), _strength(form[name], form["blocks"]))
            for ident, name in zip(chosen, STRENGTHS, strict=False)
        ),
        negative=str(form["negative"] or ""),
        seed=seed(form["seed"]),
        steps=int(_number(form["steps"], "The number of steps")),
        guidance=_number(form["guidance"], "CFG"),
        size=parse_size(str(form["size"] or "")) if image is None else None,  # a picture keeps its shape
        sampler=str(form["sampler"]),
        count=int(_number(form["count"], "The number of pictures")),
        batch=int(_number(form["batch"], "The batch size")) or None,
        carry=form["carry"] is True,
        acting=str(form["acting"] or USUAL),
        style=str(form["style"] or ""),
        image=image,
        mask=mask,
        strength=None if image is None else _number(form["strength"], "How much may change"),
        hires=_number(form["hires"], "The factor of a second pass"),
        loras=tuple(
            (str(name), _number(form[row], "A LoRA's strength"))
            for name, row in zip(form["loras"] or [], LORA_STRENGTHS, strict=False)
        ),
        embeddings=tuple(map(str, form["embeddings"] or [])),
        regions=canvas.regions_of(form["regions"], len(chosen)),
    )


def values_of(request: DrawRequest) -> dict[str, Any]:
    """The form's values for a request, by name; what the form has no room for is left out."""
    concepts = request.concepts[:ROWS]
    width, height = request.size or (0, 0)
    strengths = {
        name: 1.0 if isinstance(strength, Mapping) else strength  # a strength a block is written beside it
        for name, (_, strength) in zip(STRENGTHS, concepts, strict=False)
    }
    return {
        "prompt": request.prompt,
        "concepts": [ident for ident, _ in concepts],
        **dict.fromkeys(STRENGTHS, 1.0),
        **strengths,
        "negative": request.negative,
        "size": f"{width}x{height}",
        "seed": str(request.seed),
        "steps": request.steps,
        "guidance": request.guidance,
        "sampler": request.sampler,
        "base": request.base,
        "acting": request.acting,
        "style": request.style,
        "hires": request.hires,
        "loras": [name for name, _ in request.loras[: len(LORA_STRENGTHS)]],
        **dict.fromkeys(LORA_STRENGTHS, 1.0),
        **{row: strength for row, (_, strength) in zip(LORA_STRENGTHS, request.loras, strict=False)},
        "embeddings": list(request.embeddings),
        "regions": canvas.painted(request.regions, request.size or (1, 1)),
        "blocks": next((strength_text(s) for _, s in concepts if isinstance(s, Mapping)), ""),
    }


def start_of(value: Any) -> tuple[Image | None, Image | None]:
    """The picture to start from, and what of it is painted over (white), of an image editor's value."""
    if not isinstance(value, Mapping) or value.get("background") is None:
        return None, None
    from PIL import ImageChops

    picture = value["background"]
    alphas = [layer.getchannel("A") for layer in value.get("layers") or [] if layer.mode == "RGBA"]
    painted = [alpha for alpha in alphas if alpha.getbbox() is not None]
    if not painted:
        return picture.convert("RGB"), None
    mask = functools.reduce(ImageChops.lighter, painted)
    return picture.convert("RGB"), mask.point(lambda level: 255 if level else 0)


def seed(text: Any) -> int:
    """A seed as it is written; a random one, if nothing is. Raises SettingsError."""
    written = str("" if text is None else text).strip()
    if written in ("", "-1", "random"):
        return random_seed()
    if not re.fullmatch(r"\d{1,19}", written):
        raise SettingsError(f"A seed is a whole number, or nothing for a random one, not {written[:40]!r}.")
    return int(written)


def with_triggers(prompt: str, before: Sequence[tuple[str, str]], now: Sequence[tuple[str, str]]) -> str:
    """The prompt with the words of the chosen concepts, (trigger, class word) each, filled in.

    A word already there is left where it stands; those of concepts that were put away go, if they are where
    this function put them; "a dog" becomes "a sks dog" for a concept of a dog.
    """
    from atomdiff.base.textual_inversion import has_trigger

    for trigger, word in before:
        if trigger and (trigger, word) not in now:
            prompt = re.sub(rf"(?<!\w){re.escape(trigger)}(?!\w)\s*", "", prompt)
    for trigger, word in now:
        if has_trigger(prompt, trigger):
            continue
        called = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, re.IGNORECASE) if word else None
        if called:
            prompt = f"{prompt[: called.start()]}{trigger} {prompt[called.start() :]}"
        else:
            subject = f"a {trigger} {word}".strip()
            prompt = f"{subject}, {prompt.strip()}" if prompt.strip() else subject
    return " ".join(prompt.split()) if "\n" not in prompt else prompt


def _strength(slider: Any, blocks: Any) -> Strength:
    """A slider's number, times what is written for each block. Raises SettingsError."""
    number, written = _number(slider, "A strength"), str(blocks or "").strip()
    times = parse_strength(written) if written else 1.0
    if isinstance(times, Mapping):
        return {block: number * factor for block, factor in times.items()}
    return number * times


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SettingsError(f"{what} is a number, not {str(value)[:40]!r}.")
    return float(value)
