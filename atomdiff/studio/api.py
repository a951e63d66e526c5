"""The studio for programs: every action as an endpoint with a name, types and words (`/?view=api` lists
them).

Called through `gradio_client` or plain HTTP; docs/studio.md shows how. A client is one person, whose
history and cancels are its own. What goes wrong comes back as one sentence (see `app.Blocks`)."""
# No `from __future__ import annotations` here: Gradio reads the types of these functions.

from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL.Image import Image

from atomdiff.core.blocks import Strength, parse_strength
from atomdiff.errors import ImageError, SettingsError
from atomdiff.files.images import open_picture
from atomdiff.files.read_any import Source
from atomdiff.sampling.infotext import parse
from atomdiff.sampling.settings import USUAL, parse_size
from atomdiff.serving.job_queue import Job
from atomdiff.serving.training_session import TrainingRequest, TrainingSession
from atomdiff.studio import drawing, inspection, library_view, png_info
from atomdiff.studio.drawing import DrawRequest
from atomdiff.studio.history import Entry
from atomdiff.studio.identity import owner
from atomdiff.studio.session import Studio


def add_endpoints(studio: Studio) -> None:
    """Adds the endpoints to the page that is being built."""
    _drawing(studio)
    _history(studio)
    _library(studio)
    _training(studio)
    _trainings(studio)


def _drawing(studio: Studio) -> None:
    async def draw(
        request: gr.Request,
        prompt: str,
        concepts: list[list] = [],  # noqa: B006 - Gradio shows it as the default
        negative: str = "",
        seed: int = -1,
        steps: int = 25,
        guidance: float = -1,
        size: str = "",
        sampler: str = "dpm++",
        count: int = 1,
        base: str = "",
        carry: bool = False,
        acting: str = USUAL,
    ) -> list[dict]:
        """Draws pictures. `concepts` are [name, strength] pairs of the library, a strength being a number or
        "down=0.5 up=1"; -1 and "" stand for a random seed and the base's own defaults; with `carry` each
        picture has its concept inside; `acting` says how concepts act, plain or gated. Gives, for each,
        its file, id, seed and generation text."""
        me = owner(request)
        chosen = _concepts(studio, concepts)
        wanted = _request(
            studio, base, prompt, chosen, negative, seed, steps, guidance, size, sampler, count, carry, acting
        )
        return await _finished(studio, studio.queue.submit(me, drawing.draw(studio, me, wanted)))

    async def grid(
        request: gr.Request,
        prompt: str,
        axes: list[list[str]],
        concepts: list[list] = [],  # noqa: B006
        seed: int = 0,
        steps: int = 25,
        base: str = "",
        negative: str = "",
        guidance: float = -1,
        size: str = "",
        sampler: str = "dpm++",
    ) -> list[dict]:
        """Draws a grid. `axes` are one to three [setting, values]: ["strength", "0, 0.5, 1"]; the rest is as
        for `draw`. Gives every cell in order (the first axis changes fastest), then the labelled sheet."""
        me = owner(request)
        chosen = _concepts(studio, concepts)
        wanted = _request(studio, base, prompt, chosen, negative, seed, steps, guidance, size, sampler)
        made = drawing.grid_of(studio, wanted, [(str(kind), str(values)) for kind, values in axes])
        job = studio.queue.submit(me, drawing.draw_grid(studio, me, wanted, made))
        return await _finished(studio, job)

    async def draw_from(
        picture: str, mask: str, prompt: str, strength: float, more: dict, request: gr.Request
    ) -> list[dict]:
        """Draws from a picture (an uploaded file), which may change as much as `strength` says, 0 to 1, or
        only where `mask` (another, or none) is white. `more` has others of `draw`'s: {"steps": 10,
        "concepts": [["dog", 1]]}, and "style" and "hires", the factor of a second pass. Gives what `draw`
        gives."""
        me = owner(request)
        begun: dict[str, Any] = {
            "image": _opened(picture),
            "mask": _opened(mask),
            "strength": float(strength),
        }
        given = dict(more or {})
        style, hires = str(given.pop("style", "")), float(given.pop("hires", 1))
        chosen = _concepts(studio, given.pop("concepts", []))
        usual: dict[str, Any] = {"base": "", "negative": "", "seed": -1, "steps": 25, "guidance": -1}
        usual |= {"size": "", "sampler": "dpm++"}
        wanted = _request(studio, prompt=prompt or "", concepts=chosen, **(usual | given))
        job = drawing.draw(studio, me, replace(wanted, style=style, hires=hires, **begun))
        return await _finished(studio, studio.queue.submit(me, job))

    async def without_concept(request: gr.Request, id: int) -> dict:  # noqa: A002 - the endpoint's word
        """Draws a picture of one's history again, with the same seed and settings, on the base alone."""
        me = owner(request)
        work = drawing.without_concept(studio, me, studio.history.get(me, int(id)))
        return (await _finished(studio, studio.queue.submit(me, work)))[0]

    def cancel(request: gr.Request) -> int:
        """Stops everything that this client has in the queue; says how many jobs that were."""
        return studio.queue.cancel(owner(request))

    _add(draw, grid, without_concept, cancel)
    files = [gr.File(type="filepath", visible=False) for _ in range(2)]
    _add_with_files(
        draw_from, *files, gr.Textbox(visible=False), gr.Number(0.6, visible=False), gr.JSON(visible=False)
    )


def _history(studio: Studio) -> None:
    def history(request: gr.Request, words: str = "", limit: int = 24, start: int = 0) -> list[dict]:
        """This client's pictures, newest first, whose prompt and settings have every one of the words."""
        found = studio.history.find(owner(request), words, max(0, min(limit, 200)), max(0, start))
        return [_picture(entry) for entry in found]

    def delete(request: gr.Request, ids: list[int]) -> int:
        """Deletes pictures of this client's history; says how many there were."""
        return studio.history.delete(owner(request), [int(number) for number in ids])

    def picture_info(picture: str) -> dict:
        """What a picture (an uploaded file) says of how it was made, and of the concept inside."""
        info = png_info.read(Path(picture))
        return {"text": info.text, "concept": info.concept is not None, "facts": dict(info.rows())}

    _add(history, delete)
    _add_with_files(picture_info, gr.File(type="filepath", visible=False))


def _library(studio: Studio) -> None:
    def concepts() -> list[dict]:
        """The concepts of the library: name, trigger, base, bytes, id and tags."""
        return [_concept(entry) for entry in studio.concepts(scan=True)]

    def add_concepts(files: list[str], text: str) -> list[dict]:
        """Takes concepts into the library: uploaded files (concept files, cards, pictures of QR codes, JSON)
        or the text of one."""
        sources: list[Source] = [Path(path) for path in files or []]
        added = library_view.add(studio, [*sources, text] if text else sources)
        if added.problems:
            raise SettingsError(" ".join(added.problems))
        return [_concept(entry) for entry in added.entries]

    def note_concept(id: str, name: str = "", tags: list[str] = []) -> dict:  # noqa: A002, B006
        """Gives a concept its name in this library ("" for its own) and its tags."""
        library_view.annotate(studio, id, name, ",".join(tags))
        return _concept(studio.library.get(id))

    def remove_concept(id: str) -> str:  # noqa: A002
        """Moves a concept to the library's trash; gives its id, with which it comes back."""
        studio.library.remove(id)
        return id

    def restore_concept(id: str) -> dict:  # noqa: A002
        """Brings a removed concept back."""
        return _concept(studio.library.restore(id))

    def share(request: gr.Request, id: str, form: str = "file") -> dict:  # noqa: A002
        """A concept to hand on: form is file, card, qr or text. Gives its file, or its text."""
        if form == "text":
            return {"text": library_view.text_of(studio, id)}
        return {"file": _file(library_view.share(studio, owner(request), id, form))}

    async def learned(request: gr.Request, id: str) -> dict:  # noqa: A002
        """What a concept learned: how far each block moved, and the sheets of drift and maps."""
        work = inspection.inspect(studio, id)
        found = (await _results(studio, studio.queue.submit(f"inspection of {owner(request)}", work)))[0]
        return {"moved": found.moved, "drift": _file(found.drift), "maps": _file(found.maps)}

    _add(concepts, note_concept, remove_concept, restore_concept, share, learned)
    files = gr.File(type="filepath", file_count="multiple", visible=False)
    _add_with_files(add_concepts, files, gr.Textbox(visible=False))


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
    _add_with_files(train, files, *(gr.Textbox(visible=False) for _ in range(3)), gr.JSON(visible=False))


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
        return [{"step": step, "pictures": list(map(_file, paths))} for step, paths in samples.items()]

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
        return _concept(store.keep(owner(request), id, step, studio.library))

    _add(trainings, training, timeline, stop_training, resume_training, delete_training, save_state)


def _add(*actions: Any) -> None:
    for action in actions:
        gr.api(action, concurrency_limit=None)


def _add_with_files(action: Any, *inputs: Any) -> None:
    """An endpoint that takes files needs components."""
    gr.on([], action, list(inputs), gr.JSON(visible=False), api_name=action.__name__)


def _request(
    studio: Studio,
    base: str,
    prompt: str,
    concepts: tuple[tuple[str, Strength], ...],
    negative: str,
    seed: int,
    steps: int,
    guidance: float,
    size: str,
    sampler: str,
    count: int = 1,
    carry: bool = False,
    acting: str = USUAL,
) -> DrawRequest:
    return DrawRequest(
        base or studio.bases.default,
        prompt,
        concepts,
        negative,
        None if seed < 0 else seed,
        steps,
        None if guidance < 0 else guidance,
        parse_size(size),
        sampler,
        count,
        carry=carry is True,
        acting=acting or USUAL,
    )


def _opened(path: str | None) -> Image | None:
    """An uploaded picture. Raises ImageError."""
    if not path:
        return None
    try:
        return open_picture(Path(path)).image
    except ImageError as error:
        raise ImageError(f"{Path(path).name!r} cannot be drawn from: {error}.") from None


def _concepts(studio: Studio, pairs: list[list]) -> tuple[tuple[str, Strength], ...]:
    """Ids and strengths. Raises ConceptError, SettingsError, or ValueError for what are no pairs."""
    return tuple(
        (studio.library.named(str(name)).id, parse_strength(str(strength))) for name, strength in pairs
    )


async def _results(studio: Studio, job: Job) -> tuple[Any, ...]:
    """What a job leaves. Raises SettingsError with its sentence where it failed or was stopped."""
    async for status in studio.queue.watch(job):
        if status.over and status.state != "done":
            raise SettingsError(status.error or "Stopped, as asked.")
    return job.status().results


async def _finished(studio: Studio, job: Job) -> list[dict]:
    return [_picture(entry) for entry in await _results(studio, job)]


def _picture(entry: Entry) -> dict:
    seed = parse(entry.text).whole("Seed")
    return {
        "id": entry.id, "kind": entry.kind, "seed": seed, "text": entry.text, "file": _file(entry.file)
    }  # fmt: skip


def _concept(entry: Any) -> dict:
    about = {"name": entry.title, "trigger": entry.trigger, "base": entry.base, "bytes": entry.size}
    return {**about, "id": entry.id, "tags": list(entry.tags)}


def _told(studio: Studio, session: TrainingSession) -> dict:
    status = studio.trainings.status(session)
    shown = ("state", "step", "steps", "seconds_left", "notes", "error")
    return {
        "id": session.ident,
        "name": session.settings.name,
        "loss": status.losses[-1][1] if status.losses else None,
        "kept": list(session.steps),
        **{name: getattr(status, name) for name in shown},
    }


def _file(path: Path) -> dict:
    return {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}
