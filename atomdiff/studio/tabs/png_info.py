"""Picture info: what a picture says of itself, and drawing with it again."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from atomdiff.errors import AtomdiffError
from atomdiff.studio import html, png_info
from atomdiff.studio.draw_request import request_of
from atomdiff.studio.session import Studio
from atomdiff.studio.tabs import parts
from atomdiff.studio.tabs.concepts import ConceptsTab
from atomdiff.studio.tabs.draw import DrawTab
from atomdiff.studio.tabs.history import HistoryTab

EMPTY = html.empty(
    "Which picture?",
    "Drop a PNG, JPEG or WebP that atomdiff or its kin drew. It says how it was made, and which concept is "
    "in it.",
)


def png_info_tab(
    studio: Studio, tabs: gr.Tabs, draw: DrawTab, concepts: ConceptsTab, history: HistoryTab
) -> None:
    """The tab."""
    with gr.Tab("Picture info", id="picture", render_children=True), gr.Row(elem_classes="workbench"):
        with gr.Column(elem_classes="controls"):
            # A file, not gr.Image: that would decode and re-encode the picture, and lose what it says.
            file = gr.File(
                label="A picture", file_count="single", type="filepath", elem_id="picture-file", height=150,
                elem_classes="drop",
            )  # fmt: skip
            use = gr.Button(
                "Use these settings", variant="primary", interactive=False, elem_id="use-settings"
            )
            keep = gr.Button("Put its concept into the library", visible=False, elem_id="keep-concept")
            status = gr.HTML("", elem_id="picture-status")
        with gr.Column(elem_classes="stage-side"):
            about = gr.HTML(EMPTY, elem_id="picture-told")
    path = gr.State("")
    outputs = [about, use, keep, status, path]

    @file.change(inputs=file, outputs=outputs)
    def show(given: str | None) -> dict[Any, Any]:
        shown = {about: EMPTY, use: gr.update(interactive=False), keep: parts.HIDDEN, status: "", path: ""}
        if not given:
            return shown
        try:
            info = png_info.read(Path(given))
        except AtomdiffError as error:
            return shown | {about: html.error(str(error))}
        image = f'<div class="told"><img alt="" src="{escape(info.shown)}"></div>' if info.shown else ""
        return shown | {
            about: image + html.facts(info.rows()),
            use: gr.update(interactive=bool(info.generation.fields)),
            keep: gr.update(visible=info.concept is not None),
            path: given,
        }

    def send(shown: list[int], at: int, request: gr.Request) -> dict[Any, Any]:
        entry = parts.picked(studio, request, shown, at)
        return show(str(entry.file)) | {tabs: gr.Tabs(selected="picture")}

    draw.to_info.click(send, [draw.drawn, draw.chosen], [*outputs, tabs])
    history.to_info.click(send, [history.shown, history.chosen], [*outputs, tabs])

    @use.click(inputs=path, outputs=draw.settings.outputs)
    def use_settings(given: str) -> dict[Any, Any]:
        request = request_of(png_info.read(Path(given)).generation, studio)
        return draw.settings.filled(request) | draw.settings.opened()

    @keep.click(inputs=path, outputs=[status, concepts.known])
    def keep_concept(given: str) -> Any:
        entry = studio.library.add(Path(given))
        note = f"{entry.title} is in the library now: choose it under Concepts on Draw."
        return html.note(note), concepts.changed()
