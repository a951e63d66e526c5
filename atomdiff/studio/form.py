"""Between the form on Draw and an order: what a browser sends is read with care, both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from atomdiff.core.blocks import Strength, parse_strength, strength_text
from atomdiff.errors import SettingsError
from atomdiff.studio.drawing import Order

ROWS = 16  # concepts at a time on the page; the API takes any number
FIELDS = (
    "prompt",
    "concepts",
    *(f"strength {i}" for i in range(ROWS)),
    "negative",
    "size",
    "count",
    "seed",
    "steps",
    "guidance",
    "sampler",
    "batch",
    "base",
    "blocks",
    "carry",
    "acting",
)


def order_from(values: Sequence[Any]) -> Order:
    """The order that the form's values, in the order of FIELDS, mean. Raises SettingsError."""
    given = dict(zip(FIELDS, values, strict=True))
    chosen = list(given["concepts"] or [])
    strengths = [given[f"strength {i}"] for i in range(ROWS)]
    if len(chosen) > ROWS:
        raise SettingsError(f"The page takes {ROWS} concepts at a time; {len(chosen)} are chosen.")
    return Order(
        base=str(given["base"]),
        prompt=str(given["prompt"] or ""),
        concepts=tuple(
            (str(ident), _strength(strengths[i], given["blocks"])) for i, ident in enumerate(chosen)
        ),
        negative=str(given["negative"] or ""),
        seed=seed(given["seed"]),
        steps=int(_number(given["steps"], "The number of steps")),
        guidance=_number(given["guidance"], "CFG"),
        size=size(given["size"]),
        sampler=str(given["sampler"]),
        count=int(_number(given["count"], "The number of pictures")),
        batch=int(_number(given["batch"], "The batch size")) or None,
        carry=given["carry"] is True,
        acting=str(given["acting"] or ""),
    )


def values_of(order: Order) -> dict[str, Any]:
    """The form's values for an order, by name; what the form has no room for is left out."""
    concepts = order.concepts[:ROWS]
    width, height = order.size or (0, 0)
    return {
        "prompt": order.prompt,
        "concepts": [ident for ident, _ in concepts],
        **{f"strength {i}": _shown(concepts[i][1]) if i < len(concepts) else 1.0 for i in range(ROWS)},
        "negative": order.negative,
        "size": f"{width}x{height}",
        "seed": "" if order.seed is None else str(order.seed),
        "steps": order.steps,
        "guidance": order.guidance,
        "sampler": order.sampler,
        "base": order.base,
        "acting": order.acting,
        "blocks": next((strength_text(s) for _, s in concepts if isinstance(s, Mapping)), ""),
    }


def seed(text: Any) -> int | None:
    """A seed as it is written; None, for a random one, if nothing is. Raises SettingsError."""
    written = str("" if text is None else text).strip()
    if written in ("", "-1", "random"):
        return None
    if not re.fullmatch(r"\d{1,19}", written):
        raise SettingsError(f"A seed is a whole number, or nothing for a random one, not {written[:40]!r}.")
    return int(written)


def size(text: Any) -> tuple[int, int] | None:
    """WIDTHxHEIGHT or a side, in pixels; None if nothing is written. Raises SettingsError."""
    written = str(text or "").lower().replace("×", "x").replace(" ", "")
    if not written:
        return None
    found = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", written)
    if found is None:
        raise SettingsError(f"A size is WIDTHxHEIGHT in pixels, 512x768, say, not {written[:40]!r}.")
    return int(found[1]), int(found[2] or found[1])


def with_triggers(prompt: str, before: Sequence[tuple[str, str]], now: Sequence[tuple[str, str]]) -> str:
    """The prompt with the words of the chosen concepts, (trigger, class word) each, filled in.

    A word already there is left where it stands; those of concepts that were put away go, if they are where
    this function put them; "a dog" becomes "a sks dog" for a concept of a dog.
    """
    from atomdiff.base.textual_inversion import calls

    for trigger, word in before:
        if trigger and (trigger, word) not in now:
            prompt = re.sub(rf"(?<!\w){re.escape(trigger)}(?!\w)\s*", "", prompt)
    for trigger, word in now:
        if calls(prompt, trigger):
            continue
        called = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, re.IGNORECASE) if word else None
        if called:
            prompt = f"{prompt[: called.start()]}{trigger} {prompt[called.start() :]}"
        else:
            subject = f"a {trigger} {word}".strip()
            prompt = f"{subject}, {prompt.strip()}" if prompt.strip() else subject
    return " ".join(prompt.split()) if "\n" not in prompt else prompt


def _shown(strength: Strength) -> float:
    """On its slider; a strength a block is written beside it."""
    return 1.0 if isinstance(strength, Mapping) else strength


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
