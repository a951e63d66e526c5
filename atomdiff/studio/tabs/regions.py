"""The part of Draw on which one paints where each concept is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import gradio as gr

from atomdiff.sampling.settings import parse_size
from atomdiff.studio import canvas, html

if TYPE_CHECKING:
    from gradio.components.image_editor import EditorValue

    from atomdiff.library import Entry

ABOUT = (
    "Paint where each concept is to be, in its colour; the borders come out soft. One that has no place acts "
    "everywhere. The prompt may name them all: each place leaves out what the others are called."
)


class RegionsPart:
    """Its components: the canvas (`form["regions"]`), the legend, and the part as a whole, which is there
    where a concept is chosen."""

    def __init__(self, form: dict[str, Any], native: tuple[int, int]) -> None:
        self._form, value = form, cast("EditorValue", canvas.blank(native))
        with gr.Accordion(
            "Where each concept is", open=False, visible=False, elem_classes="quiet", elem_id="where"
        ) as self.whole:
            self.legend = gr.HTML("", elem_id="where-legend")
            form["regions"] = gr.ImageEditor(
                value, type="pil", format="png", show_label=False, sources=[], layers=False,
                brush=gr.Brush(colors=list(canvas.COLOURS), color_mode="fixed", default_size=60),
                transforms=[], buttons=[], height=420, elem_id="where-canvas",
            )  # fmt: skip
            self.clear = gr.Button("Clear", size="sm", elem_id="where-clear")
            gr.HTML(html.hint(ABOUT))
        self.outputs = [self.whole, self.legend]

    def connect(self) -> None:
        """What happens when it is cleared, or the pictures get another shape."""
        size, drawn = self._form["size"], self._form["regions"]

        @self.clear.click(inputs=size, outputs=drawn)
        def clear(text: str) -> Any:
            return canvas.blank(parse_size(text) or (1, 1))

        @size.input(inputs=[drawn, size], outputs=drawn)
        def reshape(value: Any, text: str) -> Any:
            regions = canvas.regions_of(value, len(canvas.COLOURS))
            return canvas.painted(regions, parse_size(text) or (1, 1))

    def shown(self, entries: Sequence[Entry | None]) -> dict[Any, Any]:
        """Updates for the concepts that are chosen."""
        names = [entry.title for entry in entries if entry]
        return {self.whole: gr.update(visible=bool(names)), self.legend: canvas.legend(names)}

    def moved(self, value: Any, before: Sequence[str], now: Sequence[str], size: str) -> Any:
        """The canvas when other concepts are chosen: what was painted stays with its concept."""
        kept = [ident for ident in before if ident in now]
        if kept == list(now[: len(kept)]) and len(kept) == len(before):
            return gr.skip()
        return canvas.painted(
            canvas.reordered(canvas.regions_of(value, len(before)), before, now), parse_size(size) or (1, 1)
        )
