"""Concepts that come in: by the fields of Concepts, or dropped or pasted anywhere on the page.

No tab to see, but laid out and connected like one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from atomdiff.studio import shelf
from atomdiff.studio.tabs import concepts, sending

if TYPE_CHECKING:
    from atomdiff.studio.page import Page

# Whatever is dropped or pasted where nothing else takes it goes to hidden fields of the page, whichever tab
# is open.
CATCH = """
const hand = (files) => {
  const field = document.querySelector('#catch-files input[type=file]'), held = new DataTransfer();
  if (!field || !files.length) return false;
  [...files].forEach((file) => held.items.add(file));
  field.files = held.files;
  field.dispatchEvent(new Event('change', { bubbles: true }));
  return true;
};
const isConcept = (text) => /^[\\s>`"'*]*atomdiff:v/i.test(text);
document.addEventListener('paste', (event) => {
  const text = event.clipboardData?.getData('text') ?? '', files = [...(event.clipboardData?.files ?? [])];
  const typing = event.target.closest?.('input, textarea, [contenteditable]');
  const box = document.querySelector('#catch-text textarea, #catch-text input');
  if (event.target.closest?.('#add-text')) return;
  if (isConcept(text) && box) {
    event.preventDefault(); event.stopPropagation();
    box.value = text;
    box.dispatchEvent(new Event('input', { bubbles: true }));
    setTimeout(() => document.querySelector('#catch-go')?.click(), 100);
  } else if (files.length && !typing && hand(files)) event.preventDefault();
}, true);
const loose = (event) => event.dataTransfer?.types.includes('Files') && !event.target.closest?.('.drop');
document.addEventListener('dragover', (event) => { if (loose(event)) event.preventDefault(); });
document.addEventListener('drop', (event) => {
  if (loose(event) && !event.defaultPrevented) { event.preventDefault(); hand(event.dataTransfer.files); }
});
"""


def build(page: Page) -> None:
    """Lays the hidden fields out."""
    shared = page.shared
    hidden: dict[str, Any] = {"visible": "hidden", "container": False}
    # Beside the tabs: a tab is laid out only when it is first opened.
    shared["concepts.caught"] = gr.File(
        file_count="multiple", type="filepath", visible="hidden", elem_id="catch-files"
    )
    shared["concepts.caught_text"] = gr.Textbox(lines=2, elem_id="catch-text", **hidden)
    shared["concepts.caught_go"] = gr.Button(visible="hidden", elem_id="catch-go")
    gr.HTML("", js_on_load=CATCH)


def wire(page: Page) -> None:
    """Connects every field through which concepts come in."""
    studio, shared, base = page.studio, page.shared, page.form["base"]
    outputs = [*concepts.shown(page), shared["concepts.status"], shared["concepts.words"], page.tabs]

    def added(taken: shelf.Taken, chosen: str, base: str) -> list[Any]:
        if taken.entries:
            chosen = taken.entries[-1].id
        shown = concepts.listed(studio, "", concepts.A_PAGE, chosen, base)
        return [*shown, taken.told(), "", gr.update(selected="concepts")]

    def files(paths: list[str] | None, chosen: str, base: str) -> list[Any]:
        if not paths:
            return [gr.skip()] * (len(outputs) + 1)
        return [*added(shelf.take(studio, [Path(path) for path in paths]), chosen, base), None]

    def pasted(text: str, chosen: str, base: str) -> list[Any]:
        if not (text or "").strip():
            return [gr.skip()] * (len(outputs) + 1)
        return [*added(shelf.take(studio, [text]), chosen, base), ""]

    def example(chosen: str, prompt: str, base: str, subjects: list[Any]) -> list[Any]:
        """Takes the bundled concept in, and goes to Draw with it."""
        taken = shelf.take_example(studio)
        *shown, _ = added(taken, chosen, base)
        if not taken.entries:
            return [*shown, gr.skip(), *[gr.skip()] * len(sending.draw_outputs(page))]
        filled = sending.on_draw(page, taken.entries[0].id, prompt, base, subjects)
        return [*shown, gr.update(selected="draw"), *filled]

    at = [shared["concepts.chosen"], base]
    for name in ("files", "caught"):
        part = shared[f"concepts.{name}"]
        part.upload(files, [part, *at], [*outputs, part], **concepts.QUIET)
    for button, name in (("paste", "pasted"), ("caught_go", "caught_text")):
        part = shared[f"concepts.{name}"]
        shared[f"concepts.{button}"].click(pasted, [part, *at], [*outputs, part], **concepts.QUIET)
    for button in (shared["concepts.example"], shared["draw.example"]):
        button.click(
            example,
            [at[0], *sending.draw_inputs(page)],
            [*outputs, *sending.draw_outputs(page)],
            **concepts.QUIET,
        )
