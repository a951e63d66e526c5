"""Concepts: the library as cards, whatever is dropped or pasted taken in, and a concept handed on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from atomdiff.errors import AtomdiffError
from atomdiff.studio import parts, pieces, shelf
from atomdiff.studio.house import Studio
from atomdiff.studio.people import owner
from atomdiff.studio.tabs import sending, settings

if TYPE_CHECKING:
    from atomdiff.library import Entry
    from atomdiff.studio.page import Page

A_PAGE = 48
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

# A card tells which it is; on a phone what is told of it stands below.
CARDS = """
element.addEventListener('click', (event) => {
  const tag = event.target.closest('[data-tag]'), card = event.target.closest('[data-id]');
  if (tag) trigger('submit', { tag: tag.dataset.tag });
  else if (card) {
    trigger('click', { id: card.dataset.id });
    const side = document.querySelector('#concept-side');
    if (innerWidth <= 820) setTimeout(() => side?.scrollIntoView({ behavior: 'smooth' }), 400);
  }
});
"""


def build(page: Page) -> None:
    """Lays the tab out."""
    shared = page.shared
    with gr.Tab("Concepts", id="concepts", render_children=True) as shared["concepts.tab"]:
        shared["concepts.words"], shared["concepts.count"] = parts.search("concept", "Search names and tags")
        with gr.Row(elem_classes="workbench"):
            with gr.Column(elem_classes="stage-side", scale=3):
                shared["concepts.status"] = gr.HTML("", elem_id="concept-status")
                shared["concepts.empty"] = gr.HTML(shelf.EMPTY)
                shared["concepts.example"] = gr.Button(
                    "Try the example", variant="primary", visible=False, elem_id="try-example"
                )
                shared["concepts.cards"] = gr.HTML("", elem_id="cards", js_on_load=CARDS)
                shared["concepts.more"] = gr.Button("Show more", size="sm", visible=False)
            with gr.Column(elem_classes="controls", elem_id="concept-side"):
                with gr.Column(visible=False, elem_id="one-concept") as shared["concepts.side"]:
                    _one(shared)
                _adding(shared)
    shared["concepts.chosen"], shared["concepts.limit"] = gr.State(""), gr.State(A_PAGE)
    shared["concepts.known"] = gr.State(0)  # changes with the library


def _one(shared: dict[str, Any]) -> None:
    """What can be done with the chosen concept."""
    shared["concepts.about"] = gr.HTML("", elem_id="concept-about")
    with gr.Row(elem_classes="line"):
        shared["concepts.draw"] = gr.Button("Draw with it", variant="primary", scale=3, elem_id="draw-with")
        shared["concepts.learned"] = gr.Button("What it learned", scale=2, min_width=130, elem_id="look-into")
    with gr.Row(elem_classes="line"):
        shared["concepts.file"] = gr.DownloadButton("File", size="sm", min_width=60, elem_id="share-file")
        for which, label in (("card", "Card"), ("qr", "QR"), ("text", "Text")):
            shared[f"concepts.{which}"] = gr.Button(label, size="sm", min_width=60, elem_id=f"share-{which}")
    shared["concepts.picture"] = gr.HTML("", visible=False, elem_id="share-picture")
    shared["concepts.get"] = gr.DownloadButton(
        "Download the picture", size="sm", visible=False, elem_id="share-get"
    )
    shared["concepts.line"] = gr.Textbox(
        label="Its text: paste it into any chat",
        lines=3,
        max_lines=3,
        visible=False,
        interactive=False,
        buttons=["copy"],
        elem_id="share-line",
    )
    with gr.Accordion("Name and tags", open=False, elem_classes="quiet", elem_id="concept-notes"):
        shared["concepts.name"] = gr.Textbox(label="Name in this library", elem_id="concept-name")
        shared["concepts.tags"] = gr.Textbox(
            label="Tags", placeholder="pets, favourite", elem_id="concept-tags"
        )
        with gr.Row(elem_classes="line"):
            shared["concepts.note"] = gr.Button("Save", size="sm", elem_id="concept-note")
            shared["concepts.remove"] = gr.Button(
                "Remove", size="sm", variant="stop", elem_id="concept-remove"
            )


def _adding(shared: dict[str, Any]) -> None:
    """The fields through which concepts come in, and the way back from the trash."""
    with gr.Accordion("Add concepts", open=True, elem_classes="quiet", elem_id="adding"):
        # A file, not gr.Image: that would re-encode a card, and lose the concept.
        shared["concepts.files"] = gr.File(
            show_label=False, file_count="multiple", type="filepath", height=130, elem_id="add-files",
            elem_classes="drop",
        )  # fmt: skip
        gr.HTML(pieces.hint("Files, cards, screenshots or photos of QR codes, JSON."))
        shared["concepts.pasted"] = gr.Textbox(
            label="Or its text", placeholder="atomdiff:v1:…", lines=2, max_lines=4, elem_id="add-text"
        )
        shared["concepts.paste"] = gr.Button("Add", size="sm", elem_id="add-paste")
    with gr.Accordion(
        "Removed", open=False, visible=False, elem_classes="quiet", elem_id="removed"
    ) as shared["concepts.trash"]:
        shared["concepts.removed"] = gr.Dropdown(
            [], label="In the trash", show_label=False, container=False, elem_id="trash"
        )
        shared["concepts.restore"] = gr.Button("Bring back", size="sm", elem_id="restore")


def wire(page: Page) -> None:
    """Connects it."""
    _connect_looking(page)
    _connect_sharing(page)
    _connect_changing(page)


def shown(page: Page) -> list[Any]:
    """The parts that `listed` gives values for."""
    names = (
        "known",
        "empty",
        "cards",
        "count",
        "more",
        "example",
        "trash",
        "removed",
        "limit",
        "chosen",
        "side",
    )
    return [page.shared[f"concepts.{name}"] for name in names] + _of_one(page)


def _of_one(page: Page) -> list[Any]:
    """The parts that `_told` gives values for."""
    return [
        page.shared[f"concepts.{name}"]
        for name in ("about", "file", "name", "tags", "picture", "get", "line")
    ]


def _connect_looking(page: Page) -> None:
    studio, shared, base = page.studio, page.shared, page.form["base"]
    at = [shared["concepts.words"], shared["concepts.limit"], shared["concepts.chosen"], base]

    def look(words: str, limit: int, chosen: str, base: str) -> list[Any]:
        return listed(studio, words, limit, chosen, base, again=True)

    def rescan(words: str, limit: int, chosen: str, base: str) -> list[Any]:
        studio.concepts(scan=True)
        return listed(studio, words, limit, chosen, base, again=True)

    def more(words: str, limit: int, chosen: str, base: str) -> list[Any]:
        return listed(studio, words, limit + A_PAGE, chosen, base, again=True)

    def choose(words: str, limit: int, base: str, event: gr.EventData) -> list[Any]:
        return [*listed(studio, words, limit, str(getattr(event, "id", "")), base), ""]

    def by_tag(event: gr.EventData) -> str:
        return str(getattr(event, "tag", ""))

    shared["concepts.tab"].select(rescan, at, shown(page), **QUIET)
    page.blocks.load(rescan, at, shown(page), **QUIET)
    shared["concepts.words"].change(look, at, shown(page), trigger_mode="always_last", **QUIET)
    shared["concepts.more"].click(more, at, shown(page), **QUIET)
    chosen = [*shown(page), shared["concepts.status"]]
    shared["concepts.cards"].click(choose, [at[0], at[1], base], chosen, **QUIET)
    shared["concepts.cards"].submit(by_tag, None, shared["concepts.words"], **QUIET)

    def offer(base: str) -> list[Any]:
        """On Draw. Not when the list there is opened: an answer that comes while someone chooses would undo
        the choice."""
        first = not studio.concepts() and shelf.example(studio) is not None
        about = settings.about_choices(studio)
        return [gr.update(choices=settings.choices(studio, base), info=about), gr.update(visible=first)]

    drawing = [page.form["concepts"], shared["draw.example"]]
    shared["concepts.known"].change(offer, base, drawing, **QUIET)


def _connect_sharing(page: Page) -> None:
    studio, shared = page.studio, page.shared
    outputs = [shared[f"concepts.{name}"] for name in ("picture", "get", "line", "status")]

    def picture(which: str) -> Any:
        def make(chosen: str, request: gr.Request) -> list[Any]:
            try:
                path = shelf.shared(studio, owner(request), chosen, which)
            except AtomdiffError as error:
                return [gr.update(visible=False)] * 3 + [pieces.error(str(error))]
            image = f'<img alt="" src="{pieces.data_uri(path.read_bytes())}">'
            return [
                gr.update(value=image, visible=True),
                gr.update(value=str(path), visible=True),
                gr.update(visible=False),
                "",
            ]

        return make

    def text(chosen: str) -> list[Any]:
        hidden = gr.update(visible=False)
        try:
            line = shelf.text_of(studio, chosen)
        except AtomdiffError as error:
            return [hidden, hidden, hidden, pieces.error(str(error))]
        return [hidden, hidden, gr.update(value=line, visible=True), ""]

    for which in ("card", "qr"):
        shared[f"concepts.{which}"].click(picture(which), shared["concepts.chosen"], outputs, **QUIET)
    shared["concepts.text"].click(text, shared["concepts.chosen"], outputs, **QUIET)

    def draw(chosen: str, *values: Any) -> list[Any]:
        return [*sending.on_draw(page, chosen, *values), gr.update(selected="draw")]

    shared["concepts.draw"].click(
        draw,
        [shared["concepts.chosen"], *sending.draw_inputs(page)],
        [*sending.draw_outputs(page), page.tabs],
        **QUIET,
    )


def _connect_changing(page: Page) -> None:
    studio, shared, base = page.studio, page.shared, page.form["base"]
    outputs = [*shown(page), shared["concepts.status"]]
    at = [shared["concepts.words"], shared["concepts.limit"], shared["concepts.chosen"], base]

    def attempted(change: Any, words: str, limit: int, chosen: str, base: str) -> list[Any]:
        told = ""
        try:
            change()
        except AtomdiffError as error:
            told = pieces.error(str(error))
        return [*listed(studio, words, limit, chosen, base), told]

    def note(words: str, limit: int, chosen: str, base: str, name: str, tags: str) -> list[Any]:
        return attempted(
            lambda: shelf.noted(studio, chosen, name or "", tags or ""), words, limit, chosen, base
        )

    def remove(words: str, limit: int, chosen: str, base: str) -> list[Any]:
        return attempted(lambda: studio.library.remove(chosen), words, limit, chosen, base)

    def restore(words: str, limit: int, chosen: str, base: str, removed: str | None) -> list[Any]:
        return attempted(lambda: studio.library.restore(removed or ""), words, limit, removed or "", base)

    notes = [shared["concepts.name"], shared["concepts.tags"]]
    shared["concepts.note"].click(note, [*at, *notes], outputs, **QUIET)
    shared["concepts.remove"].click(remove, at, outputs, **QUIET)
    shared["concepts.restore"].click(restore, [*at, shared["concepts.removed"]], outputs, **QUIET)


def known(studio: Studio) -> int:
    """A number that changes with what the library offers."""
    return hash(tuple(sorted((entry.id, entry.title) for entry in studio.concepts()))) or 1


def listed(
    studio: Studio, words: str | None, limit: int, chosen: str, base: str, again: bool = False
) -> list[Any]:
    """Values for `shown`: the cards that have the words, and what is told of the chosen one.

    `again` is for an answer to anything but a choice: it may come after someone has chosen another card or
    has begun to type a name, and must undo neither.
    """
    everything = studio.concepts()
    entries = shelf.found(studio, words or "")
    one = next((entry for entry in everything if entry.id == chosen), None)
    count = "1 concept" if len(entries) == 1 else f"{len(entries):,} concepts"
    removed = shelf.removed(studio)
    return [
        known(studio),
        gr.update(value=shelf.NONE_FOUND if everything else shelf.EMPTY, visible=not entries),
        shelf.cards(entries[:limit], base, chosen),
        count if entries else "",
        gr.update(visible=len(entries) > limit),
        gr.update(visible=shelf.example(studio) is not None),
        gr.update(visible=bool(removed)),
        gr.update(choices=removed, value=removed[0][1] if removed else None),
        limit,
        gr.skip() if one and again else one.id if one else "",
        gr.update(visible=one is not None),
        *(_told_again(one, base) if one and again else _told(studio, one, base)),
    ]


def _told_again(entry: Entry, base: str) -> list[Any]:
    """Values for `_of_one` where only what is told of its base may have changed."""
    return [shelf.about(entry, base), *[gr.skip()] * 6]


def _told(studio: Studio, entry: Entry | None, base: str) -> list[Any]:
    """Values for `_of_one`."""
    hidden = gr.update(visible=False)
    if entry is None:
        return ["", gr.skip(), "", "", hidden, hidden, hidden]
    try:
        file = str(shelf.shared(studio, "", entry.id, "file"))
    except AtomdiffError as error:  # it was changed this moment
        return [pieces.error(str(error)), gr.skip(), entry.name, "", hidden, hidden, hidden]
    return [shelf.about(entry, base), file, entry.title, ", ".join(entry.tags), hidden, hidden, hidden]
