"""Components that several tabs are laid out with."""

from __future__ import annotations

from typing import Any

import gradio as gr

from atomdiff.errors import SettingsError
from atomdiff.studio.history import Entry
from atomdiff.studio.identity import owner
from atomdiff.studio.session import Studio

HIDDEN: dict[str, Any] = gr.update(visible=False)


def gallery(elem_id: str, columns: int, **options: Any) -> gr.Gallery:
    """A gallery that serves the very files that were saved."""
    usual: dict[str, Any] = {
        "visible": False,
        "buttons": ["download", "fullscreen"],
        "elem_classes": "pictures",
    }
    return gr.Gallery(
        show_label=False, columns=columns, object_fit="contain", height="auto", format="png", elem_id=elem_id,
        interactive=False, **(usual | options),
    )  # fmt: skip


def search(what: str, placeholder: str) -> tuple[gr.Textbox, gr.HTML]:
    """A line to search in, and beside it how many were found."""
    with gr.Row(elem_classes="line"):
        words = gr.Textbox(
            show_label=False, placeholder=placeholder, container=False, scale=5, elem_id=f"{what}-words",
            elem_classes="search",
        )  # fmt: skip
        count = gr.HTML("", elem_id=f"{what}-count", elem_classes="count")
    return words, count


def go_and_halt(label: str, go: str, halt: str, halt_label: str = "Cancel") -> tuple[gr.Button, gr.Button]:
    """The button that starts something, and the one that stops it meanwhile."""
    with gr.Row(elem_classes="line"):
        return (
            gr.Button(label, variant="primary", elem_id=go, elem_classes="go"),
            gr.Button(halt_label, variant="stop", visible=False, elem_id=halt, elem_classes="halt"),
        )


def running(go: Any, halt: Any, yes: bool) -> dict[Any, Any]:
    """Updates that show one of the two."""
    return {go: gr.update(visible=not yes), halt: gr.update(visible=yes)}


def picked(studio: Studio, request: gr.Request, shown: list[int], chosen: int) -> Entry:
    """The chosen picture of those shown (the first if none is). Raises SettingsError if there is none (any
    more)."""
    if not shown:
        raise SettingsError("There is no picture here (any more).")
    return studio.history.get(owner(request), shown[chosen if chosen < len(shown) else 0])
