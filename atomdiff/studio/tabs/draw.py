"""Draw: the form, the pictures as they come, and what can be done with one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from atomdiff.errors import AtomdiffError
from atomdiff.sampling.infotext import parse
from atomdiff.studio import drawing, form, parts, pieces
from atomdiff.studio.desk import Job
from atomdiff.studio.house import Studio
from atomdiff.studio.people import owner
from atomdiff.studio.tabs import settings

if TYPE_CHECKING:
    from atomdiff.studio.page import Page

EMPTY = pieces.empty(
    "Nothing drawn yet",
    "Write what you want to see, or take one of the examples, and press Draw. Your pictures appear here.",
)


def build(page: Page) -> None:
    """Lays the tab out and connects it."""
    with gr.Tab("Draw", id="draw", render_children=True), gr.Row(elem_classes="workbench"):
        with gr.Column(elem_classes="controls"):
            buttons = settings.build(page)
        with gr.Column(elem_classes="stage-side"):
            stage = _stage()
    page.shared |= {f"draw.{name}": part for name, part in {**buttons, **stage}.items()}
    settings.connect(page, buttons)
    _connect_drawing(page)
    _connect_actions(page)


def _stage() -> dict[str, Any]:
    status = gr.HTML(EMPTY, elem_id="status")
    gallery = parts.pictures("gallery", columns=2)
    with gr.Row(visible=False, elem_classes="actions", elem_id="actions") as actions:
        without = gr.Button("Without the concept", size="sm", min_width=130, elem_id="without")
        reuse = gr.Button("Reuse seed", size="sm", min_width=90, elem_id="reuse-seed")
        to_compare = gr.Button("Compare", size="sm", min_width=80, elem_id="to-compare")
        to_picture = gr.Button("Picture info", size="sm", min_width=90, elem_id="to-picture")
    slider = gr.ImageSlider(
        show_label=False,
        visible=False,
        type="filepath",
        format="png",
        elem_id="before-after",
        interactive=False,
        elem_classes="picture",
        buttons=["fullscreen"],
        max_height=420,
    )
    return {
        "status": status,
        "gallery": gallery,
        "actions": actions,
        "without": without,
        "reuse": reuse,
        "to_compare": to_compare,
        "to_picture": to_picture,
        "slider": slider,
        "drawn": gr.State([]),
        "chosen": gr.State(0),
        "subjects": gr.State([]),
    }


def _connect_drawing(page: Page) -> None:
    studio, shared = page.studio, page.shared
    outputs = [
        shared[f"draw.{name}"]
        for name in ("status", "gallery", "actions", "drawn", "chosen", "without", "go", "halt", "slider")
    ]

    async def draw(request: gr.Request, *values: Any) -> AsyncIterator[list[Any]]:
        me = owner(request)
        try:
            order = form.order_from(values).seeded()
            job = studio.desk.submit(me, drawing.drawn(studio, me, order))
        except AtomdiffError as error:
            yield _shown(pieces.error(str(error)), None, running=False)
            return
        async for update in _followed(studio, job):
            yield update

    async def resume(request: gr.Request) -> AsyncIterator[list[Any]]:
        job = studio.desk.current(owner(request))
        if job is None:
            yield [gr.skip()] * len(outputs)
            return
        async for update in _followed(studio, job):
            yield update

    quiet = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
    shared["draw.go"].click(draw, list(page.form.values()), outputs, trigger_mode="once", **quiet)
    page.blocks.load(resume, None, outputs, **quiet)
    quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    shared["draw.halt"].click(stopper(studio), None, None, **quick)


def stopper(studio: Studio) -> Any:
    """What a cancel button does: stops everything that the visitor has on the desk."""

    def stop(request: gr.Request) -> None:
        studio.desk.cancel(owner(request))

    return stop


async def _followed(studio: Studio, job: Job) -> AsyncIterator[list[Any]]:
    """What the page shows while a job runs: new pictures only when there are some."""
    shown = 0
    yield _shown(pieces.progress(studio.desk.look(job)), [], running=True)
    async for look in studio.desk.watch(job):
        fresh = list(look.results) if len(look.results) > shown else None
        shown = len(look.results)
        yield _shown(pieces.progress(look), fresh, running=not look.over)


def _shown(status: str, entries: list[Any] | None, running: bool) -> list[Any]:
    """Values for status, gallery, actions, drawn, chosen, without, go, halt and slider; with `entries` None
    the pictures stay."""
    if entries is None:
        pictures: list[Any] = [gr.skip()] * 5
    else:
        files = [str(entry.file) for entry in entries]
        columns = 1 if len(files) == 1 else 2 if len(files) <= 4 else 3 if len(files) <= 9 else 4
        pictures = [
            gr.update(value=files, visible=bool(files), columns=columns, selected_index=None),
            gr.update(visible=bool(files)),
            [entry.id for entry in entries],
            gr.skip() if entries else 0,
            gr.update(visible=any(parse(entry.text).concepts for entry in entries)),
        ]
    slider = gr.update(visible=False) if entries is not None else gr.skip()
    return [status, *pictures, gr.update(visible=not running), gr.update(visible=running), slider]


def _connect_actions(page: Page) -> None:
    studio, shared, fields = page.studio, page.shared, page.form
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def select(event: gr.SelectData) -> int:
        return int(event.index)

    shared["draw.gallery"].select(select, None, shared["draw.chosen"], **quiet)
    which = [shared["draw.drawn"], shared["draw.chosen"]]

    def seed(drawn: list[int], chosen: int, request: gr.Request) -> Any:
        entry = picked(studio, request, drawn, chosen)
        return gr.skip() if entry is None else parse(entry.text).fields.get("Seed", "")

    shared["draw.reuse"].click(seed, which, fields["seed"], **quiet)
    shared["draw.last"].click(seed, which, fields["seed"], **quiet)

    async def without(drawn: list[int], chosen: int, request: gr.Request) -> AsyncIterator[list[Any]]:
        me = owner(request)
        try:
            entry = picked(studio, request, drawn, chosen)
            if entry is None:
                return
            job = studio.desk.submit(me, drawing.without_concept(studio, me, entry))
        except AtomdiffError as error:
            yield [pieces.error(str(error)), gr.skip(), gr.skip(), gr.skip()]
            return
        async for look in studio.desk.watch(job):
            pair = (str(look.results[0].file), str(entry.file)) if look.results else None
            slider = gr.update(value=pair, visible=True) if pair else gr.skip()
            yield [
                pieces.progress(look),
                slider,
                gr.update(visible=look.over),
                gr.update(visible=not look.over),
            ]

    outputs = [shared[f"draw.{name}"] for name in ("status", "slider", "go", "halt")]
    shared["draw.without"].click(without, which, outputs, concurrency_limit=None, **quiet)


def picked(studio: Studio, request: gr.Request, drawn: list[int], chosen: int) -> Any:
    """The chosen picture of those drawn (the first if none is); None if there is none (any more)."""
    if not drawn:
        return None
    try:
        return studio.history.get(owner(request), drawn[chosen if chosen < len(drawn) else 0])
    except AtomdiffError:
        return None
