"""The studio for programs: every action as an endpoint with a name, types and words (`/?view=api` lists
them).

Called through `gradio_client` or plain HTTP; docs/studio.md shows how. A client is one person, whose
history and cancels are its own. What goes wrong comes back as one sentence (see `app.Blocks`)."""
# No `from __future__ import annotations` here: Gradio reads the types of these functions.

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from atomdiff.core.blocks import parse_strength
from atomdiff.errors import SettingsError
from atomdiff.files.images import open_start
from atomdiff.files.read_any import Source
from atomdiff.sampling.infotext import parse
from atomdiff.sampling.region import Region, parse_where
from atomdiff.sampling.settings import USUAL, parse_size
from atomdiff.serving.job_queue import Job
from atomdiff.studio import drawing, inspection, library_view, png_info
from atomdiff.studio.draw_request import DrawRequest, random_seed
from atomdiff.studio.history import Entry
from atomdiff.studio.identity import owner
from atomdiff.studio.session import Studio


def add_endpoints(studio: Studio) -> None:
    """Adds the endpoints to the page that is being built."""
    _drawing(studio)
    _history(studio)
    _library(studio)


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
        style: str = "",
        hires: float = 1,
        regions: list[list] = [],  # noqa: B006
    ) -> list[dict]:
        """Draws pictures. `concepts` are [name, strength] pairs of the library, a strength being a number or
        "down=0.5 up=1"; -1 and "" stand for a random seed and the base's own defaults; with `carry` each
        picture has its concept inside; `acting` says how concepts act, plain or gated; `style` is one of the
        page's; `hires` the factor of a second pass; `regions` are [name, "left,top,right,bottom"] pairs, in
        shares of the picture, of concepts that act there alone. Gives, for each, its file, id, seed and
        generation text."""
        wanted = _request(
            studio, prompt, base, concepts, seed, guidance, size, regions, negative=negative, steps=steps,
            sampler=sampler, count=count, carry=carry is True, acting=acting or USUAL, style=style,
            hires=hires,
        )  # fmt: skip
        return await _drawn(studio, owner(request), drawing.draw, wanted)

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
        wanted = _request(
            studio, prompt, base, concepts, seed, guidance, size, negative=negative, steps=steps,
            sampler=sampler,
        )  # fmt: skip
        made = drawing.grid_of(studio, wanted, [(str(kind), str(values)) for kind, values in axes])
        return await _drawn(studio, owner(request), drawing.draw_grid, wanted, made)

    async def draw_from(
        picture: str, mask: str, prompt: str, strength: float, more: dict, request: gr.Request
    ) -> list[dict]:
        """Draws from a picture (an uploaded file), which may change as much as `strength` says, 0 to 1, or
        only where `mask` (another, or none) is white. `more` has others of `draw`'s: {"steps": 10,
        "concepts": [["dog", 1]]}. Gives what `draw` gives."""
        given = {"image": picture, "mask": mask}
        begun = {name: open_start(Path(path), Path(path).name) for name, path in given.items() if path}
        wanted = _request(studio, prompt or "", **(dict(more or {}) | begun), strength=float(strength))
        return await _drawn(studio, owner(request), drawing.draw, wanted)

    async def rework(request: gr.Request, ids: list[int], how: str) -> list[dict]:
        """What the buttons under a picture do: `how` is variations (four pictures like it), enlarge, sticker
        (its subject cut out) or sheet (all of `ids` on one). Gives what `draw` gives."""
        me = owner(request)
        entries = [studio.history.get(me, int(number)) for number in ids]
        ways = ("variations", "enlarge", "sticker", "sheet")
        if how not in ways or not entries:
            raise SettingsError(f"Give pictures, and one of {', '.join(ways)}, not {how[:40]!r}.")
        if how == "sheet":
            return [_picture(drawing.keep_contact_sheet(studio, me, entries))]
        if how == "sticker":
            return [_picture(drawing.keep_sticker(studio, me, entries[0]))]
        work = drawing.variations if how == "variations" else drawing.enlarged
        return await _drawn(studio, me, work, entries[0])

    async def without_concept(request: gr.Request, id: int) -> dict:  # noqa: A002 - the endpoint's word
        """Draws a picture of one's history again, with the same seed and settings, on the base alone."""
        me = owner(request)
        return (await _drawn(studio, me, drawing.without_concept, studio.history.get(me, int(id))))[0]

    def cancel(request: gr.Request) -> int:
        """Stops everything that this client has in the queue; says how many jobs that were."""
        return studio.queue.cancel(owner(request))

    add(draw, grid, rework, without_concept, cancel)
    files = [gr.File(type="filepath", visible=False) for _ in range(2)]
    add_with_files(
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

    add(history, delete)
    add_with_files(picture_info, gr.File(type="filepath", visible=False))


def _library(studio: Studio) -> None:
    def concepts() -> list[dict]:
        """The concepts of the library: name, trigger, base, bytes, id and tags."""
        return [concept_facts(entry) for entry in studio.concepts(scan=True)]

    def add_concepts(files: list[str], text: str) -> list[dict]:
        """Takes concepts into the library: uploaded files (concept files, cards, pictures of QR codes)
        or the text of one."""
        sources: list[Source] = [Path(path) for path in files or []]
        added = library_view.add(studio, [*sources, text] if text else sources)
        if added.problems:
            raise SettingsError(" ".join(added.problems))
        return [concept_facts(entry) for entry in added.entries]

    def note_concept(id: str, name: str = "", tags: list[str] = []) -> dict:  # noqa: A002, B006
        """Gives a concept its name in this library ("" for its own) and its tags."""
        library_view.annotate(studio, id, name, ",".join(tags))
        return concept_facts(studio.library.get(id))

    def remove_concept(id: str) -> str:  # noqa: A002
        """Moves a concept to the library's trash; gives its id, with which it comes back."""
        studio.library.remove(id)
        return id

    def restore_concept(id: str) -> dict:  # noqa: A002
        """Brings a removed concept back."""
        return concept_facts(studio.library.restore(id))

    def share(request: gr.Request, id: str, form: str = "file") -> dict:  # noqa: A002
        """A concept to hand on: form is file, card, qr or text. Gives its file, or its text."""
        if form == "text":
            return {"text": library_view.text_of(studio, id)}
        return {"file": file_data(library_view.share(studio, owner(request), id, form))}

    async def learned(request: gr.Request, id: str) -> dict:  # noqa: A002
        """What a concept learned: how far each block moved, and the sheets of drift and maps."""
        work = inspection.inspect(studio, id)
        found = (await _results(studio, studio.queue.submit(f"inspection of {owner(request)}", work)))[0]
        return {"moved": found.moved, "drift": file_data(found.drift), "maps": file_data(found.maps)}

    add(concepts, note_concept, remove_concept, restore_concept, share, learned)
    files = gr.File(type="filepath", file_count="multiple", visible=False)
    add_with_files(add_concepts, files, gr.Textbox(visible=False))


def add(*actions: Any) -> None:
    """Endpoints with the names of these functions."""
    for action in actions:
        gr.api(action, concurrency_limit=None)


def add_with_files(action: Any, *inputs: Any) -> None:
    """An endpoint that takes files needs components."""
    gr.on([], action, list(inputs), gr.JSON(visible=False), api_name=action.__name__)


def _request(
    studio: Studio, prompt: str, base: str = "", concepts: Sequence[list] = (), seed: int = -1,
    guidance: float = -1, size: str = "", regions: Sequence[list] = (), **same: Any,
) -> DrawRequest:  # fmt: skip
    """The request of an endpoint's values, those of `same` by their names there. Raises AtomdiffError, or
    TypeError for a name of none."""
    names = [str(name) for name, _ in concepts]
    places = [(str(name), parse_where(str(where))) for name, where in regions]
    if other := next((name for name, _ in places if name not in names), None):
        raise SettingsError(f"A region is of one of the concepts that are given, not {other!r}.")
    return DrawRequest(
        prompt,
        tuple((studio.library.named(str(name)).id, parse_strength(str(s))) for name, s in concepts),
        seed=random_seed() if seed < 0 else seed,
        guidance=None if guidance < 0 else guidance,
        size=parse_size(size),
        regions=tuple(Region(where, (names.index(name),)) for name, where in places),
        base=base or studio.bases.default,
        **same,
    )


async def _results(studio: Studio, job: Job) -> tuple[Any, ...]:
    """What a job leaves. Raises SettingsError with its sentence where it failed or was stopped."""
    async for status in studio.queue.watch(job):
        if status.over and status.state != "done":
            raise SettingsError(status.error or "Stopped, as asked.")
    return job.status().results


async def _drawn(studio: Studio, me: str, work: Callable[..., Any], *what: Any) -> list[dict]:
    """The pictures of a work of `drawing`."""
    job = studio.queue.submit(me, work(studio, me, *what))
    return [_picture(entry) for entry in await _results(studio, job)]


def _picture(entry: Entry) -> dict:
    seed = parse(entry.text).whole("Seed")
    return {
        "id": entry.id, "kind": entry.kind, "seed": seed, "text": entry.text, "file": file_data(entry.file)
    }  # fmt: skip


def concept_facts(entry: Any) -> dict:
    """A concept of the library, as endpoints give it."""
    about = {"name": entry.title, "trigger": entry.trigger, "base": entry.base, "bytes": entry.size}
    return {**about, "id": entry.id, "tags": list(entry.tags)}


def file_data(path: Path) -> dict:
    """A file, as Gradio's clients take it."""
    return {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}
