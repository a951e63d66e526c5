"""History: everything that was drawn, searched and looked at again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import gradio as gr

from atomdiff.errors import AtomdiffError
from atomdiff.sampling.infotext import parse
from atomdiff.studio import drawing, parts, pieces
from atomdiff.studio.history import Entry
from atomdiff.studio.people import owner
from atomdiff.studio.tabs import draw, picture, settings

if TYPE_CHECKING:
    from atomdiff.studio.page import Page

A_PAGE = 24
EMPTY = pieces.empty(
    "No pictures yet", "Every picture you draw is kept here, with its settings, until you delete it."
)
NONE_FOUND = pieces.empty("Nothing found", "No picture has all of these words in its prompt or settings.")


def build(page: Page) -> None:
    """Lays the tab out."""
    shared = page.shared
    with gr.Tab("History", id="history", render_children=True) as shared["history.tab"]:
        shared["history.words"], shared["history.count"] = parts.search(
            "history", "Search prompts and settings"
        )
        with gr.Row(elem_classes="workbench"):
            with gr.Column(elem_classes="stage-side", scale=3):
                shared["history.empty"] = gr.HTML(EMPTY)
                shared["history.gallery"] = parts.pictures("history-gallery", columns=4)
                shared["history.more"] = gr.Button(
                    "Show more", size="sm", visible=False, elem_id="history-more"
                )
            with gr.Column(elem_classes="controls", visible=False) as shared["history.side"]:
                shared["history.about"] = gr.HTML("", elem_id="history-about")
                shared["history.use"] = gr.Button(
                    "Use these settings", variant="primary", elem_id="history-use"
                )
                shared["history.info"] = gr.Button("Picture info", elem_id="history-info")
                shared["history.delete"] = gr.Button("Delete", variant="stop", elem_id="history-delete")
    shared["history.shown"], shared["history.chosen"] = gr.State([]), gr.State(0)
    shared["history.limit"] = gr.State(A_PAGE)


def wire(page: Page) -> None:
    """Connects it."""
    studio, shared = page.studio, page.shared
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    names = ("empty", "gallery", "more", "count", "shown", "side", "limit")
    listed = [shared[f"history.{name}"] for name in names]

    def look(words: str, limit: int, request: gr.Request) -> list[Any]:
        return _listed(page, owner(request), words, limit)

    def search(words: str, request: gr.Request) -> list[Any]:
        return _listed(page, owner(request), words, A_PAGE)

    def more(words: str, limit: int, request: gr.Request) -> list[Any]:
        return _listed(page, owner(request), words, limit + A_PAGE)

    at = [shared["history.words"], shared["history.limit"]]
    shared["history.tab"].select(look, at, listed, **quiet)
    shared["history.words"].change(
        search, shared["history.words"], listed, trigger_mode="always_last", **quiet
    )
    shared["history.more"].click(more, at, listed, **quiet)

    def select(shown: list[int], request: gr.Request, event: gr.SelectData) -> list[Any]:
        entry = draw.picked(studio, request, shown, int(event.index))
        return [int(event.index), _about(entry), gr.update(visible=True)] if entry else [gr.skip()] * 3

    shared["history.gallery"].select(
        select,
        shared["history.shown"],
        [shared[f"history.{name}"] for name in ("chosen", "about", "side")],
        **quiet,
    )
    which = [shared["history.shown"], shared["history.chosen"]]

    def delete(shown: list[int], chosen: int, words: str, limit: int, request: gr.Request) -> list[Any]:
        studio.history.delete(owner(request), shown[chosen : chosen + 1])
        return _listed(page, owner(request), words, limit)

    shared["history.delete"].click(delete, [*which, *at], listed, **quiet)
    _connect_sending(page, which, quiet)


def _connect_sending(page: Page, which: list[Any], quiet: dict[str, Any]) -> None:
    studio, shared = page.studio, page.shared

    def use(shown: list[int], chosen: int, request: gr.Request) -> list[Any]:
        try:
            entry = draw.picked(studio, request, shown, chosen)
            order = drawing.order_of(parse(entry.text if entry else ""), studio)
        except AtomdiffError as error:
            return [*[gr.skip()] * (len(page.form) + 2), pieces.error(str(error))]
        return [*settings.filled(page, order), gr.update(selected="draw"), gr.skip()]

    def info(shown: list[int], chosen: int, request: gr.Request) -> list[Any]:
        entry = draw.picked(studio, request, shown, chosen)
        return [*picture.looked_at(str(entry.file) if entry else None), gr.update(selected="picture")]

    form = [*page.form.values(), shared["draw.subjects"]]
    shared["history.use"].click(use, which, [*form, page.tabs, shared["history.about"]], **quiet)
    told = [shared[f"picture.{name}"] for name in ("told", "use", "keep", "status", "path")]
    shared["history.info"].click(info, which, [*told, page.tabs], **quiet)


def _listed(page: Page, me: str, words: str, limit: int) -> list[Any]:
    """Values for empty, gallery, more, count, shown, side and limit."""
    history = page.studio.history
    entries = [entry for entry in history.find(me, words, limit) if entry.file.is_file()]
    count = history.count(me, words)
    pictures = "1 picture" if count == 1 else f"{count:,} pictures"
    return [
        gr.update(value=NONE_FOUND if words.strip() else EMPTY, visible=not entries),
        gr.update(value=[str(entry.file) for entry in entries], visible=bool(entries), selected_index=None),
        gr.update(visible=count > limit),
        pictures if count else "",
        [entry.id for entry in entries],
        gr.update(visible=False),
        limit,
    ]


def _about(entry: Entry) -> str:
    generation = parse(entry.text)
    made = time.strftime("%d %B %Y, %H:%M", time.localtime(entry.made))
    rows = [
        ("Prompt", generation.prompt),
        ("Kept out", generation.negative),
        *generation.fields.items(),
        ("Drawn", made),
    ]
    return pieces.facts([(name, value) for name, value in rows if name != "Version"])
