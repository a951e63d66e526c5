"""Draw: the form, the pictures as they come, and what can be done with one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from atomdiff.sampling.infotext import parse
from atomdiff.serving.job_queue import Job, JobStatus
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
            stage = _Stage(studio, settings)
    outputs = stage.outputs

    @settings.go.click(inputs_kwargs=settings.form, outputs=outputs, trigger_mode="once")
    async def draw(request: gr.Request, **form: Any) -> AsyncIterator[dict[Any, Any]]:
        me = owner(request)
        job = studio.queue.submit(me, drawing.draw(studio, me, draw_form.request_from(form)))
        async for updates in stage.followed(job):
            yield updates

    @page.load(outputs=outputs)
    async def resume(request: gr.Request) -> AsyncIterator[Any]:
        job = studio.queue.current(owner(request))
        if job is None:
            yield gr.skip()
            return
        async for updates in stage.followed(job):
            yield updates

    @settings.halt.click(queue=False)
    def stop(request: gr.Request) -> None:
        studio.queue.cancel(owner(request))

    @stage.gallery.select(outputs=stage.chosen)
    def select(event: gr.SelectData) -> int:
        return int(event.index)

    _connect_actions(studio, settings, stage)
    return DrawTab(settings, stage.drawn, stage.chosen, stage.to_compare, stage.to_info)


class _Stage:
    """The pictures, and the buttons under them."""

    def __init__(self, studio: Studio, settings: DrawSettings) -> None:
        self._studio, self._settings = studio, settings
        self.status = gr.HTML(EMPTY, elem_id="status")
        self.gallery = parts.gallery("gallery", columns=2)
        with gr.Row(visible=False, elem_classes="actions", elem_id="actions") as self.actions:
            self.without = gr.Button("Without the concept", size="sm", min_width=130, elem_id="without")
            self.reuse = gr.Button("Reuse seed", size="sm", min_width=90, elem_id="reuse-seed")
            self.varied = gr.Button("Variations", size="sm", min_width=90, elem_id="variations")
            self.larger = gr.Button("Enlarge", size="sm", min_width=80, elem_id="enlarge")
            self.to_start = gr.Button("Draw from it", size="sm", min_width=90, elem_id="to-start")
            self.sticker = gr.Button("Sticker", size="sm", min_width=70, elem_id="sticker")
            self.sheet = gr.Button("Contact sheet", size="sm", min_width=100, elem_id="sheet")
            self.to_compare = gr.Button("Compare", size="sm", min_width=80, elem_id="to-compare")
            self.to_info = gr.Button("Picture info", size="sm", min_width=90, elem_id="to-picture")
        self.slider = gr.ImageSlider(
            show_label=False, visible=False, type="filepath", format="png", elem_id="before-after",
            interactive=False, elem_classes="picture", buttons=["fullscreen"], max_height=420,
        )  # fmt: skip
        self.drawn, self.chosen = gr.State([]), gr.State(0)
        self.which = [self.drawn, self.chosen]
        self.outputs = [self.status, self.gallery, self.actions, *self.which, self.without, settings.go,
                        settings.halt, self.slider]  # fmt: skip

    def told(self, now: JobStatus) -> dict[Any, Any]:
        """How far a job is, and the button that there is meanwhile."""
        return {
            self.status: html.progress(now),
            **parts.running(self._settings.go, self._settings.halt, not now.over),
        }

    async def followed(self, job: Job) -> AsyncIterator[dict[Any, Any]]:
        """What the page shows while a job runs: new pictures only when there are some."""
        shown = -1
        async for now in self._studio.queue.watch(job):
            updates = self.told(now)
            if len(now.results) > shown:
                shown = len(now.results)
                updates |= self.pictures(list(now.results))
            yield updates

    def pictures(self, entries: list[Any]) -> dict[Any, Any]:
        """Updates that show these pictures."""
        files = [str(entry.file) for entry in entries]
        columns = next((columns for columns, most in ((1, 1), (2, 4), (3, 9)) if len(files) <= most), 4)
        with_concept = any(parse(entry.text).concepts for entry in entries)
        shown = gr.update(value=files, visible=bool(files), columns=columns, selected_index=None)
        return {
            self.gallery: shown, self.actions: gr.update(visible=bool(files)),
            self.drawn: [entry.id for entry in entries], self.chosen: gr.skip() if entries else 0,
            self.without: gr.update(visible=with_concept), self.slider: parts.HIDDEN,
        }  # fmt: skip


def _connect_actions(studio: Studio, settings: DrawSettings, stage: _Stage) -> None:
    """What the buttons under the pictures do, most of them with the chosen one."""
    which, outputs = stage.which, stage.outputs

    def redraw(work: Callable[..., Callable[[Job], None]]) -> Callable[..., AsyncIterator[dict[Any, Any]]]:
        """A handler that draws something of the chosen picture."""

        async def drawn_of(shown: list[int], at: int, request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
            me, entry = owner(request), parts.picked(studio, request, shown, at)
            async for updates in stage.followed(studio.queue.submit(me, work(studio, me, entry))):
                yield updates

        return drawn_of

    stage.varied.click(redraw(drawing.variations), which, outputs)
    stage.larger.click(redraw(drawing.enlarged), which, outputs)

    @stage.sticker.click(inputs=which, outputs=outputs)
    def cut_out(shown: list[int], at: int, request: gr.Request) -> dict[Any, Any]:
        made = drawing.keep_sticker(studio, owner(request), parts.picked(studio, request, shown, at))
        return stage.pictures([made])

    @stage.sheet.click(inputs=stage.drawn, outputs=outputs)
    def contact_sheet(shown: list[int], request: gr.Request) -> dict[Any, Any]:
        entries = [parts.picked(studio, request, [ident], 0) for ident in shown]
        return stage.pictures([drawing.keep_contact_sheet(studio, owner(request), entries)])

    @stage.to_start.click(inputs=which, outputs=[settings.form["start"], settings.start])
    def start_from(shown: list[int], at: int, request: gr.Request) -> Any:
        file = str(parts.picked(studio, request, shown, at).file)
        return {"background": file, "layers": [], "composite": file}, gr.Accordion(open=True)

    @gr.on([stage.reuse.click, settings.last.click], inputs=which, outputs=settings.form["seed"])
    def seed(shown: list[int], at: int, request: gr.Request) -> str:
        return parse(parts.picked(studio, request, shown, at).text).fields.get("Seed", "")

    @stage.without.click(inputs=which, outputs=[stage.status, stage.slider, settings.go, settings.halt])
    async def compare_with_none(
        shown: list[int], at: int, request: gr.Request
    ) -> AsyncIterator[dict[Any, Any]]:
        me, entry = owner(request), parts.picked(studio, request, shown, at)
        job = studio.queue.submit(me, drawing.without_concept(studio, me, entry))
        async for now in studio.queue.watch(job):
            updates = stage.told(now)
            if now.results:
                pair = (str(now.results[0].file), str(entry.file))
                updates[stage.slider] = gr.update(value=pair, visible=True)
            yield updates
