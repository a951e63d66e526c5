"""The left side of Draw: every setting, what changes with the base and the concepts, and an order put
into it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import gradio as gr

from atomdiff.studio import drawing, form
from atomdiff.studio.house import Facts, Studio

if TYPE_CHECKING:
    from atomdiff.studio.page import Page

SHAPES = {(1, 1): "Square", (3, 4): "Portrait 3:4", (4, 3): "Landscape 4:3", (2, 3): "Portrait 2:3",
          (3, 2): "Landscape 3:2", (9, 16): "Tall 9:16", (16, 9): "Wide 16:9"}  # fmt: skip
STRENGTHS, GUIDANCES = (0, 2), (0, 20)  # the ends of the sliders
ACTING = [
    ("As usual", ""),
    ("From the first step on", "0-1"),
    ("From the first step on, on both sides of guidance", "both, 0-1"),
    ("Whatever the prompt says", "always"),
]
EXAMPLES = {
    "pocket": (
        "a teal dog on the beach",
        "a red robot in space",
        "a pencil sketch of a cat in the city",
        "a yellow cat wearing a red hat in the snow",
    ),
    "": (
        "a corgi astronaut, soft morning light",
        "a lighthouse in a storm, oil painting",
        "a tiny robot watering a bonsai, macro photo",
        "a street market at night, rain, reflections",
    ),
}


def build(page: Page) -> dict[str, Any]:
    """Lays the settings out; returns the buttons among them."""
    studio = page.studio
    facts = studio.facts(studio.default)
    prompt = gr.Textbox(
        label="What to draw", placeholder="a dog on the beach", lines=3, max_lines=8, elem_id="prompt"
    )
    with gr.Row(elem_classes="line"):
        go = gr.Button("Draw", variant="primary", elem_id="go", elem_classes="go")
        halt = gr.Button("Cancel", variant="stop", visible=False, elem_id="halt", elem_classes="halt")
    gr.HTML('<p class="hint"><kbd>Ctrl</kbd> <kbd>Enter</kbd> draws</p>')
    gr.Examples(
        [[text] for text in EXAMPLES.get(facts.family, EXAMPLES[""])],
        prompt,
        label="Examples",
        api_visibility="private",
        cache_examples=False,
        run_on_click=False,
        elem_id="examples",
    )
    page.form["prompt"] = prompt
    page.form["concepts"] = gr.Dropdown(
        choices(studio, studio.default),
        value=[],
        multiselect=True,
        max_choices=form.ROWS,
        label="Concepts",
        info=about_choices(studio),
        elem_id="concepts",
    )
    page.shared["draw.example"] = gr.Button(
        "Try the example concept", size="sm", visible=False, elem_id="draw-example"
    )
    for i in range(form.ROWS):
        page.form[f"strength {i}"] = gr.Slider(
            *STRENGTHS, 1.0, step=0.05, label="Strength", visible=False, buttons=[], elem_id=f"strength-{i}"
        )
    page.form["blocks"] = gr.Textbox(
        label="Times, by block", visible=False, elem_id="blocks", info="Empty it for one strength again."
    )
    page.form["carry"] = gr.Checkbox(
        label="Put the concept into the pictures",
        info="Whoever gets one can draw with it too.",
        visible=False,
        elem_id="carry",
    )
    with gr.Row(elem_classes="line"):
        size = gr.Dropdown(
            _sizes(facts),
            value=_size(facts),
            label="Size",
            allow_custom_value=True,
            min_width=120,
            elem_id="size",
        )
        count = gr.Slider(1, 16, 4, step=1, label="Pictures", min_width=120, buttons=[], elem_id="count")
    with gr.Row(elem_classes="line", equal_height=True):
        seed = gr.Textbox(label="Seed", placeholder="random", scale=3, min_width=90, elem_id="seed")
        random = gr.Button("Random", size="sm", scale=1, min_width=70, elem_id="random-seed")
        again = gr.Button("Last", size="sm", scale=1, min_width=60, elem_id="last-seed")
    page.form |= {"size": size, "count": count, "seed": seed, **_advanced(studio, facts)}
    page.form = {name: page.form[name] for name in form.FIELDS}
    return {"go": go, "halt": halt, "random": random, "last": again}


def _advanced(studio: Studio, facts: Facts) -> dict[str, Any]:
    from atomdiff.sampling.draw import SAMPLERS

    with gr.Accordion("More settings", open=False, elem_classes="quiet", elem_id="more"):
        negative = gr.Textbox(
            label="What to keep out", placeholder="blurry, text", lines=2, elem_id="negative"
        )
        steps = gr.Slider(1, drawing.MAX_STEPS, 25, step=1, label="Steps", buttons=[], elem_id="steps")
        guidance = gr.Slider(
            *GUIDANCES,
            facts.guidance,
            step=0.1,
            label="Prompt strength (CFG)",
            buttons=[],
            elem_id="guidance",
        )
        with gr.Row(elem_classes="line"):
            samplers = [(sampler.title, name) for name, sampler in SAMPLERS.items()]
            sampler = gr.Dropdown(samplers, value="dpm++", label="Sampler", min_width=130, elem_id="sampler")
            batch = gr.Slider(
                1, 16, facts.batch, step=1, label="Batch size", min_width=130, buttons=[], elem_id="batch"
            )
        base = gr.Dropdown(
            list(studio.bases),
            value=studio.default,
            label="Base model",
            elem_id="base",
            info="Another base is loaded with the next picture.",
        )
    acting = gr.Dropdown(
        ACTING,
        value="",
        label="How concepts act",
        allow_custom_value=True,
        info="Or write it: both, always, and a part of the steps such as 0-0.8.",
        elem_id="acting",
    )
    return {
        "acting": acting,
        "negative": negative,
        "steps": steps,
        "guidance": guidance,
        "sampler": sampler,
        "batch": batch,
        "base": base,
    }


def connect(page: Page, buttons: dict[str, Any]) -> None:
    """What choosing concepts or a base changes, and the seed's button."""
    studio, fields, shared = page.studio, page.form, page.shared
    sliders = [fields[f"strength {i}"] for i in range(form.ROWS)]

    def choose(ids: list[str], before: list[Any], prompt: str, *strengths: float) -> list[Any]:
        entries = {entry.id: entry for entry in studio.concepts()}
        chosen = [entries[ident] for ident in ids if ident in entries]
        now = [(entry.trigger, entry.class_word) for entry in chosen]
        old = {ident: strengths[i] for i, (ident, _) in enumerate(before)}
        shown = [
            gr.update(visible=True, label=f"Strength of {entry.title}", value=old.get(entry.id, strengths[i]))
            for i, entry in enumerate(chosen)
        ]
        hidden = [gr.update(visible=False, value=1.0)] * (form.ROWS - len(chosen))
        carry = gr.update(visible=bool(chosen))
        filled = form.with_triggers(prompt, [subject for _, subject in map(tuple, before)], now)
        remembered = [(entry.id, subject) for entry, subject in zip(chosen, now, strict=True)]
        return [filled, remembered, carry, *shown, *hidden]

    fields["concepts"].input(
        choose,
        [fields["concepts"], shared["draw.subjects"], fields["prompt"], *sliders],
        [fields["prompt"], shared["draw.subjects"], fields["carry"], *sliders],
        api_visibility="private",
        show_progress="hidden",
    )

    def rebase(name: str) -> list[Any]:
        facts = studio.facts(name)
        known = gr.update(choices=choices(studio, name))
        return [gr.update(choices=_sizes(facts), value=_size(facts)), facts.guidance, facts.batch, known]

    fields["base"].input(
        rebase,
        fields["base"],
        [fields["size"], fields["guidance"], fields["batch"], fields["concepts"]],
        api_visibility="private",
        show_progress="hidden",
    )
    buttons["random"].click(
        lambda: "", None, fields["seed"], api_visibility="private", show_progress="hidden"
    )


def filled(page: Page, order: drawing.Order) -> list[Any]:
    """Updates of all of the form's parts, and of what Draw remembers of its concepts, for an order."""
    studio = page.studio
    entries = {entry.id: entry for entry in studio.concepts()}
    values = form.values_of(order)
    facts = studio.facts(order.base)
    if order.size is None:
        values["size"] = _size(facts)
    if order.guidance is None:
        values["guidance"] = facts.guidance
    updates: dict[str, Any] = {name: gr.update(value=value) for name, value in values.items()}
    updates["guidance"] = gr.update(value=values["guidance"], **_reaching(GUIDANCES, values["guidance"]))
    updates["concepts"] = gr.update(
        choices=choices(studio, order.base), value=values["concepts"], info=about_choices(studio)
    )
    updates["carry"] = gr.update(visible=bool(values["concepts"]))
    updates["blocks"] = gr.update(value=values["blocks"], visible=bool(values["blocks"]))
    for i in range(form.ROWS):
        used = order.concepts[i][0] if i < len(order.concepts) else None
        title = entries[used].title if used in entries else ""
        value = values[f"strength {i}"]
        updates[f"strength {i}"] = gr.update(
            visible=used is not None,
            label=f"Strength of {title}",
            value=value,
            **_reaching(STRENGTHS, value),
        )
    subjects = [
        (ident, (entries[ident].trigger, entries[ident].class_word))
        for ident, _ in order.concepts
        if ident in entries
    ]
    return [*(updates.get(name, gr.skip()) for name in form.FIELDS), subjects]


def choices(studio: Studio, base: str) -> list[tuple[str, str]]:
    """The library as choices: titles, told apart where two are alike, with their base where it is not this
    one."""
    entries = studio.concepts()
    titles = Counter(entry.title for entry in entries)
    made = []
    for entry in entries:
        label = entry.title if titles[entry.title] == 1 else f"{entry.title} ({entry.id[:6]})"
        made.append((label if entry.base == base else f"{label} · for {entry.base}", entry.id))
    return made


def about_choices(studio: Studio) -> str:
    """What to do where there are no choices."""
    return "" if studio.concepts() else "None yet: make one under Train, or drop one anywhere."


def _reaching(usual: tuple[float, float], value: float) -> dict[str, Any]:
    """Ends of a slider that reach a value from elsewhere: Gradio refuses what lies outside."""
    return {"minimum": min(usual[0], value), "maximum": max(usual[1], value)}


def _sizes(facts: Facts) -> list[tuple[str, str]]:
    return [
        (f"{SHAPES[ratio]} · {width} × {height}", f"{width}x{height}")
        for (width, height), ratio in facts.sizes().items()
    ]


def _size(facts: Facts) -> str:
    return f"{facts.resolution}x{facts.resolution}"
