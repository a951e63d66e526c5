"""The commands that share concepts on the Hugging Face hub: `push`, `pull`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atomdiff.cli.arguments import FileArgument, concept_file
from atomdiff.cli.common import app, check_concept_name, one_sentence


@app.command()
@one_sentence
def push(
    file: FileArgument,
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="Where on the Hugging Face hub.")],
    picture: Annotated[
        list[Path] | None, typer.Option(help="What it draws, for its page; up to twelve, the best first.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Only you may see it.")] = False,
) -> None:
    """Share a concept on the Hugging Face hub, with a page that shows it. Log in first: hf auth login."""
    from atomdiff.library import hub

    typer.echo(hub.push(concept_file(file), repo, private=private, pictures=picture or []))


@app.command()
@one_sentence
def pull(
    repo: Annotated[
        str, typer.Argument(metavar="USER/NAME[@REVISION]", help="Where on the Hugging Face hub.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The concept file to write; by default NAME.safetensors here.")
    ] = None,
) -> None:
    """Get a concept from the Hugging Face hub, or from its cache where there is no network."""
    from atomdiff.files.card import read_file
    from atomdiff.files.safetensors_file import write_data
    from atomdiff.library import hub

    if out is not None:
        check_concept_name(out)
    found = hub.pull(repo)
    data = read_file(found)
    typer.echo(f"{write_data(data, out or Path(found.name))} ({len(data):,} bytes)")
