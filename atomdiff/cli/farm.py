"""The command that trains many subjects over a cluster: `farm`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atomdiff.cli.arguments import ConceptsOption
from atomdiff.cli.common import app, one_sentence
from atomdiff.errors import TrainingError

if TYPE_CHECKING:
    from atomdiff.serving.farm import Progress

NAMED = 3  # of those at work, in a line


@app.command()
@one_sentence
def farm(
    subjects: Annotated[
        Path,
        typer.Argument(
            metavar="LIST.jsonl",
            help="A subject a line, with settings as of --concepts_list: "
            '{"instance_data_dir": "dog", "class_word": "dog", "max_train_steps": 400}.',
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where results.jsonl goes; what is in it is not trained again.")],
    base: Annotated[
        str, typer.Option(help="pocket, sd15, sd21, sdxl, or what every machine finds under this name.")
    ] = "pocket",
    concepts: ConceptsOption = None,
    address: Annotated[
        str, typer.Option(help="Of Ray's cluster, `auto` for this machine's; by default one is made here.")
    ] = "",
    cpus: Annotated[float, typer.Option(min=0, help="Of a training.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="Of a training; 0.5 lets two share one.")] = 0,
    tower: Annotated[
        str, typer.Option(help="Folder of facebook/dinov2-small, on every machine, to judge likeness by.")
    ] = "",
    mixed_precision: Annotated[str, typer.Option(help="no, fp16 or bf16.")] = "no",
) -> None:
    """Train thousands of subjects over a cluster, by Ray: each ends in the library, with its likeness.

    Stopped, it goes on where it was; what could not be trained is tried again then.
    """
    from atomdiff.cli.train_flags import field_names
    from atomdiff.library import Library
    from atomdiff.serving import farm as farming
    from atomdiff.serving.cluster import connect
    from atomdiff.training.concepts_list import read
    from atomdiff.training.settings import TrainingSettings

    common = TrainingSettings(base=base, mixed_precision=mixed_precision, output_dir=str(out))
    every = [farming.Subject.of(settings) for settings in read(str(subjects), common, field_names())]
    typer.echo(f"base: {base}")
    connect(address)
    try:
        found = farming.farm(every, out, Library(concepts), _tell, cpus, gpus, tower)
    except KeyboardInterrupt:
        known = farming.results(out)
        done = sum("concept" in known.get(subject.key, {}) for subject in every)
        there = f"Stopped with {done} of {len(every)} subjects in the library"
        typer.echo(f"{there}; the same command goes on from there.", err=True)
        raise typer.Exit(130) from None
    failed = [subject for subject in every if "error" in found[subject.key]]
    typer.echo(f"{len(every) - len(failed)} of {len(every)} subjects are in the library; {out}/results.jsonl")
    if failed:
        raise TrainingError(
            f"{len(failed)} could not be trained, the first '{failed[0].settings.name}': "
            f"{found[failed[0].key]['error']}"
        )


def _tell(now: Progress) -> None:
    typer.echo(line(now))


def line(now: Progress) -> str:
    """A line about a farm."""
    from atomdiff.serving.job_queue import duration

    left = f"; about {duration(now.seconds_left)} left" if now.seconds_left else ""
    if now.last:
        return f"{now.done} of {now.total}  {now.last}{left}"
    if now.at_work is None:
        before = f", {now.before} done before" if now.before else ""
        return f"{now.total} subject{'s' * (now.total > 1)}{before}, {now.slots} at a time; Ctrl-C stops"
    stages = [
        f"{name}: step {one.step} of {one.steps}" if one.steps else f"{name}: {one.stage}"
        for name, one in now.at_work.items()
    ]
    more = f", and {len(stages) - NAMED} more" if len(stages) > NAMED else ""
    return f"{now.done} of {now.total}  {', '.join(stages[:NAMED]) or 'waiting for the cluster'}{more}{left}"
