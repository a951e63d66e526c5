"""The studio for programs, second part: endpoints for the library, for training, and for what was learned.

As in `endpoints`: types and words are what Gradio shows, errors are one sentence.
"""
# No `from __future__ import annotations` here: Gradio reads the types of these functions.

from pathlib import Path
from typing import Any

import gradio as gr

from atomdiff.files.read_any import Source
from atomdiff.studio import insight, shelf
from atomdiff.studio.course import Course, Wish
from atomdiff.studio.endpoints import sentences
from atomdiff.studio.house import Studio
from atomdiff.studio.people import owner


def offer(studio: Studio) -> None:
    """Adds the endpoints to the page that is being built."""
    _offer_library(studio)
    _offer_sharing(studio)
    _offer_training(studio)
    _offer_trainings(studio)


def _offer_library(studio: Studio) -> None:
    def add_concepts(files: list[str], text: str) -> list[dict]:
        """Takes concepts into the library: uploaded files (concept files, cards, pictures of QR codes, JSON)
        or the text of one."""
        sources: list[Source] = [Path(path) for path in files or []]
        sources += [text] if text else []
        with sentences():
            taken = shelf.take(studio, sources)
        if taken.problems:
            raise gr.Error(" ".join(taken.problems))
        return [_concept(entry) for entry in taken.entries]

    def note_concept(id: str, name: str = "", tags: list[str] = []) -> dict:  # noqa: A002, B006
        """Gives a concept its name in this library ("" for its own) and its tags."""
        with sentences():
            shelf.noted(studio, id, name, ",".join(tags))
            return _concept(studio.library.get(id))

    def remove_concept(id: str) -> str:  # noqa: A002
        """Moves a concept to the library's trash; gives its id, with which it comes back."""
        with sentences():
            studio.library.remove(id)
        return id

    def restore_concept(id: str) -> dict:  # noqa: A002
        """Brings a removed concept back."""
        with sentences():
            return _concept(studio.library.restore(id))

    with gr.Column(visible=False):
        files, text, answer = gr.File(type="filepath", file_count="multiple"), gr.Textbox(), gr.JSON()
        gr.Button().click(add_concepts, [files, text], answer, api_name="add_concepts")
    gr.api(note_concept)
    gr.api(remove_concept)
    gr.api(restore_concept)


def _offer_sharing(studio: Studio) -> None:
    def share(request: gr.Request, id: str, form: str = "file") -> dict:  # noqa: A002
        """A concept to hand on: form is file, card, qr or text. Gives its file, or its text."""
        with sentences():
            if form == "text":
                return {"text": shelf.text_of(studio, id)}
            return {"file": _file(shelf.shared(studio, owner(request), id, form))}

    async def learned(request: gr.Request, id: str) -> dict:  # noqa: A002
        """What a concept learned: how far each block moved, and the sheets of drift and maps."""
        with sentences():
            job = studio.desk.submit(f"insight of {owner(request)}", insight.looked_into(studio, id))
        async for look in studio.desk.watch(job):
            if look.error:
                raise gr.Error(look.error)
        found = job.look().results[0]
        return {"moved": found.moved, "drift": _file(found.drift), "maps": _file(found.maps)}

    gr.api(share)
    gr.api(learned, concurrency_limit=None)


def _offer_training(studio: Studio) -> None:
    def train(
        pictures: list[str], class_word: str, name: str, quality: str, more: dict, request: gr.Request
    ) -> dict:
        """Begins a training on uploaded pictures and gives it as `training` does; text files named like the
        pictures are their captions. Quality is fast, good or best; `more` has settings by their names:
        {"max_train_steps": 100, "trigger": "sks"}."""
        with sentences():
            more = dict(more or {})
            base = str(more.pop("base", "") or studio.default)
            paths = tuple(map(Path, pictures or []))
            wish = Wish(paths, class_word or "", name or "", base, quality or "good", more)
            return _training(studio, studio.trainings.start(owner(request), wish))

    with gr.Column(visible=False):
        pictures = gr.File(type="filepath", file_count="multiple")
        texts, more, answer = [gr.Textbox() for _ in range(3)], gr.JSON(), gr.JSON()
        gr.Button().click(train, [pictures, *texts, more], answer, api_name="train")


def _offer_trainings(studio: Studio) -> None:
    def trainings(request: gr.Request) -> list[dict]:
        """This client's trainings, the latest first."""
        return [_training(studio, course) for course in studio.trainings.of(owner(request))]

    def training(request: gr.Request, id: str) -> dict:  # noqa: A002
        """How far a training is: state, step, seconds left, the kept steps, the last loss."""
        with sentences():
            return _training(studio, studio.trainings.get(owner(request), id))

    def timeline(request: gr.Request, id: str) -> list[dict]:  # noqa: A002
        """The steps of a training that were drawn, each with its pictures, all at the same seeds."""
        with sentences():
            frames = studio.trainings.get(owner(request), id).frames()
        return [{"step": step, "pictures": [_file(path) for path in paths]} for step, paths in frames.items()]

    def stop_training(request: gr.Request) -> int:
        """Stops this client's training after the step at hand, and keeps it; says how many there were."""
        return studio.trainings.stop(owner(request))

    def resume_training(request: gr.Request, id: str) -> dict:  # noqa: A002
        """Takes a stopped training up again."""
        with sentences():
            return _training(studio, studio.trainings.go_on(owner(request), id))

    def delete_training(request: gr.Request, id: str) -> str:  # noqa: A002
        """Forgets a training and its files; what was saved to the library stays."""
        with sentences():
            studio.trainings.delete(owner(request), id)
        return id

    def save_state(request: gr.Request, id: str, step: int) -> dict:  # noqa: A002
        """Puts the state of a training after a kept step into the library."""
        with sentences():
            return _concept(studio.trainings.keep(owner(request), id, step))

    for action in (
        trainings,
        training,
        timeline,
        stop_training,
        resume_training,
        delete_training,
        save_state,
    ):
        gr.api(action)


def _training(studio: Studio, course: Course) -> dict:
    view, timeline = studio.trainings.look(course), course.timeline()
    return {
        "id": course.ident,
        "name": course.settings.name,
        "state": view.state,
        "step": view.step,
        "steps": view.steps,
        "seconds_left": view.seconds_left,
        "loss": view.losses[-1][1] if view.losses else None,
        "kept": list(timeline.steps) if timeline else [],
        "notes": list(view.notes),
        "error": view.error,
    }


def _concept(entry: Any) -> dict:
    told = {"name": entry.title, "trigger": entry.trigger, "base": entry.base, "bytes": entry.size}
    return {**told, "id": entry.id, "tags": list(entry.tags)}


def _file(path: Path) -> dict:
    return {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}
