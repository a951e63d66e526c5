"""What was learned: a concept's maps and drift, and a strength for each block to draw with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from atomdiff.core.blocks import BLOCKS
from atomdiff.errors import AtomdiffError
from atomdiff.studio import insight, pieces
from atomdiff.studio.house import Studio
from atomdiff.studio.people import owner
from atomdiff.studio.tabs import sending

if TYPE_CHECKING:
    from atomdiff.studio.page import Page

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
EMPTY = pieces.empty(
    "What is in those kilobytes?",
    "Choose a concept: you see how far it moves each layer of the model, and the maps that it is made of.",
)
LABELS = {"down": "Down: what it sees", "mid": "Middle: what it composes", "up": "Up: how it paints"}


def build(page: Page) -> None:
    """Lays the tab out."""
    shared = page.shared
    with (
        gr.Tab("What was learned", id="learned", render_children=True) as shared["learned.tab"],
        gr.Row(elem_classes="workbench"),
    ):
        with gr.Column(elem_classes="controls"):
            shared["learned.which"] = gr.Dropdown(
                [], label="Concept", value=None, elem_id="learned-which", filterable=True
            )
            for block in BLOCKS:
                shared[f"learned.{block}"] = gr.Slider(
                    0, 2, 1.0, step=0.05, label=LABELS[block], buttons=[], elem_id=f"learned-{block}"
                )
            gr.HTML(pieces.hint("1 is as trained, 0 leaves the block as it is in the base."))
            shared["learned.draw"] = gr.Button(
                "Draw with these strengths", variant="primary", interactive=False, elem_id="learned-draw"
            )
            shared["learned.facts"] = gr.HTML("", elem_id="learned-facts")
        with gr.Column(elem_classes="stage-side"):
            shared["learned.status"] = gr.HTML(EMPTY, elem_id="learned-status")
            for name in ("drift", "maps"):
                shared[f"learned.{name}"] = gr.Image(
                    show_label=False, visible=False, type="filepath", format="png", interactive=False,
                    buttons=["download", "fullscreen"], elem_id=f"learned-{name}", elem_classes="sheet",
                )  # fmt: skip


def wire(page: Page) -> None:
    """Connects it."""
    studio, shared = page.studio, page.shared
    parts = ("status", "drift", "maps", "facts", "draw")
    outputs = [shared[f"learned.{name}"] for name in parts]

    async def show(ident: str | None, request: gr.Request) -> AsyncIterator[list[Any]]:
        async for values in _shown(studio, owner(request), ident or ""):
            yield values

    def choices() -> Any:
        return gr.update(choices=_choices(studio))

    def send(ident: str) -> list[Any]:
        return [gr.update(choices=_choices(studio), value=ident), gr.update(selected="learned")]

    which = shared["learned.which"]
    shared["learned.tab"].select(choices, None, which, **QUIET)
    which.focus(choices, None, which, **QUIET)
    which.change(show, which, outputs, concurrency_limit=None, trigger_mode="always_last", **QUIET)
    shared["concepts.learned"].click(send, shared["concepts.chosen"], [which, page.tabs], **QUIET)

    def draw(
        ident: str, down: float, mid: float, up: float, prompt: str, base: str, subjects: list[Any]
    ) -> list[Any]:
        strength = dict(zip(BLOCKS, (down, mid, up), strict=True))
        return [*sending.on_draw(page, ident, prompt, base, subjects, strength), gr.update(selected="draw")]

    shared["learned.draw"].click(
        draw,
        [which, *(shared[f"learned.{block}"] for block in BLOCKS), *sending.draw_inputs(page)],
        [*sending.draw_outputs(page), page.tabs],
        **QUIET,
    )


async def _shown(studio: Studio, me: str, ident: str) -> AsyncIterator[list[Any]]:
    """Values for status, drift, maps, facts and draw, while the sheets are made."""
    hidden = gr.update(visible=False)
    if not ident:
        yield [EMPTY, hidden, hidden, "", gr.update(interactive=False)]
        return
    try:
        job = studio.desk.submit(f"insight of {me}", insight.looked_into(studio, ident))
    except AtomdiffError as error:
        yield [pieces.error(str(error)), hidden, hidden, "", gr.update(interactive=False)]
        return
    async for look in studio.desk.watch(job):
        if not look.results:
            yield [pieces.progress(look), hidden, hidden, "", gr.update(interactive=look.over)]
            continue
        found = look.results[0]
        yield [
            pieces.progress(look),
            gr.update(value=str(found.drift), visible=True),
            gr.update(value=str(found.maps), visible=True),
            pieces.facts(
                [(f"Weights moved, {block}", f"{ratio:.2%}") for block, ratio in found.moved.items()]
            ),
            gr.update(interactive=True),
        ]


def _choices(studio: Studio) -> list[tuple[str, str]]:
    return [(entry.title, entry.id) for entry in studio.concepts()]
