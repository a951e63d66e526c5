"""The command that looks into a concept: `inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from atomdiff.cli.common import app, one_sentence


@app.command()
@one_sentence
def inspect(
    file: Annotated[Path, typer.Argument(help="A concept file or card.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what is in a concept file."""
    from atomdiff import inspection

    about = inspection.describe(file)
    if as_json:
        typer.echo(json.dumps(about, ensure_ascii=False, indent=2))
    else:
        inspection.print_table(about)
