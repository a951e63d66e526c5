"""Train: pictures in, a concept out; live meanwhile, and a timeline to choose the best state from."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from atomdiff.errors import AtomdiffError, ImageError
from atomdiff.studio import film, parts, pieces
from atomdiff.studio.course import MAX_PICTURES, MORE, QUALITIES, Wish, parted, steps_of
from atomdiff.studio.house import Studio
from atomdiff.studio.people import owner
from atomdiff.studio.tabs import watching
from atomdiff.training.settings import TrainingSettings

if TYPE_CHECKING:
    from atomdiff.studio.page import Page

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
LABELS = {
    "max_train_steps": "Steps",
    "num_atoms": "Atoms of convolutions",
    "linear_atoms": "Atoms of attention",
    "train_token": "Train the trigger word too",
    "num_vectors": "Vectors of the trigger word",
    "with_prior_preservation": "Train on class pictures too",
    "random_flip": "Mirror pictures at random",
    "learning_rate": "Learning rate",
    "linear_learning_rate": "Learning rate of attention, if another",
    "precision": "Number format",
    "seed": "Seed",
}
LINEAR = ("attn2_kvo", "attn2", "attn2_kv", "attn", "all", "none")


def build(page: Page) -> None:
    """Lays the tab out."""
    shared = page.shared
    with (
        gr.Tab("Train", id="train", render_children=True) as shared["train.tab"],
        gr.Row(elem_classes="workbench"),
    ):
        with gr.Column(elem_classes="controls"):
            _wishes(page)
        with gr.Column(elem_classes="stage-side"):
            _stage(shared)
    shared["train.shown"], shared["train.seen"], shared["train.kept"] = (
        gr.State(""),
        gr.State(""),
        gr.State(""),
    )
    shared["train.clock"] = gr.Timer(1.0, active=False)


def _wishes(page: Page) -> None:
    shared, studio = page.shared, page.studio
    shared["train.files"] = gr.File(
        show_label=False, file_count="multiple", type="filepath", height=130, elem_id="train-files",
        elem_classes="drop",
    )  # fmt: skip
    shared["train.tiles"] = gr.HTML(
        pieces.hint(
            "JPEG, PNG, WebP and more; they are turned upright and cropped to squares. Text files named like "
            "the pictures are their captions."
        ),
        elem_id="train-tiles",
    )
    with gr.Row(elem_classes="line"):
        shared["train.class"] = gr.Textbox(
            label="What is it?", placeholder="dog", min_width=110, elem_id="train-class"
        )
        shared["train.name"] = gr.Textbox(
            label="Its name", placeholder="Bello", min_width=110, elem_id="train-name"
        )
    shared["train.quality"] = gr.Radio(
        _qualities(studio, None), value="good", label="Quality", elem_id="train-quality", elem_classes="stack"
    )
    shared["train.expected"] = gr.HTML("", elem_id="train-expected")
    with gr.Accordion("More settings", open=False, elem_classes="quiet", elem_id="train-more"):
        shared["train.base"] = gr.Dropdown(
            list(studio.bases), value=studio.default, label="Base model", elem_id="train-base"
        )
        shared["train.trigger"] = gr.Textbox(label="Word that calls it", placeholder="sks")
        shared["train.prompt"] = gr.Textbox(label="Pictures along the way show", placeholder="a sks dog")
        shared["train.more"] = [_field(name) for name in MORE]
    shared["train.go"] = gr.Button("Train", variant="primary", elem_id="train-go", elem_classes="go")
    shared["train.stop"] = gr.Button(
        "Stop and keep", variant="stop", visible=False, elem_id="train-stop", elem_classes="halt"
    )


def _field(name: str) -> Any:
    """The part of the form for a training setting, by what TrainingSettings says of it."""
    item = next(item for item in dataclasses.fields(TrainingSettings) if item.name == name)
    default: Any = item.default
    about = {"label": LABELS[name], "info": item.metadata["help"], "elem_id": f"train-{name}"}
    if item.metadata["choices"] or name == "linear_atoms":
        choices = list(item.metadata["choices"] or LINEAR)
        return gr.Dropdown(choices, value=default, allow_custom_value=name == "linear_atoms", **about)
    if item.type is bool:
        return gr.Checkbox(value=default, **about)
    return gr.Number(default, precision=0 if item.type in (int, int | None) else None, **about)


def _stage(shared: dict[str, Any]) -> None:
    shared["train.status"] = gr.HTML(watching.EMPTY, elem_id="train-status")
    shared["train.loss"] = gr.HTML("", elem_id="train-loss")
    shared["train.film"] = gr.HTML("", elem_id="train-film")
    with gr.Column(visible=False, elem_id="choice") as shared["train.choice"]:
        shared["train.state"] = gr.Slider(
            1, 2, 1, step=1, label="State", buttons=[], elem_id="timeline", elem_classes="timeline"
        )
        shared["train.frame"] = gr.HTML("", elem_id="frame-status")
        shared["train.gallery"] = parts.pictures("frame", columns=4, visible=True)
        with gr.Row(elem_classes="actions"):
            shared["train.keep"] = gr.Button("Save to the library", variant="primary", elem_id="keep-state")
            shared["train.draw"] = gr.Button("Draw with it", visible=False, elem_id="draw-state")
        shared["train.told"] = gr.HTML("", elem_id="keep-told")
    with gr.Row(elem_classes="line"):
        shared["train.which"] = gr.Dropdown(
            [], label="Trainings", visible=False, scale=4, min_width=160, elem_id="trainings"
        )
        shared["train.resume"] = gr.Button(
            "Go on", size="sm", visible=False, scale=1, min_width=80, elem_id="go-on"
        )
        shared["train.delete"] = gr.Button(
            "Delete", size="sm", variant="stop", visible=False, scale=1, min_width=80, elem_id="train-delete"
        )


def wire(page: Page) -> None:
    """Connects it."""
    _connect_wishes(page)
    watching.connect(page, _asked(page), wish)


def _asked(page: Page) -> list[Any]:
    names = ("files", "class", "name", "quality", "base", "trigger", "prompt")
    return [page.shared[f"train.{name}"] for name in names] + page.shared["train.more"]


def wish(values: list[Any], class_word: str = "") -> Wish:
    """What the form's values, in the order of `_asked`, mean. Raises SettingsError."""
    files, word, name, quality, base, trigger, prompt, *more = values
    texts = {"trigger": (trigger or "").strip(), "validation_prompt": (prompt or "").strip()}
    given = {key: value for key, value in zip(MORE, more, strict=True) if not _left_open(key, value)}
    paths = tuple(Path(path) for path in files or [])
    return Wish(paths, word or class_word, name or "", str(base), str(quality), {**texts, **given})


def _left_open(name: str, value: Any) -> bool:
    """Whether a part of the form was not filled in; a page sends 0 for a number that was left blank."""
    return value in (None, "") or (value == 0 and getattr(TrainingSettings, name) is None)


def _connect_wishes(page: Page) -> None:
    studio, shared = page.studio, page.shared
    outputs = [shared[f"train.{name}"] for name in ("tiles", "quality", "expected")]

    async def consider(request: gr.Request, *values: Any) -> AsyncIterator[list[Any]]:
        """Shows the pictures as they will be used, then how long the qualities take here."""
        tiles = _tiles(studio, values[0] or [], str(values[4]))
        choices = gr.update(choices=_qualities(studio, list(values)))
        yield [tiles, choices, _expected(studio, list(values))]
        try:
            asked = wish(list(values), "subject")
            if studio.trainings.expected(asked)[1] is not None:
                return
            job = studio.trainings.measure(owner(request), asked)
        except AtomdiffError:  # pressing Train tells it
            return
        async for look in studio.desk.watch(job):
            yield [gr.skip(), gr.skip(), "" if look.over else pieces.hint("Timing a step on this machine…")]
        yield [
            gr.skip(),
            gr.update(choices=_qualities(studio, list(values))),
            _expected(studio, list(values)),
        ]

    options: dict[str, Any] = {"concurrency_limit": None, "trigger_mode": "always_last", **QUIET}
    for part in (shared["train.files"], shared["train.quality"]):
        part.change(consider, _asked(page), outputs, **options)
    for part in (shared["train.base"], *shared["train.more"]):
        part.input(consider, _asked(page), outputs, **options)


def _tiles(studio: Studio, files: list[str], base: str) -> str:
    """The pictures as they will be used, and why some will not."""
    from atomdiff.files.images import read_picture
    from atomdiff.training.captions import read_caption

    side = min(film.SIDE, studio.facts(base).resolution)
    made, problems = [], []
    pictures, captions = parted([Path(name) for name in files])
    for path in pictures[:MAX_PICTURES]:
        try:
            picture = read_picture(path, side)[0]
        except ImageError as error:
            problems.append(f"{path.name} is left out: {error}.")
            continue
        try:
            caption = read_caption(captions[path.stem]) if path.stem in captions else ""
        except ImageError as error:
            caption, problems = "", [*problems, str(error)]
        made.append((film.packed(picture), caption))
    return film.tiles(made) + "".join(map(pieces.error, problems[:5]))


def _qualities(studio: Studio, values: list[Any] | None) -> list[tuple[str, str]]:
    """The choices, with their steps, and their time where it was measured."""
    choices = []
    for quality in QUALITIES:
        steps, seconds = steps_of(quality, studio.facts(studio.default).family), None
        if values is not None:
            try:
                own = [*values[:3], quality, *values[4:7], None, *values[8:]]  # not the steps set by hand
                steps, seconds, _ = studio.trainings.expected(wish([["x"], *own[1:]], "subject"))
            except AtomdiffError:
                pass
        time = f" · about {pieces.duration(seconds)}" if seconds is not None else ""
        choices.append((f"{quality.capitalize()} · {steps} steps{time}", quality))
    return choices


def _expected(studio: Studio, values: list[Any]) -> str:
    """What is known of such a training, in a line."""
    try:
        steps, seconds, size = studio.trainings.expected(wish([["x"], *values[1:]], "subject"))
    except AtomdiffError as error:
        return pieces.error(str(error))
    if seconds is None or size is None:
        return ""
    kilobytes = size / 1000
    return pieces.hint(
        f"{steps} steps, about {pieces.duration(seconds)} on this machine; the concept will have about "
        f"{kilobytes:.0f} KB."
    )
