"""The command that runs DreamBench."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atomdiff.cli.base_flags import BaseAsked, with_base
from atomdiff.cli.common import app, one_sentence
from atomdiff.errors import SettingsError

if TYPE_CHECKING:
    from atomdiff.evaluation.dreambench import Subject
    from atomdiff.evaluation.dreambench_run import Method


@app.command()
@one_sentence
@with_base("sd15")
def evaluate(
    data: Annotated[Path, typer.Argument(help="DreamBooth's data set: a folder with one for each subject.")],
    concepts: Annotated[
        list[Path] | None, typer.Option(help="Folder of concepts, SUBJECT.safetensors; may be given again.")
    ] = None,
    loras: Annotated[
        list[Path] | None, typer.Option(help="Folder of LoRAs, SUBJECT.safetensors; may be given again.")
    ] = None,
    acting: Annotated[
        str, typer.Option(metavar="plain|gated|both", help="How concepts act; LoRAs act plainly.")
    ] = "both",
    trigger: Annotated[str, typer.Option(help="The word that LoRAs were trained with.")] = "sks",
    dino: Annotated[
        Path | None, typer.Option(help="Folder of facebook/dino-vits16 (or a DINOv2), as safetensors.")
    ] = None,
    clip: Annotated[Path | None, typer.Option(help="Folder of openai/clip-vit-base-patch32.")] = None,
    lpips: Annotated[Path | None, typer.Option(help="LPIPS with AlexNet, a .safetensors file.")] = None,
    subjects: Annotated[str, typer.Option(help="Names with commas between; by default all 30.")] = "",
    prompts: Annotated[int, typer.Option(min=1, max=25, help="The first so many of the 25 prompts.")] = 25,
    pictures: Annotated[int, typer.Option(min=1, max=64, help="Pictures of each prompt.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 50,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 7.5,
    size: Annotated[int | None, typer.Option(help="Side in pixels; by default the base's own.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 4,
    out: Annotated[Path, typer.Option(help="Where pictures and report.html go; what is there stays.")] = Path(
        "outputs/dreambench"
    ),
    *,
    asked: BaseAsked,
) -> None:
    """DreamBench: 30 subjects x 25 prompts x 4 pictures, judged by DINO, CLIP and LPIPS, with an HTML report.

    Stopped, it goes on where it was.
    """
    from atomdiff.evaluation.dreambench_report import write_report
    from atomdiff.evaluation.dreambench_run import Judges, Protocol
    from atomdiff.evaluation.dreambench_run import evaluate as run
    from atomdiff.evaluation.towers import LPIPS, load_tower

    chosen = _subjects(data, subjects)
    methods = _methods(concepts or [], acting, loras or [], trigger)
    for method in methods:
        for subject in chosen:
            method.file(subject)  # refuses what is not there
    judges = Judges(
        load_tower(dino) if dino else None,
        load_tower(clip) if clip else None,
        LPIPS.load(lpips) if lpips else None,
    )
    protocol = Protocol(pictures, prompts, steps, guidance, size, batch_size)
    loaded = asked.load([])
    results: dict[str, dict[str, dict[str, float]]] = {method.name: {} for method in methods}
    for subject in chosen:
        for method in methods:
            figures = run(
                loaded, method, subject, data / subject.name, out, judges, protocol,
                lambda what, done, total: typer.echo(f"\r{what}: {done} of {total}  ", nl=False, err=True),
            )  # fmt: skip
            results[method.name][subject.name] = figures
            write_report(out, results, methods, [s for s in chosen if s.name in results["base"]], protocol)
    typer.echo(f"\n{out / 'report.html'}")


def _subjects(data: Path, names: str) -> list[Subject]:
    """Those that were named, or all, whose photographs are in `data`. Raises SettingsError."""
    from atomdiff.evaluation.dreambench import SUBJECTS

    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in [subject.name for subject in SUBJECTS]]
    if unknown:
        raise SettingsError(f"DreamBench has no subject {unknown[0]!r}; its folders' names are its subjects.")
    chosen = [subject for subject in SUBJECTS if not wanted or subject.name in wanted]
    missing = [subject.name for subject in chosen if not (data / subject.name).is_dir()]
    if missing:
        raise SettingsError(
            f"'{data}' has no folder {missing[0]!r}; give DreamBooth's data set, or --subjects."
        )
    return chosen


def _methods(concepts: list[Path], acting: str, loras: list[Path], trigger: str) -> list[Method]:
    """The base itself, and folders of concepts and LoRAs. Raises SettingsError."""
    from atomdiff.evaluation.dreambench_run import Method

    if acting not in ("plain", "gated", "both"):
        raise SettingsError(f"--acting must be plain, gated or both, but {acting!r} was given.")
    methods, ways = [Method("base")], ("plain", "gated") if acting == "both" else (acting,)
    methods += [Method(f"{folder.name}-{way}", folder, acting=way) for folder in concepts for way in ways]
    return methods + [Method(f"{folder.name}-lora", folder, lora=True, trigger=trigger) for folder in loras]
