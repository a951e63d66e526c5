"""The command for the states that a training kept on its way: `timeline` lists, draws and cuts them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atomdiff.cli.arguments import GuidanceOption, StepsOption
from atomdiff.cli.base_flags import BaseAsked, with_base
from atomdiff.cli.common import app, check_concept_name, one_sentence
from atomdiff.errors import SettingsError
from atomdiff.sampling.settings import DrawingSettings

if TYPE_CHECKING:
    from atomdiff.concept.timeline import Timeline


@app.command("timeline")
@one_sentence
@with_base()
def show_timeline(
    file: Annotated[Path, typer.Argument(help="A NAME.timeline.safetensors that training wrote.")],
    cut: Annotated[int | None, typer.Option(metavar="STEP", help="Write this step as a concept.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of that concept: fp32, fp16, int8 or int4; by default as training's.")
    ] = None,
    draw: Annotated[str | None, typer.Option(metavar="PROMPT", help="Draw the same seeds along it.")] = None,
    best: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Propose a step, by likeness to the photographs in FOLDER."),
    ] = None,
    tower: Annotated[
        Path | None, typer.Option(help="Folder of DINOv2, DINO or CLIP that judges; the pocket has its own.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The concept, or the sheet, to write.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Pictures of each state.")] = 4,
    states: Annotated[int, typer.Option(min=1, help="Draw at most so many states, evenly spread.")] = 8,
    seed: Annotated[int, typer.Option(help="The same seeds are used in every row.")] = 0,
    steps: StepsOption = 25,
    guidance: GuidanceOption = None,
    *,
    asked: BaseAsked,
) -> None:
    """List the states that a training kept; draw them side by side; cut the best out as a concept."""
    from atomdiff.files.timeline_file import load_timeline

    if sum(given is not None for given in (cut, draw, best)) > 1:
        raise SettingsError(
            "A timeline is drawn, cut or judged, one at a time: give --draw, --cut or --best."
        )
    timeline = load_timeline(file)
    if cut is not None:
        typer.echo(_cut(timeline, cut, out or Path(f"{_stem(file)}-{cut}.safetensors"), precision))
    elif draw is not None:
        settings = DrawingSettings(draw, ((timeline.last, 1.0),), "", seed, steps, guidance)
        sheet = out or Path(f"{_stem(file)}-timeline.png")
        typer.echo(_draw(timeline, settings, count, states, sheet, asked))
    elif best is not None:
        drawing = {"seed": seed, "steps": steps, "guidance": guidance}
        chosen = _best(timeline, file, best, tower, states, asked, drawing)
        if out is not None:
            typer.echo(_cut(timeline, chosen, out, precision))
    else:
        _list(timeline, file)


def _best(
    timeline: Timeline,
    file: Path,
    photographs: Path,
    tower: Path | None,
    states: int,
    asked: BaseAsked,
    drawing: dict[str, int | float | None],
) -> int:
    """List the steps as they are judged, the best one marked, which is returned."""
    from atomdiff.evaluation import best_step
    from atomdiff.evaluation.dreambench_run import photographs as read

    real, loaded = read(photographs), asked.load([(timeline.last, 1.0)])
    eyes = best_step.eyes_for(loaded.family, tower or "", str(loaded.device))
    if eyes is None:
        raise SettingsError(
            "Only the pocket has a judge of its own: give --tower, a folder of facebook/dinov2-small, say."
        )
    judged = best_step.judge_steps(loaded, timeline, real, eyes, states, **drawing)  # type: ignore[arg-type]
    chosen = best_step.best(judged)
    for one in judged:
        mark = "  <- best" if one is chosen else ""
        typer.echo(f"step {one.step}: likeness {one.likeness:.2f}, contexts kept {one.contexts:.2f}{mark}")
    typer.echo(f"`atomdiff timeline {file} --cut {chosen.step}` writes it as a concept")
    return chosen.step


def _cut(timeline: Timeline, step: int, out: Path, precision: str | None) -> str:
    from atomdiff.files.safetensors_file import save_concept
    from atomdiff.training.recipes import DEFAULT

    check_concept_name(out)
    written = save_concept(timeline.at(step), out, precision or DEFAULT.precision)
    return f"{written} ({written.stat().st_size:,} bytes: {timeline.last.title!r} after step {step})"


def _draw(
    timeline: Timeline,
    settings: DrawingSettings,
    count: int,
    states: int,
    out: Path,
    asked: BaseAsked,
) -> str:
    """A row of pictures for each state, the same seeds in all of them."""
    from atomdiff.cli.arguments import check_picture, draw_with_bar, tell_about
    from atomdiff.sampling import sheets

    check_picture(out)
    loaded = asked.open(settings.concepts)
    tell_about(loaded, settings)
    rows = []
    for step in timeline.spread(states):
        typer.echo(f"step {step}", err=True)
        now = replace(settings, concepts=((timeline.at(step), 1.0),))
        images = draw_with_bar(loaded, now, count=count)
        rows.append((f"step {step}", images))
    return f"{sheets.save_picture(sheets.contact_sheet(rows), out)} (contact sheet)"


def _list(timeline: Timeline, file: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    concept = timeline.last
    table = Table(box=box.ROUNDED, title=Text(concept.title, "bold"), title_justify="left")
    for heading in ("step", "loss", "norm of atoms"):
        table.add_column(heading, justify="right")
    for step, loss, norm in zip(timeline.steps, timeline.losses, timeline.norms(), strict=True):
        table.add_row(str(step), f"{float(loss):.4f}", f"{norm:.3f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{file}: {len(timeline.steps)} states, {file.stat().st_size:,} bytes", markup=False, soft_wrap=True
    )


def _stem(file: Path) -> str:
    return file.name.removesuffix(".safetensors").removesuffix(".timeline")
