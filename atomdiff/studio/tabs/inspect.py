"""What was learned: a concept's maps and drift, and a strength for each block to draw with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from atomdiff.core.blocks import BLOCKS
from atomdiff.studio import html, inspection
from atomdiff.studio.identity import owner
from atomdiff.studio.session import Studio
from atomdiff.studio.tabs import parts
from atomdiff.studio.tabs.concepts import ConceptsTab
from atomdiff.studio.tabs.draw import DrawTab

EMPTY = html.empty(
    "What is in those kilobytes?",
    "Choose a concept: you see how far it moves each layer of the model, and the maps that it is made of.",
)
LABELS = {"down": "Down: what it sees", "mid": "Middle: what it composes", "up": "Up: how it paints"}


def inspect_tab(studio: Studio, tabs: gr.Tabs, draw: DrawTab, concepts: ConceptsTab) -> None:
    """The tab."""
    with (
        gr.Tab("What was learned", id="learned", render_children=True) as tab,
        gr.Row(elem_classes="workbench"),
    ):
        with gr.Column(elem_classes="controls"):
            which = gr.Dropdown([], label="Concept", value=None, elem_id="learned-which")
            blocks = [
                gr.Slider(0, 2, 1.0, step=0.05, label=LABELS[block], buttons=[], elem_id=f"learned-{block}")
                for block in BLOCKS
            ]
            gr.HTML(html.hint("1 is as trained, 0 leaves the block as it is in the base."))
            go = gr.Button(
                "Draw with these strengths", variant="primary", interactive=False, elem_id="learned-draw"
            )
            facts = gr.HTML("", elem_id="learned-facts")
        with gr.Column(elem_classes="stage-side"):
            status = gr.HTML(EMPTY, elem_id="learned-status")
            drift, maps = (
                gr.Image(
                    show_label=False, visible=False, type="filepath", format="png", interactive=False,
                    buttons=["download", "fullscreen"], elem_id=f"learned-{name}", elem_classes="sheet",
                )
                for name in ("drift", "maps")
            )  # fmt: skip

    @gr.on([tab.select, which.focus], outputs=which)
    def choices() -> Any:
        return gr.update(choices=[(entry.title, entry.id) for entry in studio.concepts()])

    @concepts.to_inspect.click(inputs=concepts.chosen, outputs=[which, tabs])
    def send(ident: str) -> Any:
        return choices() | {"value": ident}, gr.Tabs(selected="learned")

    @which.change(inputs=which, outputs=[status, drift, maps, facts, go], trigger_mode="always_last")
    async def show(ident: str | None, request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
        blank = {drift: parts.HIDDEN, maps: parts.HIDDEN, facts: "", go: gr.update(interactive=False)}
        yield blank | {status: EMPTY}
        if not ident:
            return
        work = inspection.inspect(studio, ident)
        async for now in studio.queue.watch(studio.queue.submit(f"inspection of {owner(request)}", work)):
            yield {status: html.progress(now)}
            for found in now.results:
                moved = [(f"Weights moved, {block}", f"{part:.2%}") for block, part in found.moved.items()]
                yield {
                    drift: gr.update(value=str(found.drift), visible=True),
                    maps: gr.update(value=str(found.maps), visible=True),
                    facts: html.facts(moved),
                    go: gr.update(interactive=True),
                }

    @go.click(inputs=[which, *blocks], inputs_kwargs=draw.settings.context, outputs=draw.settings.outputs)
    def draw_with(ident: str, down: float, mid: float, up: float, **context: Any) -> dict[Any, Any]:
        strength = dict(zip(BLOCKS, (down, mid, up), strict=True))
        return draw.settings.with_concept(ident, strength=strength, **context)
