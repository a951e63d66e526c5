"""Draw: the form, the pictures as they come, and what can be done with one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from atomdiff.sampling.infotext import parse
from atomdiff.serving.job_queue import Job
from atomdiff.studio import draw_form, drawing, html
from atomdiff.studio.identity import owner
from atomdiff.studio.session import Studio
from atomdiff.studio.tabs import parts
from atomdiff.studio.tabs.draw_settings import DrawSettings

EMPTY = html.empty(
    "Nothing drawn yet",
    "Write what you want to see, or take one of the examples, and press Draw. Your pictures appear here.",
)


@dataclass(frozen=True)
class DrawTab:
    """What later tabs need: the settings, which picture is chosen, and the buttons that lead to those
    tabs."""

    settings: DrawSettings
    drawn: gr.State
    chosen: gr.State
    to_compare: gr.Button
    to_info: gr.Button


def draw_tab(studio: Studio, page: gr.Blocks, tabs: gr.Tabs) -> DrawTab:
    """The tab."""
    with gr.Tab("Draw", id="draw", render_children=True), gr.Row(elem_classes="workbench"):
        with gr.Column(elem_classes="controls"):
            settings = DrawSettings(studio, tabs)
        with gr.Column(elem_classes="stage-side"):
            status = gr.HTML(EMPTY, elem_id="status")
            gallery = parts.gallery("gallery", columns=2)
            with gr.Row(visible=False, elem_classes="actions", elem_id="actions") as actions:
                without = gr.Button("Without the concept", size="sm", min_width=130, elem_id="without")
                reuse = gr.Button("Reuse seed", size="sm", min_width=90, elem_id="reuse-seed")
                varied = gr.Button("Variations", size="sm", min_width=90, elem_id="variations")
                larger = gr.Button("Enlarge", size="sm", min_width=80, elem_id="enlarge")
                to_start = gr.Button("Draw from it", size="sm", min_width=90, elem_id="to-start")
                sticker = gr.Button("Sticker", size="sm", min_width=70, elem_id="sticker")
                sheet = gr.Button("Contact sheet", size="sm", min_width=100, elem_id="sheet")
                to_compare = gr.Button("Compare", size="sm", min_width=80, elem_id="to-compare")
                to_info = gr.Button("Picture info", size="sm", min_width=90, elem_id="to-picture")
            slider = gr.ImageSlider(
                show_label=False, visible=False, type="filepath", format="png", elem_id="before-after",
                interactive=False, elem_classes="picture", buttons=["fullscreen"], max_height=420,
            )  # fmt: skip
    drawn, chosen = gr.State([]), gr.State(0)
    go, halt, which = settings.go, settings.halt, [drawn, chosen]
    outputs = [status, gallery, actions, drawn, chosen, without, go, halt, slider]

    async def followed(job: Job) -> AsyncIterator[dict[Any, Any]]:
        """What the page shows while a job runs: new pictures only when there are some."""
        shown = -1
        async for now in studio.queue.watch(job):
            updates = {status: html.progress(now), **parts.running(go, halt, not now.over)}
            if len(now.results) > shown:
                shown = len(now.results)
                updates |= pictures(list(now.results))
            yield updates

    def pictures(entries: list[Any]) -> dict[Any, Any]:
        files = [str(entry.file) for entry in entries]
        columns = next((columns for columns, most in ((1, 1), (2, 4), (3, 9)) if len(files) <= most), 4)
        with_concept = any(parse(entry.text).concepts for entry in entries)
        shown = gr.update(value=files, visible=bool(files), columns=columns, selected_index=None)
        return {
            gallery: shown, actions: gr.update(visible=bool(files)), drawn: [entry.id for entry in entries],
            chosen: gr.skip() if entries else 0, without: gr.update(visible=with_concept),
            slider: parts.HIDDEN,
        }  # fmt: skip

    @go.click(inputs_kwargs=settings.form, outputs=outputs, trigger_mode="once")
    async def draw(request: gr.Request, **form: Any) -> AsyncIterator[dict[Any, Any]]:
        me = owner(request)
        job = studio.queue.submit(me, drawing.draw(studio, me, draw_form.request_from(form)))
        async for updates in followed(job):
            yield updates

    def redraw(work: Callable[..., Callable[[Job], None]]) -> Callable[..., AsyncIterator[dict[Any, Any]]]:
        """A handler that draws something of the chosen picture."""

        async def drawn_of(shown: list[int], at: int, request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
            me, entry = owner(request), parts.picked(studio, request, shown, at)
            async for updates in followed(studio.queue.submit(me, work(studio, me, entry))):
                yield updates

        return drawn_of

    varied.click(redraw(drawing.variations), which, outputs)
    larger.click(redraw(drawing.enlarged), which, outputs)

    @sticker.click(inputs=which, outputs=outputs)
    def cut_out(shown: list[int], at: int, request: gr.Request) -> dict[Any, Any]:
        made = drawing.keep_sticker(studio, owner(request), parts.picked(studio, request, shown, at))
        return pictures([made])

    @sheet.click(inputs=drawn, outputs=outputs)
    def contact_sheet(shown: list[int], request: gr.Request) -> dict[Any, Any]:
        entries = [parts.picked(studio, request, [ident], 0) for ident in shown]
        return pictures([drawing.keep_contact_sheet(studio, owner(request), entries)])

    @to_start.click(inputs=which, outputs=[settings.form["start"], settings.start])
    def start_from(shown: list[int], at: int, request: gr.Request) -> Any:
        file = str(parts.picked(studio, request, shown, at).file)
        return {"background": file, "layers": [], "composite": file}, gr.Accordion(open=True)

    @page.load(outputs=outputs)
    async def resume(request: gr.Request) -> AsyncIterator[Any]:
        job = studio.queue.current(owner(request))
        if job is None:
            yield gr.skip()
            return
        async for updates in followed(job):
            yield updates

    @halt.click(queue=False)
    def stop(request: gr.Request) -> None:
        studio.queue.cancel(owner(request))

    @gallery.select(outputs=chosen)
    def select(event: gr.SelectData) -> int:
        return int(event.index)

    @gr.on([reuse.click, settings.last.click], inputs=which, outputs=settings.form["seed"])
    def seed(shown: list[int], at: int, request: gr.Request) -> str:
        return parse(parts.picked(studio, request, shown, at).text).fields.get("Seed", "")

    @without.click(inputs=which, outputs=[status, slider, go, halt])
    async def compare_with_none(
        shown: list[int], at: int, request: gr.Request
    ) -> AsyncIterator[dict[Any, Any]]:
        me, entry = owner(request), parts.picked(studio, request, shown, at)
        job = studio.queue.submit(me, drawing.without_concept(studio, me, entry))
        async for now in studio.queue.watch(job):
            updates = {status: html.progress(now), **parts.running(go, halt, not now.over)}
            if now.results:
                pair = (str(now.results[0].file), str(entry.file))
                updates[slider] = gr.update(value=pair, visible=True)
            yield updates

    return DrawTab(settings, drawn, chosen, to_compare, to_info)
