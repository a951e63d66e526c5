"""Compare: grids along up to three settings, as one labelled picture and as files."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from atomdiff.errors import AtomdiffError
from atomdiff.sampling.grids import KINDS, Grid
from atomdiff.sampling.infotext import parse
from atomdiff.studio import drawing, form, pieces
from atomdiff.studio.people import owner
from atomdiff.studio.tabs import draw, settings

if TYPE_CHECKING:
    from atomdiff.studio.page import Page

NAMES = {"strength": "Strength", "seed": "Seed", "steps": "Steps", "guidance": "CFG", "sampler": "Sampler",
         "concept": "Concept", "prompt": "Part of the prompt"}  # fmt: skip
USUAL = {
    "strength": "0, 0.5, 1",
    "seed": "1..3",
    "steps": "5, 10, 25",
    "guidance": "2, 4, 8",
    "sampler": "dpm++, euler a, ddim",
}
HELP = pieces.hint(
    "Values: 0, 0.5, 1 or 0..1 by 0.25 or 1..4. Concepts by name, none for without. Of the parts of the "
    "prompt, write first the one that stands in it."
)
EMPTY = pieces.empty(
    "Nothing compared yet",
    "Choose what changes across and down. All other settings, the prompt too, are those on Draw.",
)


def build(page: Page) -> None:
    """Lays the tab out."""
    shared = page.shared
    axes: list[Any] = []
    with gr.Tab("Compare", id="compare", render_children=True), gr.Row(elem_classes="workbench"):
        with gr.Column(elem_classes="controls"):
            for name, kind in (("Across", "strength"), ("Down", "seed"), ("Tables", "")):
                axes += _axis(name, kind)
            gr.HTML(HELP)
            with gr.Row(elem_classes="line"):
                shared["compare.go"] = gr.Button(
                    "Draw the grid", variant="primary", elem_id="grid-go", elem_classes="go"
                )
                shared["compare.halt"] = gr.Button(
                    "Cancel", variant="stop", visible=False, elem_id="grid-halt", elem_classes="halt"
                )
        with gr.Column(elem_classes="stage-side"):
            shared["compare.status"] = gr.HTML(EMPTY, elem_id="grid-status")
            shared["compare.sheet"] = gr.Image(
                visible=False,
                type="filepath",
                format="png",
                show_label=False,
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_id="grid-sheet",
                elem_classes="sheet",
            )
            shared["compare.table"] = gr.Dataframe(
                visible=False, interactive=False, elem_id="grid-table", wrap=True
            )
            shared["compare.files"] = gr.DownloadButton(
                "Download all as a zip", visible=False, elem_id="grid-files"
            )
    shared["compare.axes"] = axes


def _axis(name: str, kind: str) -> list[Any]:
    with gr.Row(elem_classes="line"):
        choices = [("nothing", "")] if name != "Across" else []
        which = gr.Dropdown(
            [*choices, *((NAMES[kind], kind) for kind in KINDS)],
            value=kind,
            label=name,
            scale=2,
            min_width=110,
            elem_id=f"axis-{name.lower()}",
        )
        text = gr.Textbox(
            USUAL.get(kind, ""),
            label="Values",
            scale=3,
            min_width=150,
            elem_id=f"values-{name.lower()}",
        )
    # In the browser: an answer of the server could come after the user has typed.
    usual = f"(kind) => ({json.dumps(USUAL)})[kind] ?? ''"
    which.input(None, which, text, js=usual, api_visibility="private")
    return [which, text]


def wire(page: Page) -> None:
    """Connects it."""
    studio, shared = page.studio, page.shared
    names = ("status", "sheet", "table", "files", "go", "halt")
    outputs = [shared[f"compare.{name}"] for name in names]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    async def compare(request: gr.Request, *values: Any) -> AsyncIterator[list[Any]]:
        me = owner(request)
        try:
            order = form.order_from(values[:-6]).seeded()
            grid = drawing.grid_of(studio, order, list(zip(values[-6::2], values[-5::2], strict=True)))
            job = studio.desk.submit(me, drawing.grid_drawn(studio, me, order.base, grid))
        except AtomdiffError as error:
            hidden = gr.update(visible=False)
            yield [pieces.error(str(error)), hidden, hidden, hidden, gr.skip(), gr.skip()]
            return
        async for look in studio.desk.watch(job):
            buttons = [gr.update(visible=look.over), gr.update(visible=not look.over)]
            results = _results(grid, list(look.results)) if look.over else [gr.update(visible=False)] * 3
            yield [pieces.progress(look), *results, *buttons]

    shared["compare.go"].click(
        compare,
        [*page.form.values(), *shared["compare.axes"]],
        outputs,
        concurrency_limit=None,
        trigger_mode="once",
        **quiet,
    )
    shared["compare.halt"].click(draw.stopper(studio), None, None, queue=False, **quiet)

    def send(drawn: list[int], chosen: int, request: gr.Request) -> list[Any]:
        """What the picture was drawn with is what is compared around."""
        entry = draw.picked(studio, request, drawn, chosen)
        try:
            filled = settings.filled(page, drawing.order_of(parse(entry.text if entry else ""), studio))
        except AtomdiffError:
            filled = []
        form = filled if entry and filled else [gr.skip()] * (len(page.form) + 1)
        return [*form, gr.update(selected="compare")]

    which = [shared["draw.drawn"], shared["draw.chosen"]]
    filled = [*page.form.values(), shared["draw.subjects"], page.tabs]
    shared["draw.to_compare"].click(send, which, filled, **quiet)


def _results(grid: Grid, entries: list[Any]) -> list[Any]:
    """Values for sheet, table and files, once the grid is drawn."""
    if not entries or entries[-1].kind != "grid":
        return [gr.update(visible=False)] * 3
    headers = [*(axis.kind for axis in grid.axes), "file"]
    rows = [[*cell.labels, entry.file.name] for cell, entry in zip(grid.cells(), entries[:-1], strict=True)]
    archive = drawing.zipped(headers, rows, entries)
    return [
        gr.update(value=str(entries[-1].file), visible=True),
        gr.update(value={"headers": headers, "data": rows}, visible=True),
        gr.update(value=archive, visible=True),
    ]
