"""The side of Concepts: what is told of the chosen concept, and what can be done with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from atomdiff.studio import html, library_view
from atomdiff.studio.identity import owner
from atomdiff.studio.session import Studio
from atomdiff.studio.tabs import parts

if TYPE_CHECKING:
    from atomdiff.library import Entry


class OneConcept:
    """What can be done with the chosen concept."""

    def __init__(self) -> None:
        self.about = gr.HTML("", elem_id="concept-about")
        with gr.Row(elem_classes="line"):
            self.draw = gr.Button("Draw with it", variant="primary", scale=3, elem_id="draw-with")
            self.to_inspect = gr.Button("What it learned", scale=2, min_width=130, elem_id="look-into")
        with gr.Row(elem_classes="line"):
            self.file = gr.DownloadButton("File", size="sm", min_width=60, elem_id="share-file")
            self.card, self.qr, self.text = (
                gr.Button(label, size="sm", min_width=60, elem_id=f"share-{label.lower()}")
                for label in ("Card", "QR", "Text")
            )
        self.picture = gr.HTML("", visible=False, elem_id="share-picture")
        self.get = gr.DownloadButton("Download the picture", size="sm", visible=False, elem_id="share-get")
        self.line = gr.Textbox(
            label="Its text: paste it into any chat", lines=3, max_lines=3, visible=False, interactive=False,
            buttons=["copy"], elem_id="share-line",
        )  # fmt: skip
        with gr.Accordion("Name and tags", open=False, elem_classes="quiet", elem_id="concept-notes"):
            self.name = gr.Textbox(label="Name in this library", elem_id="concept-name")
            self.tags = gr.Textbox(label="Tags", placeholder="pets, favourite", elem_id="concept-tags")
            with gr.Row(elem_classes="line"):
                self.save = gr.Button("Save", size="sm", elem_id="concept-note")
                self.remove = gr.Button("Remove", size="sm", variant="stop", elem_id="concept-remove")
        self.outputs = [self.about, self.file, self.name, self.tags, self.picture, self.get, self.line]

    def shown(self, studio: Studio, entry: Entry | None, base: str) -> dict[Any, Any]:
        """Updates for a concept that was chosen, or for none."""
        shared = dict.fromkeys((self.picture, self.get, self.line), parts.HIDDEN)
        if entry is None:
            return shared | {self.about: "", self.name: "", self.tags: ""}
        return shared | {
            self.about: library_view.about(entry, base),
            self.file: str(library_view.share(studio, "", entry.id, "file")),
            self.name: entry.title,
            self.tags: ", ".join(entry.tags),
        }

    def connect(self, studio: Studio, settings: Any, chosen: gr.State, status: gr.HTML) -> None:
        """The buttons that hand the concept on, or draw with it."""
        outputs = [self.picture, self.get, self.line, status]

        def picture(form: str) -> Callable[..., Any]:
            def make(ident: str, request: gr.Request) -> Any:
                path = library_view.share(studio, owner(request), ident, form)
                image = f'<img alt="" src="{html.data_uri(path.read_bytes())}">'
                download = gr.update(value=str(path), visible=True)
                return gr.update(value=image, visible=True), download, parts.HIDDEN, ""

            return make

        self.card.click(picture("card"), chosen, outputs)
        self.qr.click(picture("qr"), chosen, outputs)

        @self.text.click(inputs=chosen, outputs=outputs)
        def text(ident: str) -> Any:
            line = gr.update(value=library_view.text_of(studio, ident), visible=True)
            return parts.HIDDEN, parts.HIDDEN, line, ""

        self.draw.click(settings.with_concept, chosen, settings.outputs, inputs_kwargs=settings.context)
