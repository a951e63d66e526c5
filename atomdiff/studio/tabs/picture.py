"""Picture info: what a picture says of itself, and drawing with it again."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from atomdiff.errors import AtomdiffError
from atomdiff.studio import drawing, pieces, reading
from atomdiff.studio.tabs import concepts, draw, settings

if TYPE_CHECKING:
    from atomdiff.studio.page import Page

EMPTY = pieces.empty(
    "Which picture?",
    "Drop a PNG, JPEG or WebP that atomdiff or its kin drew. It says how it was made, and which concept is "
    "in it.",
)


def build(page: Page) -> None:
    """Lays the tab out."""
    with gr.Tab("Picture info", id="picture", render_children=True), gr.Row(elem_classes="workbench"):
        with gr.Column(elem_classes="controls"):
            # A file, not gr.Image: that would decode and re-encode the picture, and lose what it says.
            page.shared["picture.file"] = gr.File(
                label="A picture",
                file_count="single",
                type="filepath",
                elem_id="picture-file",
                height=150,
                elem_classes="drop",
            )
            page.shared["picture.use"] = gr.Button(
                "Use these settings", variant="primary", interactive=False, elem_id="use-settings"
            )
            page.shared["picture.keep"] = gr.Button(
                "Put its concept into the library", visible=False, elem_id="keep-concept"
            )
            page.shared["picture.status"] = gr.HTML("", elem_id="picture-status")
        with gr.Column(elem_classes="stage-side"):
            page.shared["picture.told"] = gr.HTML(EMPTY, elem_id="picture-told")
    page.shared["picture.path"] = gr.State("")


def wire(page: Page) -> None:
    """Connects it: dropped files, pictures sent from Draw, and the way back to Draw."""
    studio, shared = page.studio, page.shared
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    shown = [shared[f"picture.{name}"] for name in ("told", "use", "keep", "status", "path")]

    def show(path: str | None) -> list[Any]:
        return looked_at(path)

    def send(drawn: list[int], chosen: int, request: gr.Request) -> list[Any]:
        entry = draw.picked(studio, request, drawn, chosen)
        if entry is None:
            return [gr.skip()] * (len(shown) + 1)
        return [*looked_at(str(entry.file)), gr.update(selected="picture")]

    def use(path: str) -> list[Any]:
        try:
            order = drawing.order_of(reading.read(Path(path)).generation, studio)
        except AtomdiffError as error:
            return [*[gr.skip()] * (len(page.form) + 1), pieces.error(str(error)), gr.skip()]
        return [*settings.filled(page, order), "", gr.update(selected="draw")]

    def keep(path: str) -> list[Any]:
        try:
            entry = studio.library.add(Path(path))
        except AtomdiffError as error:
            return [pieces.error(str(error)), gr.skip()]
        told = f"{entry.title} is in the library now: choose it under Concepts on Draw."
        return [pieces.note(told), concepts.known(studio)]

    shared["picture.file"].change(show, shared["picture.file"], shown, **quiet)
    which = [shared["draw.drawn"], shared["draw.chosen"]]
    shared["draw.to_picture"].click(send, which, [*shown, page.tabs], **quiet)
    form = [*page.form.values(), shared["draw.subjects"]]
    shared["picture.use"].click(
        use, shared["picture.path"], [*form, shared["picture.status"], page.tabs], **quiet
    )
    kept = [shared["picture.status"], shared["concepts.known"]]
    shared["picture.keep"].click(keep, shared["picture.path"], kept, **quiet)


def looked_at(path: str | None) -> list[Any]:
    """Values for told, use, keep, status and path."""
    if not path:
        return [EMPTY, gr.update(interactive=False), gr.update(visible=False), "", ""]
    try:
        told = reading.read(Path(path))
    except AtomdiffError as error:
        return [pieces.error(str(error)), gr.update(interactive=False), gr.update(visible=False), "", ""]
    image = f'<div class="told"><img alt="" src="{escape(told.shown)}"></div>' if told.shown else ""
    html = image + pieces.facts(told.rows())
    usable = bool(told.generation.fields)
    return [html, gr.update(interactive=usable), gr.update(visible=told.concept is not None), "", path]
