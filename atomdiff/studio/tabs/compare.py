"""Compare: grids along up to three settings, as one labelled picture and as files."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from atomdiff.sampling.grids import KINDS, Grid
from atomdiff.sampling.infotext import parse
from atomdiff.studio import draw_form, drawing, html
from atomdiff.studio.draw_request import request_of
from atomdiff.studio.identity import owner
from atomdiff.studio.session import Studio
from atomdiff.studio.tabs import parts
from atomdiff.studio.tabs.draw import DrawTab

NAMES = {"strength": "Strength", "seed": "Seed", "steps": "Steps", "guidance": "CFG", "sampler": "Sampler",
         "concept": "Concept", "prompt": "Part of the prompt"}  # fmt: skip
USUAL = {
    "strength": "0, 0.5, 1",
    "seed": "1..3",
    "steps": "5, 10, 25",
    "guidance": "2, 4, 8",
    "sampler": "dpm++, euler a, ddim",
}
HELP = html.hint(
    "Values: 0, 0.5, 1 or 0..1 by 0.25 or 1..4. Concepts by name, none for without. Of the parts of the "
    "prompt, write first the one that stands in it."
)
EMPTY = html.empty(
    "Nothing compared yet",
    "Choose what changes across and down. All other settings, the prompt too, are those on Draw.",
)


def compare_tab(studio: Studio, tabs: gr.Tabs, draw: DrawTab) -> None:
    """The tab."""
    with gr.Tab("Compare", id="compare", render_children=True), gr.Row(elem_classes="workbench"):
        with gr.Column(elem_classes="controls"):
            axes = [_axis(*axis) for axis in (("Across", "strength"), ("Down", "seed"), ("Tables", ""))]
            gr.HTML(HELP)
            go, halt = parts.go_and_halt("Draw the grid", "grid-go", "grid-halt")
        with gr.Column(elem_classes="stage-side"):
            status = gr.HTML(EMPTY, elem_id="grid-status")
            sheet = gr.Image(
                visible=False, type="filepath", format="png", show_label=False, interactive=False,
                buttons=["download", "fullscreen"], elem_id="grid-sheet", elem_classes="sheet",
            )  # fmt: skip
            table = gr.Dataframe(visible=False, interactive=False, elem_id="grid-table", wrap=True)
            files = gr.DownloadButton("Download all as a zip", visible=False, elem_id="grid-files")
    results = [sheet, table, files]

    @go.click(
        inputs=[part for axis in axes for part in axis],
        inputs_kwargs=draw.settings.form,
        outputs=[status, *results, go, halt],
        trigger_mode="once",
    )
    async def compare(
        kind_x: str, x: str, kind_y: str, y: str, kind_z: str, z: str, request: gr.Request, **form: Any
    ) -> AsyncIterator[dict[Any, Any]]:
        me, wanted = owner(request), draw_form.request_from(form)
        grid = drawing.grid_of(studio, wanted, [(kind_x, x), (kind_y, y), (kind_z, z)])
        job = studio.queue.submit(me, drawing.draw_grid(studio, me, wanted, grid))
        async for now in studio.queue.watch(job):
            made = _results(grid, list(now.results)) if now.state == "done" else [parts.HIDDEN] * 3
            shown = dict(zip(results, made, strict=True))
            yield {status: html.progress(now), **parts.running(go, halt, not now.over), **shown}

    @halt.click(queue=False)
    def stop(request: gr.Request) -> None:
        studio.queue.cancel(owner(request))

    @draw.to_compare.click(inputs=[draw.drawn, draw.chosen], outputs=draw.settings.outputs)
    def send(shown: list[int], at: int, request: gr.Request) -> dict[Any, Any]:
        """What the picture was drawn with is what is compared around."""
        entry = parts.picked(studio, request, shown, at)
        filled = draw.settings.filled(request_of(parse(entry.text), studio))
        return filled | {tabs: gr.Tabs(selected="compare")}


def _axis(name: str, kind: str) -> tuple[gr.Dropdown, gr.Textbox]:
    with gr.Row(elem_classes="line"):
        choices = [("nothing", "")] if name != "Across" else []
        which = gr.Dropdown(
            [*choices, *((NAMES[kind], kind) for kind in KINDS)], value=kind, label=name, scale=2,
            min_width=110, elem_id=f"axis-{name.lower()}",
        )  # fmt: skip
        text = gr.Textbox(
            USUAL.get(kind, ""), label="Values", scale=3, min_width=150, elem_id=f"values-{name.lower()}"
        )
    # In the browser: an answer of the server could come after the user has typed.
    which.input(None, which, text, js=f"(kind) => ({json.dumps(USUAL)})[kind] ?? ''")
    return which, text


def _results(grid: Grid, entries: list[Any]) -> list[Any]:
    """Values for sheet, table and files, once the grid is drawn."""
    headers = [*(axis.kind for axis in grid.axes), "file"]
    rows = [[*cell.labels, entry.file.name] for cell, entry in zip(grid.cells(), entries[:-1], strict=True)]
    values = (
        str(entries[-1].file),
        {"headers": headers, "data": rows},
        drawing.zipped(headers, rows, entries),
    )
    return [gr.update(value=value, visible=True) for value in values]
