"""Putting a concept on Draw, from any tab."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from atomdiff.errors import AtomdiffError
from atomdiff.studio import drawing, form
from atomdiff.studio.tabs import settings

if TYPE_CHECKING:
    from atomdiff.core.blocks import Strength
    from atomdiff.studio.page import Page


def draw_inputs(page: Page) -> list[Any]:
    """What `on_draw` is to be told."""
    return [page.form["prompt"], page.form["base"], page.shared["draw.subjects"]]


def draw_outputs(page: Page) -> list[Any]:
    """The parts that `on_draw` gives values for."""
    return [*page.form.values(), page.shared["draw.subjects"]]


def on_draw(
    page: Page, ident: str, prompt: str, base: str, subjects: list[Any], strength: Strength = 1.0
) -> list[Any]:
    """Updates that put a concept on Draw, alone, on its own base where that is here; what else is chosen
    there stays. Raises gr.Error if the concept is gone."""
    try:
        entry = page.studio.library.get(ident)
    except AtomdiffError as error:
        raise gr.Error(str(error)) from None
    on = entry.base if entry.base in page.studio.bases else base
    before = [(trigger, word) for _, (trigger, word) in subjects]
    asked = form.with_triggers(prompt, before, [(entry.trigger, entry.class_word)]) or entry.title
    *filled, known = settings.filled(page, drawing.Order(on, asked, ((ident, strength),)))
    changed = {"prompt", "concepts", *(f"strength {i}" for i in range(form.ROWS)), "blocks", "carry"}
    changed |= {"base", "size", "guidance"} if on != base else set()
    updates = zip(form.FIELDS, filled, strict=True)
    return [*(update if name in changed else gr.skip() for name, update in updates), known]
