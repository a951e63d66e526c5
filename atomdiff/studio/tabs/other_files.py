"""The part of Draw that takes other people's files: LoRAs with their strengths, and embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from atomdiff.studio import html
from atomdiff.studio.draw_form import LORA_STRENGTHS
from atomdiff.studio.session import Studio

ABOUT = "LoRAs and textual inversions (.safetensors) for this base, drawn beside the concepts."


def other_files(studio: Studio, form: dict[str, Any]) -> None:
    """Lays it out, and puts its components into the form."""
    others, sliders = studio.others, LORA_STRENGTHS
    with gr.Accordion("Other people's files", open=False, elem_classes="quiet", elem_id="others"):
        gr.HTML(html.hint(ABOUT))
        given = gr.File(
            show_label=False, file_count="multiple", type="filepath", height=150, elem_id="other-files",
            elem_classes="drop",
        )  # fmt: skip
        told = gr.HTML("", elem_id="others-told")
        form["loras"] = gr.Dropdown(
            others.names("lora"), value=[], multiselect=True, max_choices=len(sliders), label="LoRAs",
            elem_id="loras",
        )  # fmt: skip
        for i, name in enumerate(sliders):
            form[name] = gr.Slider(
                -2, 2, 1.0, step=0.05, label="Strength", visible=False, buttons=[], elem_id=f"lora-{i}"
            )
        form["embeddings"] = gr.Dropdown(
            others.names("embedding"), value=[], multiselect=True, label="Embeddings", elem_id="embeddings",
            info="Called by their names, in either prompt.",
        )  # fmt: skip
    rows, chosen = [form[name] for name in sliders], [form["loras"], form["embeddings"]]

    @form["loras"].input(inputs=[form["loras"], *rows], outputs=rows)
    def choose(names: list[str], *strengths: float) -> dict[Any, Any]:
        return shown(form, list(zip(names, strengths, strict=False)))

    @given.upload(inputs=[given, *chosen, *rows], outputs=[given, told, *chosen, *rows])
    def take(files: list[str], loras: list[str], embeddings: list[str], *strengths: float) -> dict[Any, Any]:
        picked = {"lora": list(loras or []), "embedding": list(embeddings or [])}
        for file in files:
            kind, name = others.add(Path(file))
            picked[kind] = list(dict.fromkeys([*picked[kind], name]))
        names = picked["lora"][: len(sliders)]
        weights = [*strengths[: len(loras or [])], *[1.0] * len(names)]
        news = html.note(f"{len(files)} taken in, and chosen: they act with the next picture.")
        return {
            given: None,
            told: news,
            form["loras"]: gr.update(choices=others.names("lora"), value=names),
            form["embeddings"]: gr.update(choices=others.names("embedding"), value=picked["embedding"]),
        } | shown(form, list(zip(names, weights, strict=False)))


def shown(form: dict[str, Any], loras: Sequence[tuple[str, float]]) -> dict[Any, Any]:
    """Updates of the strengths of these LoRAs."""
    updates: dict[Any, Any] = {}
    for i, name in enumerate(LORA_STRENGTHS):
        title, strength = loras[i] if i < len(loras) else ("", 1.0)
        label = f"Strength of {title}" if title else "Strength"
        ends: dict[str, Any] = {"minimum": min(-2, strength), "maximum": max(2, strength)}
        updates[form[name]] = gr.update(value=strength, visible=bool(title), label=label, **ends)
    return updates
