"""What the drawing commands make of their flags: concepts with strengths, the base, pictures with a bar."""

from __future__ import annotations

import functools
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from atomdiff.errors import BaseError, SettingsError

if TYPE_CHECKING:
    from PIL.Image import Image

    from atomdiff.base import Base
    from atomdiff.concept import Concept


def load_concepts(given: list[str]) -> list[tuple[Concept, float]]:
    """`FILE` or `FILE:STRENGTH`, each. Raises ConceptError or SettingsError."""
    from atomdiff.formats import card

    weighted = []
    for item in given:
        path, strength = split_strength(item)
        weighted.append((card.load(path), strength))
    return weighted


def split_strength(item: str) -> tuple[str, float]:
    head, colon, tail = item.rpartition(":")
    if not colon or not head or Path(item).exists():
        return item, 1.0
    try:
        strength = float(tail)
    except ValueError:
        if tail.endswith(".safetensors") or "\\" in tail or "/" in tail:
            return item, 1.0  # the colon belongs to the path
        raise SettingsError(f"The strength in {item!r} is not a number: write FILE:0.8, say.") from None
    if not math.isfinite(strength):
        raise SettingsError(f"The strength in {item!r} is not a finite number: write FILE:0.8, say.")
    return head, strength


def which_base(given: str | None, weighted: list[tuple[Concept, float]]) -> tuple[str, str]:
    """The base to use, and why that one."""
    if given is not None:
        return given, "as asked"
    if not weighted:
        return "pocket", "the bundled model; --base picks another"
    concept = weighted[0][0]
    if not concept.base.name:
        raise BaseError(
            f"The concept {concept.title!r} does not say what its base ({concept.base.architecture}) is "
            "called: name it with --base."
        )
    return concept.base.name, f"the one that {concept.title!r} was trained on"


def load_base(name: str, device: str, dtype: str, given: bool) -> Base:
    import torch

    from atomdiff import base as bases

    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if dtype not in ("auto", *types):
        raise SettingsError(f"--dtype is auto, {', '.join(types)}, not {dtype!r}.")
    if device == "auto":
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        device = next(name for name, usable in there.items() if usable)
    chosen = types.get(dtype, torch.float16 if device.startswith("cuda") else torch.float32)
    try:
        return bases.load_base(name, chosen, device)
    except BaseError as error:
        if given:
            raise
        raise BaseError(f"{error} The concept was trained on it; --base says where it lies.") from error


def tell_about(base: Base, prompt: str, negative: str, weighted: list[tuple[Concept, float]]) -> None:
    """What the user should know before drawing. Raises ConceptError for a concept of another base."""
    from atomdiff.base import truncated_part

    for concept, _ in weighted:
        warning = concept.check_base(base.passport)
        if warning:
            typer.echo(f"warning: {warning}", err=True)
        if concept.trigger and concept.trigger.lower() not in prompt.lower():
            typer.echo(
                f"note: the prompt lacks {concept.trigger!r}, the word that calls {concept.title!r}.",
                err=True,
            )
    for what, text in (("prompt", prompt), ("negative prompt", negative)):
        cut = truncated_part(base, text)
        if cut:
            typer.echo(f"warning: the {what} is too long; this end of it is not used: {cut!r}", err=True)


def draw_with_bar(base: Base, prompt: str | list[str], **settings: Any) -> list[Image]:
    from atomdiff.sampling import CousinWarning, draw
    from atomdiff.terminal import Terminal

    with warnings.catch_warnings(), Terminal() as shown:
        warnings.simplefilter("ignore", CousinWarning)  # told already
        tell = functools.partial(shown.stage, "Drawing")
        return draw(base, prompt, callback=tell, **settings)
