"""What the queue draws: requests checked, drawn batch by batch, and every picture kept."""

from __future__ import annotations

import csv
import io
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from atomdiff.errors import SettingsError
from atomdiff.files.images import encoded
from atomdiff.sampling.grids import Grid, parse_axis
from atomdiff.sampling.hints import before_drawing
from atomdiff.sampling.infotext import parse
from atomdiff.sampling.prompts import expanded, for_each
from atomdiff.sampling.settings import DrawingSettings
from atomdiff.serving.job_queue import Job
from atomdiff.studio.draw_request import MAX_STEPS, DrawRequest, random_seed, request_of
from atomdiff.studio.history import Entry
from atomdiff.studio.session import Studio

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from atomdiff.base.stable_diffusion import Base

VARIED, KEPT = 0.55, 0.35  # how much variations and enlarged pictures change
ENLARGED = 2


def draw(studio: Studio, owner: str, request: DrawRequest, kind: str = "picture") -> Callable[[Job], None]:
    """The work of a request: its results are history entries, one after another."""

    def work(job: Job) -> None:
        base = _base(studio, job, request.base)
        settings = request.loaded(studio)
        _remarks(job, base, settings)
        carried = _carried(studio, job, request)
        limit = request.batch or studio.bases.info(base.name).batch
        starts = range(0, request.count, limit)
        for number, start in enumerate(starts):
            count, seed = min(limit, request.count - start), settings.seed + start
            text = for_each(settings.prompt, seed, count, studio.words)
            one = isinstance(text, str)
            options = {"count": count if one else 1, "prompts": None if one else text, "batch_size": limit}
            part, options = replace(settings, seed=seed), options | request.started
            for image in _draw(studio, job, base, part, number, len(starts), **options):
                job.add(studio.history.keep(owner, image, kind, carried))

    return work


def draw_grid(studio: Studio, owner: str, request: DrawRequest, grid: Grid) -> Callable[[Job], None]:
    """The work of a grid: its results are the pictures in the order of its cells, then the sheet."""

    def work(job: Job) -> None:
        base = _base(studio, job, request.base)
        _remarks(job, base, grid.settings)
        cells = grid.cells()
        images = []
        for number, cell in enumerate(cells):
            image = _draw(studio, job, base, cell.settings, number, len(cells), **request.started)[0]
            images.append(image)
            job.add(studio.history.keep(owner, image, "cell"))
        sheet = grid.sheet(images)
        sheet.info["parameters"] = images[0].info["parameters"]
        job.add(studio.history.keep(owner, sheet, "grid"))

    return work


def grid_of(studio: Studio, request: DrawRequest, given: list[tuple[str, str]]) -> Grid:
    """The grid that a request and up to three (kind, values) mean. Raises SettingsError or ConceptError."""
    axes = [parse_axis(kind, text, studio.concept_named) for kind, text in given if kind]
    settings = request.loaded(studio)
    settings = replace(settings, prompt=expanded(settings.prompt, settings.seed, studio.words))
    grid = Grid(settings, *(axes or [parse_axis("", "")]))
    if max(cell.settings.steps for cell in grid.cells()) > MAX_STEPS:
        raise SettingsError(f"The studio draws at most {MAX_STEPS} steps: write fewer.")
    return grid


def zipped(headers: list[str], rows: list[list[str]], entries: Sequence[Entry]) -> str:
    """A zip of the sheet, every picture and the table, beside the sheet."""
    table = io.StringIO()
    csv.writer(table).writerows([headers, *rows])
    target = entries[-1].file.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("table.csv", table.getvalue())
        for entry in entries:
            archive.write(entry.file, entry.file.name)
    return str(target)


def without_concept(studio: Studio, owner: str, entry: Entry) -> Callable[[Job], None]:
    """The work of drawing a picture again, same seed and all, on the base alone.

    Raises SettingsError if the picture says of no settings, or its base is not here.
    """
    generation = parse(entry.text)
    if not generation.fields:
        raise SettingsError("This picture does not say how it was drawn, so it cannot be drawn again.")
    if generation.fields.get("Model") not in studio.bases.names:
        raise SettingsError(
            f"The picture was drawn on {generation.fields.get('Model')!r}, which is not here."
        )
    bare = replace(request_of(generation, studio), concepts=(), regions=())
    return draw(studio, owner, bare, "without")


def variations(studio: Studio, owner: str, entry: Entry, count: int = 4) -> Callable[[Job], None]:
    """The work of drawing pictures that are like one, from it and with seeds of their own. Raises
    SettingsError."""
    request = replace(request_of(parse(entry.text), studio), seed=random_seed(), hires=1.0, count=count)
    return draw(studio, owner, replace(request, image=_opened(entry), strength=VARIED), "variation")


def enlarged(studio: Studio, owner: str, entry: Entry) -> Callable[[Job], None]:
    """The work of drawing a picture once more with sides twice as long. Raises SettingsError."""
    image = _opened(entry)
    sides = tuple(8 * round(ENLARGED * side / 8) for side in image.size)
    request = replace(request_of(parse(entry.text), studio), hires=1.0, size=(sides[0], sides[1]))
    return draw(studio, owner, replace(request, image=image, strength=KEPT), "large")


def keep_sticker(studio: Studio, owner: str, entry: Entry) -> Entry:
    """A picture as a sticker, kept in the history."""
    from atomdiff.sampling.sticker import sticker

    made = sticker(_opened(entry))
    made.info["parameters"] = entry.text
    return studio.history.keep(owner, made, "sticker")


def keep_contact_sheet(studio: Studio, owner: str, entries: Sequence[Entry]) -> Entry:
    """Pictures on one sheet, kept in the history. Raises ImageError without any."""
    from atomdiff.sampling import sheets

    made = sheets.grid([_opened(entry) for entry in entries])
    made.info["parameters"] = entries[0].text
    return studio.history.keep(owner, made, "sheet")


def _opened(entry: Entry) -> Image:
    from PIL import Image as Pictures

    with Pictures.open(entry.file) as picture:
        return picture.convert("RGB")


def _carried(studio: Studio, job: Job, request: DrawRequest) -> bytes | None:
    """The concept file that the pictures of a request carry along. Raises ConceptError."""
    from atomdiff.files.card import concept_bytes

    if not (request.carry and request.concepts):
        return None
    if len(request.concepts) > 1:
        job.note("A picture carries one concept; these were drawn with several, so they carry none.")
        return None
    return concept_bytes(studio.library.get(request.concepts[0][0]).path)


def _draw(
    studio: Studio, job: Job, base: Base, settings: DrawingSettings, number: int, parts: int, **options: Any
) -> list[Image]:
    """Part `number` of `parts`, with progress and previews."""
    from atomdiff.sampling.draw import CousinWarning, draw_as

    previewer = studio.bases.previewer()

    def callback(done: int, total: int) -> None:
        job.progress(number * total + done, parts * total, "Drawing")

    def preview(latents: Tensor) -> None:
        made = previewer.pictures(latents)
        if made:
            job.show([encoded(image, compress_level=1) for image in made])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CousinWarning)  # a remark says it
        return draw_as(base, settings, callback=callback, preview=preview, **options)


def _base(studio: Studio, job: Job, name: str) -> Base:
    job.progress(0, 1, f"Loading {name}")
    base = studio.bases.get(name)
    job.progress(0, 1, "Drawing")
    return base


def _remarks(job: Job, base: Base, settings: DrawingSettings) -> None:
    """Notes what the user should know. Raises ConceptError for a concept of another base."""
    for remark in before_drawing(base, settings):
        job.note(str(remark))
