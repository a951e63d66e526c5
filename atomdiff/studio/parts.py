"""Components that several tabs are laid out with."""

from __future__ import annotations

import gradio as gr


def pictures(elem_id: str, columns: int, visible: bool = False) -> gr.Gallery:
    """A gallery that serves the very files that were saved."""
    return gr.Gallery(
        show_label=False,
        columns=columns,
        object_fit="contain",
        height="auto",
        visible=visible,
        format="png",
        buttons=["download", "fullscreen"],
        elem_classes="pictures",
        elem_id=elem_id,
        interactive=False,
    )


def search(what: str, placeholder: str) -> tuple[gr.Textbox, gr.HTML]:
    """A line to search in, and beside it how many were found."""
    with gr.Row(elem_classes="line"):
        words = gr.Textbox(
            show_label=False,
            placeholder=placeholder,
            container=False,
            scale=5,
            elem_id=f"{what}-words",
            elem_classes="search",
        )
        count = gr.HTML("", elem_id=f"{what}-count", elem_classes="count")
    return words, count
