"""Concepts: the library as cards, whatever is dropped or pasted taken in, and a concept handed on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from atomdiff.studio import html, library_view
from atomdiff.studio.session import Studio
from atomdiff.studio.tabs import parts
from atomdiff.studio.tabs.draw import DrawTab
from atomdiff.studio.tabs.drop_anywhere import DROP_ANYWHERE
from atomdiff.studio.tabs.one_concept import OneConcept

A_PAGE = 48
EMPTY = html.empty(
    "No concepts yet",
    "Drop a concept file, a card or a screenshot of its QR codes anywhere on this page, or paste its text. "
    "Or make your own under Train.",
)
NONE_FOUND = html.empty("Nothing found", "No concept has all of these words in its name, trigger or tags.")
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


@dataclass(frozen=True)
class ConceptsTab:
    """What later tabs need: the chosen concept, the button that leads to what it learned, and `known`, to be
    set to `changed()` when a concept came into the library."""

    chosen: gr.State
    to_inspect: gr.Button
    known: gr.State
    changed: Callable[[], int]


def concepts_tab(studio: Studio, page: gr.Blocks, tabs: gr.Tabs, draw: DrawTab) -> ConceptsTab:
    """The tab, and the fields beside it that take what is dropped or pasted anywhere."""
    tab, words, count, status, empty, example, cards, more, side, one, adding = _layout()
    # Beside the tabs: a tab is laid out only when it is first opened.
    caught = _Caught()
    chosen, limit, known = gr.State(""), gr.State(A_PAGE), gr.State(0)
    settings = draw.settings
    base = settings.form["base"]
    at = {"words": words, "limit": limit, "ident": chosen, "base": base}
    listing = [
        known, empty, cards, count, more, example, adding.trash, adding.removed, limit, chosen, side,
        *one.outputs,
    ]  # fmt: skip
    outputs = [*listing, status, words, tabs]

    def changed() -> int:
        """A number that changes with what the library offers."""
        return hash(tuple(sorted((entry.id, entry.title) for entry in studio.concepts()))) or 1

    def listed(words: str, limit: int, ident: str, base: str, again: bool = False) -> dict[Any, Any]:
        """The cards that have the words, and what is told of the chosen one. `again` is for an answer to
        anything but a choice: it may come after someone has chosen a card, or another, or has begun to type a
        name, and must undo none of it."""
        everything, entries = studio.concepts(), studio.library.find(words or "")
        entry = next((entry for entry in everything if entry.id == ident), None)
        total = "1 concept" if len(entries) == 1 else f"{len(entries):,} concepts"
        trash = library_view.removed(studio)
        updates = {
            known: changed(),
            empty: gr.update(value=NONE_FOUND if everything else EMPTY, visible=not entries),
            cards: library_view.cards(entries[:limit], base, ident),
            count: total if entries else "",
            more: gr.update(visible=len(entries) > limit),
            example: gr.update(visible=library_view.example(studio) is not None),
            adding.trash: gr.update(visible=bool(trash)),
            adding.removed: gr.update(choices=trash, value=trash[0][1] if trash else None),
            limit_state: limit,
        }
        if again and not ident:
            return updates
        updates[side] = gr.update(visible=entry is not None)
        if again and entry:
            return updates | {one.about: library_view.about(entry, base)}
        return updates | {chosen: entry.id if entry else ""} | one.shown(studio, entry, base)

    limit_state = limit

    @gr.on([tab.select, page.load], inputs_kwargs=at, outputs=listing)
    def rescan(**where: Any) -> dict[Any, Any]:
        studio.concepts(scan=True)
        return listed(**where, again=True)

    @words.change(inputs_kwargs=at, outputs=listing, trigger_mode="always_last")
    def search(**where: Any) -> dict[Any, Any]:
        return listed(**where, again=True)

    @more.click(inputs_kwargs=at, outputs=listing)
    def show_more(limit: int, **where: Any) -> dict[Any, Any]:
        return listed(limit=limit + A_PAGE, **where, again=True)

    @cards.click(inputs=[words, limit, base], outputs=outputs)
    def choose(query: str, most: int, on: str, event: gr.EventData) -> dict[Any, Any]:
        return listed(query, most, str(getattr(event, "id", "")), on) | {status: ""}

    @cards.submit(outputs=words)
    def by_tag(event: gr.EventData) -> str:
        return str(getattr(event, "tag", ""))

    @known.change(inputs=base, outputs=[settings.form["concepts"], settings.example])
    def offer(on: str) -> Any:
        """On Draw. Not when the list there is opened: an answer that comes while someone chooses would undo
        the choice."""
        first = not studio.concepts() and library_view.example(studio) is not None
        return settings.offer(on), gr.update(visible=first)

    # ------------------------------------------------------------------------------- what comes in

    def added(result: library_view.Added, ident: str, on: str) -> dict[Any, Any]:
        newest = result.entries[-1].id if result.entries else ident
        shown = listed("", A_PAGE, newest, on)
        return shown | {status: result.html(), words: "", tabs: gr.Tabs(selected="concepts")}

    for part, event in (
        (adding.files, adding.files.upload), (caught.files, caught.files.upload),
        (adding.text, adding.paste.click), (caught.text, caught.paste.click),
    ):  # fmt: skip
        event(_taking(studio, part, added), [part, chosen, base], [*outputs, part])

    @gr.on(
        [example.click, settings.example.click],
        inputs=chosen,
        inputs_kwargs=settings.context,
        outputs=[*outputs[:-1], *settings.outputs],
    )
    def try_example(ident: str, **context: Any) -> dict[Any, Any]:
        """Takes the bundled concept in, and goes to Draw with it."""
        result = library_view.add_example(studio)
        shown = added(result, ident, context["base"])
        return shown | (settings.with_concept(result.entries[0].id, **context) if result.entries else {})

    one.connect(studio, settings, chosen, status)

    _connect_changes(studio, one, adding, status, listed, at, outputs)
    return ConceptsTab(chosen, one.to_inspect, known, changed)


def _layout() -> tuple[Any, ...]:
    """The tab, and what is on it."""
    with gr.Tab("Concepts", id="concepts", render_children=True) as tab:
        words, count = parts.search("concept", "Search names and tags")
        with gr.Row(elem_classes="workbench"):
            with gr.Column(elem_classes="stage-side", scale=3):
                status = gr.HTML("", elem_id="concept-status")
                empty = gr.HTML(EMPTY)
                example = gr.Button(
                    "Try the example", variant="primary", visible=False, elem_id="try-example"
                )
                cards = gr.HTML("", elem_id="cards", js_on_load=CARDS)
                more = gr.Button("Show more", size="sm", visible=False)
            with gr.Column(elem_classes="controls", elem_id="concept-side"):
                with gr.Column(visible=False, elem_id="one-concept") as side:
                    one = OneConcept()
                adding = _Adding()
    return tab, words, count, status, empty, example, cards, more, side, one, adding


def _connect_changes(
    studio: Studio, one: OneConcept, adding: _Adding, status: gr.HTML, listed: Callable[..., Any],
    at: dict[str, Any], outputs: list[Any],
) -> None:  # fmt: skip
    """The buttons that change the library."""

    @one.save.click(inputs=[one.name, one.tags], inputs_kwargs=at, outputs=outputs)
    def note(name: str, tags: str, ident: str, **where: Any) -> dict[Any, Any]:
        library_view.annotate(studio, ident, name or "", tags or "")
        return listed(ident=ident, **where) | {status: ""}

    @one.remove.click(inputs_kwargs=at, outputs=outputs)
    def remove(ident: str, **where: Any) -> dict[Any, Any]:
        studio.library.remove(ident)
        return listed(ident=ident, **where) | {status: ""}

    @adding.restore.click(inputs=adding.removed, inputs_kwargs=at, outputs=outputs)
    def restore(removed: str | None, ident: str, **where: Any) -> dict[Any, Any]:
        studio.library.restore(removed or "")
        return listed(ident=removed or "", **where) | {status: ""}


class _Caught:
    """Hidden fields that take what is dropped or pasted anywhere on the page."""

    def __init__(self) -> None:
        self.files = gr.File(file_count="multiple", type="filepath", visible="hidden", elem_id="catch-files")
        self.text = gr.Textbox(lines=2, elem_id="catch-text", visible="hidden", container=False)
        self.paste = gr.Button(visible="hidden", elem_id="catch-go")
        gr.HTML("", js_on_load=DROP_ANYWHERE)


def _taking(studio: Studio, part: gr.File | gr.Textbox, added: Callable[..., Any]) -> Callable[..., Any]:
    """A handler that takes concepts from a field into the library, and empties the field."""

    def taken(given: list[str] | str | None, ident: str, on: str) -> Any:
        if not given or not str(given).strip():
            return gr.skip()
        sources = [given] if isinstance(given, str) else [Path(path) for path in given]
        blank = "" if isinstance(given, str) else None
        return added(library_view.add(studio, sources), ident, on) | {part: blank}

    return taken


class _Adding:
    """The fields through which concepts come in, and the way back from the trash."""

    def __init__(self) -> None:
        with gr.Accordion("Add concepts", open=True, elem_classes="quiet", elem_id="adding"):
            # A file, not gr.Image: that would re-encode a card, and lose the concept.
            self.files = gr.File(
                show_label=False, file_count="multiple", type="filepath", height=130, elem_id="add-files",
                elem_classes="drop",
            )  # fmt: skip
            gr.HTML(html.hint("Files, cards, screenshots or photos of QR codes."))
            self.text = gr.Textbox(
                label="Or its text", placeholder="atomdiff:v1:…", lines=2, max_lines=4, elem_id="add-text"
            )
            self.paste = gr.Button("Add", size="sm", elem_id="add-paste")
        with gr.Accordion(
            "Removed", open=False, visible=False, elem_classes="quiet", elem_id="removed"
        ) as self.trash:
            self.removed = gr.Dropdown(
                [], label="In the trash", show_label=False, container=False, elem_id="trash"
            )
            self.restore = gr.Button("Bring back", size="sm", elem_id="restore")
