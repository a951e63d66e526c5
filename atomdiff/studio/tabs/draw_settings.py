"""The left side of Draw: every setting, what changes with the base and the concepts, and a request put into
it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from atomdiff.sampling.settings import SAMPLERS, USUAL, parse_size
from atomdiff.serving.bases import BaseInfo
from atomdiff.studio import canvas, draw_form, html
from atomdiff.studio.draw_form import ROWS, STRENGTHS
from atomdiff.studio.draw_request import MAX_STEPS, DrawRequest
from atomdiff.studio.session import Studio
from atomdiff.studio.tabs import parts
from atomdiff.studio.tabs.other_files import other_files, shown
from atomdiff.studio.tabs.regions import RegionsPart

if TYPE_CHECKING:
    from atomdiff.core.blocks import Strength
    from atomdiff.library import Entry

SHAPES = {(1, 1): "Square", (3, 4): "Portrait 3:4", (4, 3): "Landscape 4:3", (2, 3): "Portrait 2:3",
          (3, 2): "Landscape 3:2", (9, 16): "Tall 9:16", (16, 9): "Wide 16:9"}  # fmt: skip
STRENGTH, GUIDANCE = (0, 2), (0, 20)  # the ends of the sliders
ACTING = [("Everywhere, as other tools draw", "plain"), ("Where the prompt calls them", "gated")]
LARGER = [("No", 1.0), ("1.5 times", 1.5), ("Twice", 2.0)]
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


class DrawSettings:
    """The components of the form, by the names that `draw_form` reads, and `subjects`, the ids of the
    concepts whose words are in the prompt."""

    def __init__(self, studio: Studio, tabs: gr.Tabs) -> None:
        self._studio, self._tabs = studio, tabs
        self.form: dict[str, Any] = {}
        self._layout(studio.bases.info(studio.bases.default))
        self.subjects = gr.State([])
        self.context = {name: self.form[name] for name in ("prompt", "base", "size")}
        self.context["before"] = self.subjects
        """Inputs, by name, that `with_concept` is to be told."""
        self.outputs = [*self.form.values(), *self.where.outputs, self.subjects, tabs]
        """What `filled` and `with_concept` update."""
        self._connect()

    def filled(self, request: DrawRequest) -> dict[Any, Any]:
        """Updates of the whole form for a request."""
        values, form, info = draw_form.values_of(request), self.form, self._studio.bases.info(request.base)
        if request.size is None:
            values["size"] = _native(info)
        if request.guidance is None:
            values["guidance"] = info.guidance
        updates = {form[name]: gr.update(value=value) for name, value in values.items()}
        updates[form["guidance"]] = _slider(GUIDANCE, values["guidance"])
        updates |= shown(form, request.loras)
        return updates | self._chosen(request.concepts, request.base) | {self.subjects: values["concepts"]}

    def with_concept(
        self, ident: str, prompt: str, base: str, size: str, before: list[str], strength: Strength = 1.0
    ) -> dict[Any, Any]:
        """Updates that open Draw with a concept, alone, on its own base where that is here; what else is
        chosen there stays. Raises ConceptError if the concept is gone."""
        entry, form = self._studio.library.get(ident), self.form
        on = entry.base if entry.base in self._studio.bases.names else base
        asked = draw_form.with_triggers(prompt, self._words(before), [words(entry)]) or entry.title
        filled = self.filled(DrawRequest(asked, ((ident, strength),), base=on))
        filled[form["regions"]] = canvas.blank(parse_size(size) or (1, 1))
        changed = {"prompt", "concepts", *STRENGTHS, "blocks", "carry", "regions"}
        changed |= {"base", "size", "guidance"} if on != base else set()
        kept = {form[name] for name in form if name not in changed}
        return {part: update for part, update in filled.items() if part not in kept} | self.opened()

    def opened(self) -> dict[Any, Any]:
        """The update that goes to Draw."""
        return {self._tabs: gr.Tabs(selected="draw")}

    def offer(self, base: str) -> Any:
        """An update of the list of concepts."""
        entries = self._studio.concepts()
        about = "" if entries else "None yet: make one under Train, or drop one anywhere."
        return gr.update(choices=_choices(entries, base), info=about)

    # ------------------------------------------------------------------------------------------ inside

    def _layout(self, info: BaseInfo) -> None:
        form, studio = self.form, self._studio
        form["prompt"] = gr.Textbox(
            label="What to draw", placeholder="a dog on the beach", lines=3, max_lines=8, elem_id="prompt"
        )
        self.go, self.halt = parts.go_and_halt("Draw", "go", "halt")
        gr.HTML('<p class="hint"><kbd>Ctrl</kbd> <kbd>Enter</kbd> draws</p>')
        gr.Examples(
            [[text] for text in EXAMPLES.get(info.family, EXAMPLES[""])], form["prompt"], label="Examples",
            cache_examples=False, run_on_click=False, elem_id="examples",
        )  # fmt: skip
        form["concepts"] = gr.Dropdown(
            _choices(studio.concepts(), info.name), value=[], multiselect=True, max_choices=ROWS,
            label="Concepts", elem_id="concepts",
        )  # fmt: skip
        self.example = gr.Button("Try the example concept", size="sm", visible=False, elem_id="draw-example")
        for i, name in enumerate(STRENGTHS):
            form[name] = gr.Slider(
                *STRENGTH,
                1.0,
                step=0.05,
                label="Strength",
                visible=False,
                buttons=[],
                elem_id=f"strength-{i}",
            )
        form["blocks"] = gr.Textbox(
            label="Times, by block", visible=False, elem_id="blocks", info="Empty it for one strength again."
        )
        form["carry"] = gr.Checkbox(
            label="Put the concept into the pictures", info="Whoever gets one can draw with it too.",
            visible=False, elem_id="carry",
        )  # fmt: skip
        with gr.Row(elem_classes="line"):
            form["size"] = gr.Dropdown(
                _sizes(info), value=_native(info), label="Size", allow_custom_value=True, scale=3,
                min_width=120, elem_id="size",
            )  # fmt: skip
            form["count"] = gr.Slider(
                1, 16, 4, step=1, label="Pictures", scale=2, min_width=120, buttons=[], elem_id="count"
            )
        with gr.Row(elem_classes="line", equal_height=True):
            form["seed"] = gr.Textbox(
                label="Seed", placeholder="random", scale=3, min_width=90, elem_id="seed"
            )
            self.random = gr.Button("Random", size="sm", scale=1, min_width=70, elem_id="random-seed")
            self.last = gr.Button("Last", size="sm", scale=1, min_width=60, elem_id="last-seed")
        self.where = RegionsPart(form, (info.resolution, info.resolution))
        with gr.Accordion(
            "Start from a picture", open=False, elem_classes="quiet", elem_id="start"
        ) as self.start:
            form["start"] = gr.ImageEditor(
                type="pil", show_label=False, sources=["upload", "clipboard"], layers=False,
                brush=gr.Brush(colors=["#0f766e"], color_mode="fixed", default_size="auto"), height=340,
                transforms=["crop"], buttons=[], elem_id="start-image",
            )  # fmt: skip
            gr.HTML(html.hint("Paint over what is to change, and only that does; unpainted, all of it may."))
            form["strength"] = gr.Slider(
                0.05, 1, 0.6, step=0.05, label="How much may change", buttons=[], elem_id="change"
            )
        other_files(studio, form)
        with gr.Accordion("More settings", open=False, elem_classes="quiet", elem_id="more"):
            self._more(info)

    def _more(self, info: BaseInfo) -> None:
        form, names = self.form, self._studio.bases.names
        form["negative"] = gr.Textbox(
            label="What to keep out", placeholder="blurry, text", lines=2, elem_id="negative"
        )
        form["steps"] = gr.Slider(1, MAX_STEPS, 25, step=1, label="Steps", buttons=[], elem_id="steps")
        form["guidance"] = gr.Slider(
            *GUIDANCE, info.guidance, step=0.1, label="Prompt strength (CFG)", buttons=[], elem_id="guidance"
        )
        with gr.Row(elem_classes="line"):
            form["style"] = gr.Dropdown(
                [("None", ""), *((name.capitalize(), name) for name in self._studio.styles())], value="",
                label="Style", min_width=130, elem_id="style",
            )  # fmt: skip
            form["hires"] = gr.Dropdown(
                LARGER, value=1.0, label="Then larger", min_width=130, elem_id="hires"
            )
        samplers = [(sampler.title, name) for name, sampler in SAMPLERS.items()]
        with gr.Row(elem_classes="line"):
            form["sampler"] = gr.Dropdown(
                samplers, value="dpm++", label="Sampler", min_width=130, elem_id="sampler"
            )
            form["batch"] = gr.Slider(
                1, 16, info.batch, step=1, label="Batch size", min_width=130, buttons=[], elem_id="batch"
            )
        form["base"] = gr.Dropdown(
            list(names), value=info.name, label="Base model", elem_id="base",
            info="Another base is loaded with the next picture.",
        )  # fmt: skip
        form["acting"] = gr.Dropdown(ACTING, value=USUAL, label="Concepts act", elem_id="acting")

    def _connect(self) -> None:
        form, subjects, sliders = self.form, self.subjects, [self.form[name] for name in STRENGTHS]

        @form["concepts"].input(
            inputs=[form["concepts"], subjects, form["prompt"], form["base"], form["regions"], form["size"],
                    *sliders],
            outputs=[form["prompt"], subjects, form["concepts"], form["carry"], form["blocks"],
                     form["regions"], *self.where.outputs, *sliders],
        )  # fmt: skip
        def choose(
            ids: list[str], before: list[str], prompt: str, base: str, painted: Any, size: str,
            *strengths: float,
        ) -> Any:  # fmt: skip
            old = dict(zip(before, strengths, strict=False))
            filled = draw_form.with_triggers(prompt, self._words(before), self._words(ids))
            chosen = self._chosen([(ident, old.get(ident, 1.0)) for ident in ids], base)
            del chosen[form["concepts"]], chosen[form["blocks"]]
            chosen[form["regions"]] = self.where.moved(painted, before, ids, size)
            return {form["prompt"]: filled, subjects: ids} | chosen

        @form["base"].input(
            inputs=form["base"],
            outputs=[form["size"], form["guidance"], form["batch"], form["concepts"]],
        )
        def change_base(name: str) -> Any:
            info = self._studio.bases.info(name)
            size = gr.update(choices=_sizes(info), value=_native(info))
            return size, info.guidance, info.batch, self.offer(name)

        self.where.connect()
        self.random.click(lambda: "", None, form["seed"])

    def _chosen(self, concepts: Sequence[tuple[str, Strength]], base: str) -> dict[Any, Any]:
        """Updates of what shows the chosen concepts."""
        form, entries = self.form, {entry.id: entry for entry in self._studio.concepts()}
        request = DrawRequest("-", tuple(concepts[:ROWS]), base=base)
        values = draw_form.values_of(request)
        updates: dict[Any, Any] = {
            form["concepts"]: self.offer(base) | {"value": values["concepts"]},
            form["carry"]: gr.update(visible=bool(concepts)),
            form["blocks"]: gr.update(value=values["blocks"], visible=bool(values["blocks"])),
        }
        updates |= self.where.shown([entries.get(ident) for ident, _ in concepts])
        for i, name in enumerate(STRENGTHS):
            entry = entries.get(concepts[i][0]) if i < len(concepts) else None
            label = f"Strength of {entry.title}" if entry else "Strength"
            updates[form[name]] = _slider(STRENGTH, values[name]) | {"visible": bool(entry), "label": label}
        return updates

    def _words(self, ids: list[str]) -> list[tuple[str, str]]:
        entries = {entry.id: entry for entry in self._studio.concepts()}
        return [words(entries[ident]) for ident in ids if ident in entries]


def words(entry: Entry) -> tuple[str, str]:
    """What calls a concept: its trigger and class."""
    return entry.trigger, entry.class_word


def _choices(entries: Sequence[Entry], base: str) -> list[tuple[str, str]]:
    """The library as choices: titles, told apart where two are alike, with their base where it is not this
    one."""
    titles, made = Counter(entry.title for entry in entries), []
    for entry in entries:
        label = entry.title if titles[entry.title] == 1 else f"{entry.title} ({entry.id[:6]})"
        made.append((label if entry.base == base else f"{label} · for {entry.base}", entry.id))
    return made


def _slider(usual: tuple[float, float], value: float) -> dict[str, Any]:
    """An update whose ends reach a value from elsewhere: Gradio refuses what lies outside."""
    return gr.update(value=value, minimum=min(usual[0], value), maximum=max(usual[1], value))


def _sizes(info: BaseInfo) -> list[tuple[str, str]]:
    return [
        (f"{SHAPES[ratio]} · {width} × {height}", f"{width}x{height}")
        for (width, height), ratio in info.sizes().items()
    ]


def _native(info: BaseInfo) -> str:
    return f"{info.resolution}x{info.resolution}"
