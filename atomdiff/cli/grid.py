"""The command that draws one picture over and over with settings changed: `grid`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atomdiff.cli.arguments import (
    HOW,
    GuidanceOption,
    NegativeOption,
    SamplerOption,
    StepsOption,
    check_picture,
    load_concepts,
    tell_about,
)
from atomdiff.cli.base_flags import BaseAsked, with_base
from atomdiff.cli.common import app, one_sentence
from atomdiff.errors import SettingsError
from atomdiff.sampling.settings import USUAL

if TYPE_CHECKING:
    from atomdiff.concept.concept import Concept
    from atomdiff.sampling.grids import Axis


@app.command()
@one_sentence
@with_base()
def grid(
    prompt: Annotated[str, typer.Argument(help="What to draw, with the concept's trigger.")],
    x: Annotated[
        str,
        typer.Option(
            metavar="SETTING=VALUES", help="strength, seed, steps, guidance, sampler, concept, prompt."
        ),
    ],
    y: Annotated[
        str | None, typer.Option(metavar="SETTING=VALUES", help='As for x: --y "seed=1..4".')
    ] = None,
    z: Annotated[str | None, typer.Option(metavar="SETTING=VALUES", help="As for x; one table each.")] = None,
    concept: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:STRENGTH]", help="A concept; may be given several times."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The sheet: a .png, .jpg or .webp.")] = Path("grid.png"),
    seed: Annotated[int, typer.Option(help="The seed where none of the axes sets it.")] = 0,
    steps: StepsOption = 25,
    guidance: GuidanceOption = None,
    sampler: SamplerOption = "dpm++",
    negative: NegativeOption = "",
    acting: Annotated[str, HOW] = USUAL,
    *,
    asked: BaseAsked,
) -> None:
    """Draw a labelled grid: --x "strength=0, 0.5, 1" --y "seed=1..3". A prompt axis names what stands
    there first."""
    import warnings

    from atomdiff.sampling import sheets
    from atomdiff.sampling.draw import CousinWarning, draw_as
    from atomdiff.sampling.grids import Grid
    from atomdiff.sampling.settings import DrawingSettings
    from atomdiff.training.terminal import Terminal

    check_picture(out)
    weighted = load_concepts(concept or [])
    settings = DrawingSettings(
        prompt, tuple(weighted), negative, seed, steps, guidance, None, sampler.lower(), acting
    )
    planned = Grid(settings, *(_axis(given) for given in (x, y, z) if given))
    loaded = asked.open(weighted)
    tell_about(loaded, settings)
    cells, images = planned.cells(), []
    with warnings.catch_warnings(), Terminal() as shown:
        warnings.simplefilter("ignore", CousinWarning)  # told already
        for number, cell in enumerate(cells):
            images += draw_as(loaded, cell.settings)
            shown.stage("Drawing", number + 1, len(cells))
    sheet = planned.sheet(images)
    sheet.info["parameters"] = images[0].info["parameters"]
    typer.echo(f"{sheets.save_picture(sheet, out)} ({len(cells)} pictures)")


def _axis(given: str) -> Axis:
    """`SETTING=VALUES`; concepts are named by their files. Raises SettingsError or ConceptError."""
    from atomdiff.sampling.grids import parse_axis

    kind, equals, values = given.partition("=")
    if not equals:
        raise SettingsError(f'An axis is SETTING=VALUES, "strength=0, 0.5, 1", say, not {given!r}.')
    return parse_axis(kind.strip(), values, _concept)


def _concept(name: str) -> Concept:
    return load_concepts([name])[0][0]
