"""Train: pictures in, a concept out; live meanwhile, and a timeline to choose the best state from."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gradio as gr

from atomdiff.errors import AtomdiffError, ImageError
from atomdiff.serving.job_queue import duration
from atomdiff.serving.training_jobs import TIMING
from atomdiff.serving.training_session import (
    MAX_PICTURES,
    MORE,
    QUALITIES,
    TrainingRequest,
    split_captions,
    steps_of,
)
from atomdiff.studio import html
from atomdiff.studio.identity import owner
from atomdiff.studio.session import Studio
from atomdiff.studio.tabs import parts
from atomdiff.studio.tabs.concepts import ConceptsTab
from atomdiff.studio.tabs.draw import DrawTab
from atomdiff.studio.tabs.training_view import training_view
from atomdiff.training.settings import TrainingSettings

LABELS = {
    "recipe": "Recipe",
    "max_train_steps": "Steps",
    "with_prior_preservation": "Train on class pictures too",
    "random_flip": "Mirror pictures at random",
    "learning_rate": "Learning rate",
    "precision": "Number format",
    "seed": "Seed",
}
SIDE = 256  # pixels of a picture that is shown as it will be used
HINT = html.hint(
    "JPEG, PNG, WebP, HEIC and more; they are turned upright and keep their shapes: click one to crop it. "
    "Text files named like the pictures are their captions."
)


def train_tab(studio: Studio, page: gr.Blocks, draw: DrawTab, concepts: ConceptsTab) -> None:
    """The tab."""
    bases = studio.bases
    form: dict[str, Any] = {"edits": gr.State({})}  # path of a picture -> Edit
    shown_paths = gr.State([])
    with gr.Tab("Train", id="train", render_children=True), gr.Row(elem_classes="workbench"):
        with gr.Column(elem_classes="controls"):
            form["files"] = gr.File(
                show_label=False, file_count="multiple", type="filepath", height=130, elem_id="train-files",
                elem_classes="drop",
            )  # fmt: skip
            told = gr.HTML(HINT, elem_id="train-told")
            tiles = parts.gallery(
                "train-tiles", columns=4, buttons=[], elem_classes="pictures tiles", allow_preview=False
            )
            editor = _Editor(form["edits"], tiles)
            with gr.Row(elem_classes="line"):
                form["class_word"] = gr.Textbox(
                    label="What is it?", placeholder="dog", min_width=110, elem_id="train-class"
                )
                form["name"] = gr.Textbox(
                    label="Its name", placeholder="Bello", min_width=110, elem_id="train-name"
                )
            form["quality"] = gr.Radio(
                _qualities(studio, None), value="good", label="Quality", elem_id="train-quality",
                elem_classes="stack",
            )  # fmt: skip
            expected = gr.HTML("", elem_id="train-expected")
            with gr.Accordion("More settings", open=False, elem_classes="quiet", elem_id="train-more"):
                form["base"] = gr.Dropdown(
                    list(bases.names), value=bases.default, label="Base model", elem_id="train-base"
                )
                form["trigger"] = gr.Textbox(label="Word that calls it", placeholder="sks")
                form["validation_prompt"] = gr.Textbox(
                    label="Pictures along the way show", placeholder="a sks dog"
                )
                form |= {name: _field(name) for name in MORE}
            go = gr.Button("Train", variant="primary", elem_id="train-go", elem_classes="go")
            stop = gr.Button(
                "Stop and keep", variant="stop", visible=False, elem_id="train-stop", elem_classes="halt"
            )
        with gr.Column(elem_classes="stage-side"):
            start = training_view(studio, page, draw, concepts, go, stop)

    editor.connect(shown_paths)

    @go.click(inputs_kwargs=form, outputs=start.outputs, trigger_mode="once")
    def begin(request: gr.Request, **values: Any) -> dict[Any, Any]:
        me = owner(request)
        return start.shown(me, studio.trainings.start(me, training_request(values)).ident)

    @gr.on(
        [form["files"].change, form["edits"].change, form["quality"].change, form["base"].input]
        + [form[name].input for name in MORE],
        inputs_kwargs=form,
        outputs=[told, tiles, shown_paths, editor.whole, form["quality"], expected],
        trigger_mode="always_last",
    )
    async def consider(request: gr.Request, **values: Any) -> AsyncIterator[dict[Any, Any]]:
        """Shows the pictures as they will be used, then how long the qualities take here."""
        shown, problems = used_pictures(values["files"] or [], values["edits"])
        yield {
            told: "".join(map(html.error, problems[:5])) or ("" if shown else HINT),
            tiles: gr.update(
                value=[(one, text) for _, one, text in shown], visible=bool(shown), selected_index=None
            ),
            shown_paths: [path for path, _, _ in shown],
            editor.whole: parts.HIDDEN,
            form["quality"]: gr.update(choices=_qualities(studio, values)),
            expected: _expected(studio, values),
        }
        try:
            asked = training_request(values, "subject")
            if studio.trainings.expected(asked)[1] is not None:
                return
            job = studio.trainings.measure(owner(request), asked)
        except AtomdiffError:  # pressing Train tells it
            return
        async for now in studio.queue.watch(job):
            yield {expected: "" if now.over else html.hint(f"{TIMING}…")}
        yield {
            form["quality"]: gr.update(choices=_qualities(studio, values)),
            expected: _expected(studio, values),
        }


@dataclass(frozen=True)
class Edit:
    """What was made of a picture on the page: cropped into another `file`, described, or left out."""

    file: str
    caption: str = ""
    omitted: bool = False


class _Editor:
    """The chosen picture, to crop and to describe; what is made of all is in `edits`, path -> Edit."""

    def __init__(self, edits: gr.State, tiles: gr.Gallery) -> None:
        self.edits, self.tiles, self.edited = edits, tiles, gr.State("")
        with gr.Column(visible=False, elem_id="train-edit") as self.whole:
            self.crop = gr.ImageEditor(
                type="pil", show_label=False, sources=["upload"], layers=False, brush=False, eraser=False,
                transforms=["crop"], height=300, buttons=[], elem_id="train-crop",
            )  # fmt: skip
            self.caption = gr.Textbox(
                label="What is in it",
                placeholder="a sks dog in a meadow",
                lines=2,
                elem_id="train-caption",
            )
            with gr.Row(elem_classes="line"):
                self.keep = gr.Button("Keep", size="sm", variant="primary", elem_id="train-keep")
                self.omit = gr.Button("Leave it out", size="sm", elem_id="train-omit")

    def connect(self, shown_paths: gr.State) -> None:
        """What happens when a picture is chosen, kept as it is now, or left out."""

        @self.tiles.select(
            inputs=[shown_paths, self.edits, self.tiles],
            outputs=[self.edited, self.whole, self.crop, self.caption],
        )
        def edit(paths: list[str], edits: dict[str, Edit], shown: Any, event: gr.SelectData) -> Any:
            path = paths[int(event.index)]
            file = edits.get(path, Edit(path)).file
            text = (shown or [])[int(event.index)][1] or ""
            picture = {"background": file, "layers": [], "composite": file}
            return path, gr.update(visible=True), picture, "" if text == "left out" else text

        def remember(edits: dict[str, Edit], path: str, **changes: Any) -> dict[Any, Any]:
            kept = edits | {path: replace(edits.get(path, Edit(path)), **changes)}
            return {self.edits: kept, self.whole: parts.HIDDEN}

        @self.keep.click(
            inputs=[self.edits, self.edited, self.crop, self.caption], outputs=[self.edits, self.whole]
        )
        def keep_edit(edits: dict[str, Edit], path: str, value: Any, text: str) -> dict[Any, Any]:
            file = cropped(edits.get(path, Edit(path)).file, (value or {}).get("composite"))
            return remember(edits, path, file=file, caption=" ".join((text or "").split()), omitted=False)

        @self.omit.click(inputs=[self.edits, self.edited], outputs=[self.edits, self.whole])
        def leave_out(edits: dict[str, Edit], path: str) -> dict[Any, Any]:
            return remember(edits, path, omitted=True)


def training_request(values: dict[str, Any], class_word: str = "") -> TrainingRequest:
    """What the form's values mean. Raises SettingsError."""
    more = {name: values[name] for name in MORE if not _left_open(name, values[name])}
    texts = {name: (values[name] or "").strip() for name in ("trigger", "validation_prompt")}
    edits: dict[str, Edit] = {path: Edit(path) for path in values["files"] or []} | values["edits"]
    used = [edits[path] for path in values["files"] or [] if not edits[path].omitted]
    return TrainingRequest(
        tuple(Path(edit.file) for edit in used),
        values["class_word"] or class_word,
        values["name"] or "",
        str(values["base"]),
        str(values["quality"]),
        texts | more,
        {Path(edit.file).stem: edit.caption for edit in used if edit.caption},
    )


def used_pictures(
    files: list[str], edits: Mapping[str, Edit] = MappingProxyType({})
) -> tuple[list[tuple[str, Any, str]], list[str]]:
    """The pictures that will be used, small, with their paths and captions; and why some will not."""
    from atomdiff.files.images import open_picture
    from atomdiff.training.captions import read_caption

    shown: list[tuple[str, Any, str]] = []
    problems: list[str] = []
    pictures, captions = split_captions([Path(name) for name in files])
    for path in pictures[:MAX_PICTURES]:
        edit = edits.get(str(path), Edit(str(path)))
        try:
            picture = open_picture(Path(edit.file)).image
        except ImageError as error:
            problems.append(f"{path.name} is left out: {error}.")
            continue
        try:
            text = read_caption(captions[path.stem]) if path.stem in captions else ""
        except ImageError as error:
            text, problems = "", [*problems, str(error)]
        picture.thumbnail((SIDE, SIDE))
        shown.append((str(path), picture, "left out" if edit.omitted else edit.caption or text))
    return shown, problems


def cropped(file: str, picture: Any) -> str:
    """The file of a picture of another shape than the one in `file`, under the same name; else `file`
    itself."""
    from atomdiff.files.images import open_picture

    if picture is None or picture.size == open_picture(Path(file)).image.size:
        return file
    target = Path(tempfile.mkdtemp(prefix="atomdiff-crop-", dir=Path(file).parent)) / Path(file).name
    picture.convert("RGB").save(target.with_suffix(".png"))
    return str(target.with_suffix(".png"))


def _field(name: str) -> Any:
    """The part of the form for a training setting, by what TrainingSettings says of it."""
    item = next(item for item in dataclasses.fields(TrainingSettings) if item.name == name)
    default: Any = item.default
    about = {"label": LABELS[name], "info": item.metadata["help"], "elem_id": f"train-{name}"}
    if item.metadata["choices"]:
        return gr.Dropdown(list(item.metadata["choices"]), value=default, **about)
    if item.type == bool | None:
        return gr.Dropdown([("as the recipe has it", ""), ("yes", True), ("no", False)], value="", **about)
    if item.type is bool:
        return gr.Checkbox(value=default, **about)
    return gr.Number(default, precision=0 if item.type in (int, int | None) else None, **about)


def _left_open(name: str, value: Any) -> bool:
    """Whether a part of the form was not filled in; a page sends 0 for a number that was left blank."""
    blank = value == 0 and value is not False and getattr(TrainingSettings, name) is None
    return value in (None, "") or blank


def _qualities(studio: Studio, values: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The choices, with their steps, and their time where it was measured."""
    choices = []
    for quality in QUALITIES:
        steps, seconds = steps_of(quality, studio.bases.info(studio.bases.default)), None
        if values is not None:
            try:  # not the steps set by hand
                own = values | {"files": ["x"], "quality": quality, "max_train_steps": None}
                steps, seconds, _ = studio.trainings.expected(training_request(own, "subject"))
            except AtomdiffError:
                pass
        time = f" · about {duration(seconds)}" if seconds is not None else ""
        choices.append((f"{quality.capitalize()} · {steps} steps{time}", quality))
    return choices


def _expected(studio: Studio, values: dict[str, Any]) -> str:
    """What is known of such a training, in a line."""
    try:
        asked = training_request(values | {"files": ["x"]}, "subject")
        steps, seconds, size = studio.trainings.expected(asked)
    except AtomdiffError as error:
        return html.error(str(error))
    if seconds is None or size is None:
        return ""
    return html.hint(
        f"{steps} steps, about {duration(seconds)} on this machine; the concept will have about "
        f"{size / 1000:.0f} KB."
    )
