"""The studio for programs: every action as an endpoint with a name, types and words (`/?view=api` lists
them).

Called through `gradio_client` or plain HTTP; docs/studio.md shows how. A client is one person, whose
history and cancels are its own. What a caller can cause comes back as one sentence.
"""
# No `from __future__ import annotations` here: Gradio reads the types of these functions.

from pathlib import Path
from typing import Any

import gradio as gr

from atomdiff.core.blocks import Strength, parse_strength
from atomdiff.errors import AtomdiffError
from atomdiff.studio import drawing, form, reading
from atomdiff.studio.history import Entry
from atomdiff.studio.house import Studio
from atomdiff.studio.people import owner


def offer(studio: Studio) -> None:
    """Adds the endpoints to the page that is being built."""
    _offer_drawing(studio)
    _offer_grids(studio)
    _offer_history(studio)
    _offer_reading()


def _offer_drawing(studio: Studio) -> None:
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
        acting: str = "",
    ) -> list[dict]:
        """Draws pictures. `concepts` are [name, strength] pairs of the library, a strength being a number or
        "down=0.5 up=1"; -1 and "" stand for a random seed and the base's own defaults; with `carry` each
        picture has its concept inside; `acting` says how concepts act: both, always, 0-0.8. Gives, for each,
        its file, id, seed and generation text."""
        me = owner(request)
        with sentences():
            order = drawing.Order(
                base or studio.default,
                prompt,
                _chosen(studio, concepts),
                negative,
                None if seed < 0 else seed,
                steps,
                None if guidance < 0 else guidance,
                form.size(size),
                sampler,
                count,
                carry=carry is True,
                acting=acting,
            )
            job = studio.desk.submit(me, drawing.drawn(studio, me, order))
        return [_told(entry) for entry in await _finished(studio, job)]

    async def without_concept(request: gr.Request, id: int) -> dict:  # noqa: A002 - the endpoint's word
        """Draws a picture of one's history again, with the same seed and settings, on the base alone."""
        me = owner(request)
        with sentences():
            job = studio.desk.submit(me, drawing.without_concept(studio, me, studio.history.get(me, int(id))))
        return _told((await _finished(studio, job))[0])

    def cancel(request: gr.Request) -> int:
        """Stops everything that this client has on the desk; says how many jobs that were."""
        return studio.desk.cancel(owner(request))

    gr.api(draw, concurrency_limit=None)
    gr.api(without_concept, concurrency_limit=None)
    gr.api(cancel)


def _offer_grids(studio: Studio) -> None:
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
        with sentences():
            order = drawing.Order(
                base or studio.default,
                prompt,
                _chosen(studio, concepts),
                negative,
                seed,
                steps,
                None if guidance < 0 else guidance,
                form.size(size),
                sampler,
            )
            made = drawing.grid_of(studio, order, [(str(kind), str(values)) for kind, values in axes])
            job = studio.desk.submit(me, drawing.grid_drawn(studio, me, order.base, made))
        return [_told(entry) for entry in await _finished(studio, job)]

    gr.api(grid, concurrency_limit=None)


def _offer_history(studio: Studio) -> None:
    def concepts() -> list[dict]:
        """The concepts of the library: name, trigger, base, bytes and id."""
        return [
            {
                "name": entry.title,
                "trigger": entry.trigger,
                "base": entry.base,
                "bytes": entry.size,
                "id": entry.id,
            }
            for entry in studio.concepts(scan=True)
        ]

    def history(request: gr.Request, words: str = "", limit: int = 24, start: int = 0) -> list[dict]:
        """This client's pictures, newest first, whose prompt and settings have every one of the words."""
        with sentences():
            found = studio.history.find(owner(request), words, max(0, min(limit, 200)), max(0, start))
        return [_told(entry) for entry in found]

    def delete(request: gr.Request, ids: list[int]) -> int:
        """Deletes pictures of this client's history; says how many there were."""
        with sentences():
            return studio.history.delete(owner(request), [int(number) for number in ids])

    gr.api(concepts)
    gr.api(history)
    gr.api(delete)


def _offer_reading() -> None:
    """Picture info takes a file, which needs a component."""

    def picture_info(picture: str) -> dict:
        """What a picture (an uploaded file) says of how it was made, and of the concept inside."""
        with sentences():
            told = reading.read(Path(picture))
        return {"text": told.text, "concept": told.concept is not None, "facts": dict(told.rows())}

    with gr.Column(visible=False):
        given, answer, ask = gr.File(type="filepath"), gr.JSON(), gr.Button()
        ask.click(picture_info, given, answer, api_name="picture_info")


def _chosen(studio: Studio, pairs: list[list]) -> tuple[tuple[str, Strength], ...]:
    """Ids and strengths. Raises ConceptError, SettingsError, or ValueError for what are no pairs."""
    return tuple(
        (studio.library.named(str(name)).id, parse_strength(str(strength))) for name, strength in pairs
    )


class sentences:  # noqa: N801 - used as a word: `with sentences():`
    """What a caller can cause is told in its sentence."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, AtomdiffError):
            raise gr.Error(str(error), print_exception=False) from None
        if isinstance(error, (AttributeError, OverflowError, TypeError, ValueError)):
            sentence = f"A value is of the wrong kind ({error}): see the types of this endpoint."
            raise gr.Error(sentence, print_exception=False) from None


async def _finished(studio: Studio, job: Any) -> tuple[Entry, ...]:
    async for look in studio.desk.watch(job):
        if look.state == "failed":
            raise gr.Error(look.error, print_exception=False)
        if look.state == "cancelled":
            raise gr.Error("Stopped, as asked.", print_exception=False)
        if look.over:
            return look.results
    return ()


def _told(entry: Entry) -> dict:
    from atomdiff.sampling.infotext import parse

    file = {"path": str(entry.file), "orig_name": entry.file.name, "meta": {"_type": "gradio.FileData"}}
    seed = parse(entry.text).whole("Seed")
    return {"id": entry.id, "kind": entry.kind, "seed": seed, "text": entry.text, "file": file}
