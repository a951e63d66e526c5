"""The commands that look into a concept: `inspect` tells what is in it, `plot` shows what it learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atomdiff.cli.arguments import FileArgument, check_picture, concept_file
from atomdiff.cli.common import app, one_sentence
from atomdiff.errors import SettingsError

if TYPE_CHECKING:
    from atomdiff.base.stable_diffusion import Base
    from atomdiff.concept.concept import Concept
    from atomdiff.evaluation.drift import LayerDrift


@app.command()
@one_sentence
def inspect(
    file: FileArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    drift: Annotated[
        bool, typer.Option("--drift", help="Also how far each layer of the base moves; loads the base.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="With --drift: a picture of it, .png, .jpg or .webp.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="With --drift: by default the concept's own.")] = None,
) -> None:
    """Tell what is in a concept file."""
    from atomdiff.evaluation import inspection

    if not drift and (out or base):
        raise SettingsError("--out and --base belong to --drift: give that too, or drop them.")
    file = concept_file(file)
    about = inspection.describe(file)
    moved = _drift(file, base, out, as_json) if drift else None
    if as_json:
        told = about | ({"drift": inspection.describe_drift(moved)} if moved else {})
        typer.echo(json.dumps(told, ensure_ascii=False, indent=2))
        return
    inspection.print_table(about)
    if moved:
        inspection.print_drift(moved)


@app.command()
@one_sentence
def plot(
    file: FileArgument,
    out: Annotated[Path, typer.Option(help="The picture: a .png, .jpg or .webp.")] = Path("learned.png"),
    base: Annotated[str | None, typer.Option(help="By default the concept's own.")] = None,
) -> None:
    """Draw what a concept learned: how far each layer moves, its map, its atoms before and after."""
    from atomdiff.evaluation import plots
    from atomdiff.evaluation.drift import drift
    from atomdiff.evaluation.layer_maps import layer_maps
    from atomdiff.files import card
    from atomdiff.sampling import sheets

    check_picture(out)
    concept = card.load(concept_file(file))
    unet = _base(concept, base).unet
    figure = plots.learned_figure(concept, layer_maps(concept, unet), drift(concept, unet))
    typer.echo(sheets.save_picture(plots.picture(figure), out))


def _drift(file: Path, base: str | None, out: Path | None, quiet: bool) -> list[LayerDrift]:
    from atomdiff.evaluation import drift
    from atomdiff.files import card
    from atomdiff.sampling import sheets

    if out:
        sheets.check_suffix(out)
    concept = card.load(file)
    moved = drift.drift(concept, _base(concept, base, quiet).unet)
    if out:
        from atomdiff.evaluation import plots

        written = sheets.save_picture(plots.picture(plots.drift_figure(moved)), out)
        typer.echo(written, err=quiet)
    return moved


def _base(concept: Concept, given: str | None, quiet: bool = False) -> Base:
    """The base that was named, or else the concept's own; it is told, on stderr if `quiet`."""
    from atomdiff.cli.arguments import open_base

    loaded = open_base(given, [(concept, 1.0)], "cpu", "auto", quiet)
    warning = concept.check_base(loaded.passport)
    if warning:
        typer.echo(f"warning: {warning}", err=True)
    return loaded
