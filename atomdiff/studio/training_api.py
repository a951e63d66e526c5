"""The studio for programs, its trainings: each action an endpoint, as in `api`."""
# No `from __future__ import annotations` here: Gradio reads the types of these functions.

from pathlib import Path

import gradio as gr

from atomdiff.serving.training_session import TrainingRequest, TrainingSession, told
from atomdiff.studio.api import add, add_with_files, concept_facts, file_data
from atomdiff.studio.identity import owner
from atomdiff.studio.session import Studio


def add_training_endpoints(studio: Studio) -> None:
    """Adds the endpoints to the page that is being built."""
    _training(studio)
    _trainings(studio)


def _training(studio: Studio) -> None:
    def train(
        pictures: list[str], class_word: str, name: str, quality: str, more: dict, request: gr.Request
    ) -> dict:
        """Begins a training on uploaded pictures and gives it as `training` does; text files named like the
        pictures are their captions. Quality is fast, good or best; `more` has settings by their names:
        {"max_train_steps": 100, "trigger": "sks"}."""
        more = dict(more or {})
        base = str(more.pop("base", "") or studio.bases.default)
        paths = tuple(map(Path, pictures or []))
        wanted = TrainingRequest(paths, class_word or "", name or "", base, quality or "good", more)
        return _told(studio, studio.trainings.start(owner(request), wanted))

    files = gr.File(type="filepath", file_count="multiple", visible=False)
    add_with_files(train, files, *(gr.Textbox(visible=False) for _ in range(3)), gr.JSON(visible=False))


def _trainings(studio: Studio) -> None:
    store = studio.trainings

    def trainings(request: gr.Request) -> list[dict]:
        """This client's trainings, the latest first."""
        return [_told(studio, session) for session in store.of(owner(request))]

    def training(request: gr.Request, id: str) -> dict:  # noqa: A002
        """How far a training is: state, step, seconds left, the kept steps, the last loss."""
        return _told(studio, store.get(owner(request), id))

    def timeline(request: gr.Request, id: str) -> list[dict]:  # noqa: A002
        """The steps of a training that were drawn, each with its pictures, all at the same seeds."""
        samples = store.get(owner(request), id).samples()
        return [{"step": step, "pictures": list(map(file_data, paths))} for step, paths in samples.items()]

    def stop_training(request: gr.Request) -> int:
        """Stops this client's training after the step at hand, and keeps it; says how many there were."""
        return store.stop(owner(request))

    def resume_training(request: gr.Request, id: str) -> dict:  # noqa: A002
        """Takes a stopped training up again."""
        return _told(studio, store.resume(owner(request), id))

    def delete_training(request: gr.Request, id: str) -> str:  # noqa: A002
        """Forgets a training and its files; what was saved to the library stays."""
        store.delete(owner(request), id)
        return id

    def save_state(request: gr.Request, id: str, step: int) -> dict:  # noqa: A002
        """Puts the state of a training after a kept step into the library."""
        return concept_facts(store.keep(owner(request), id, step, studio.library))

    add(trainings, training, timeline, stop_training, resume_training, delete_training, save_state)


def _told(studio: Studio, session: TrainingSession) -> dict:
    parts = ("state", "step", "steps", "seconds_left", "notes", "error")
    return told(session, studio.trainings.status(session), *parts) | {"kept": list(session.steps)}
