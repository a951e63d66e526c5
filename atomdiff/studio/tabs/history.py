"""History: everything that was drawn, searched and looked at again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import gradio as gr

from atomdiff.sampling.infotext import parse
from atomdiff.studio import html
from atomdiff.studio.draw_request import request_of
from atomdiff.studio.history import Entry
from atomdiff.studio.identity import owner
from atomdiff.studio.session import Studio
from atomdiff.studio.tabs import parts
from atomdiff.studio.tabs.draw import DrawTab

A_PAGE = 24
EMPTY = html.empty(
    "No pictures yet", "Every picture you draw is kept here, with its settings, until you delete it."
)
NONE_FOUND = html.empty("Nothing found", "No picture has all of these words in its prompt or settings.")


@dataclass(frozen=True)
class HistoryTab:
    """What later tabs need: which picture is chosen, and the button that leads to Picture info."""

    shown: gr.State
    chosen: gr.State
    to_info: gr.Button


def history_tab(studio: Studio, draw: DrawTab) -> HistoryTab:
    """The tab."""
    with gr.Tab("History", id="history", render_children=True) as tab:
        words, count = parts.search("history", "Search prompts and settings")
        with gr.Row(elem_classes="workbench"):
            with gr.Column(elem_classes="stage-side", scale=3):
                empty = gr.HTML(EMPTY)
                gallery = parts.gallery("history-gallery", columns=4)
                more = gr.Button("Show more", size="sm", visible=False, elem_id="history-more")
            with gr.Column(elem_classes="controls", visible=False) as side:
                about = gr.HTML("", elem_id="history-about")
                use = gr.Button("Use these settings", variant="primary", elem_id="history-use")
                to_info = gr.Button("Picture info", elem_id="history-info")
                delete = gr.Button("Delete", variant="stop", elem_id="history-delete")
    shown, chosen, limit = gr.State([]), gr.State(0), gr.State(A_PAGE)
    which, at = [shown, chosen], [words, limit]
    outputs = [empty, gallery, more, count, shown, side, limit]

    @gr.on([tab.select], inputs=at, outputs=outputs)
    def listed(query: str, most: int, request: gr.Request) -> dict[Any, Any]:
        me = owner(request)
        entries = [entry for entry in studio.history.find(me, query, most) if entry.file.is_file()]
        total = studio.history.count(me, query)
        files = [str(entry.file) for entry in entries]
        return {
            empty: gr.update(value=NONE_FOUND if query.strip() else EMPTY, visible=not entries),
            gallery: gr.update(value=files, visible=bool(files), selected_index=None),
            more: gr.update(visible=total > most),
            count: "1 picture" if total == 1 else f"{total:,} pictures" if total else "",
            shown: [entry.id for entry in entries],
            side: parts.HIDDEN,
            limit: most,
        }

    @words.change(inputs=words, outputs=outputs, trigger_mode="always_last")
    def search(query: str, request: gr.Request) -> dict[Any, Any]:
        return listed(query, A_PAGE, request)

    @more.click(inputs=at, outputs=outputs)
    def show_more(query: str, most: int, request: gr.Request) -> dict[Any, Any]:
        return listed(query, most + A_PAGE, request)

    @gallery.select(inputs=shown, outputs=[chosen, about, side])
    def select(ids: list[int], request: gr.Request, event: gr.SelectData) -> Any:
        entry = parts.picked(studio, request, ids, int(event.index))
        return int(event.index), _about(entry), gr.update(visible=True)

    @delete.click(inputs=[*which, *at], outputs=outputs)
    def forget(ids: list[int], at: int, query: str, most: int, request: gr.Request) -> dict[Any, Any]:
        studio.history.delete(owner(request), ids[at : at + 1])
        return listed(query, most, request)

    @use.click(inputs=which, outputs=draw.settings.outputs)
    def use_settings(ids: list[int], at: int, request: gr.Request) -> dict[Any, Any]:
        entry = parts.picked(studio, request, ids, at)
        filled = draw.settings.filled(request_of(parse(entry.text), studio))
        return filled | draw.settings.opened()

    return HistoryTab(shown, chosen, to_info)


def _about(entry: Entry) -> str:
    generation = parse(entry.text)
    made = time.strftime("%d %B %Y, %H:%M", time.localtime(entry.made))
    fields = [(name, value) for name, value in generation.fields.items() if name != "Version"]
    return html.facts(
        [("Prompt", generation.prompt), ("Kept out", generation.negative), *fields, ("Drawn", made)]
    )
