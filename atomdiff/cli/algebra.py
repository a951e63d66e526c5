"""The command that reckons with concepts: `mix` adds and subtracts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atomdiff.cli.arguments import load_concepts, tell_clashes
from atomdiff.cli.common import app, check_concept_name, one_sentence
from atomdiff.core.blocks import one_number


@app.command()
@one_sentence
def mix(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE[:WEIGHT]...", help="Concept files, cards or names in the library, of one base."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The concept file to write.")],
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, int8 or int4; by default that of what was given.")
    ] = None,
    name: Annotated[str, typer.Option(help="What to call it; by default the sum.")] = "",
) -> None:
    """Write the weighted sum of concepts as one: `mix dog-a.safetensors:0.7 dog-b.safetensors:0.3`.

    Weights may be negative. It is called by the first one's trigger.
    """
    from atomdiff.concept import algebra
    from atomdiff.files.safetensors_file import save_concept, sha256

    check_concept_name(out)
    parts = load_concepts(files)
    tell_clashes(parts)
    weighted = [(concept, one_number(weight)) for concept, weight in parts]
    made = algebra.mix(weighted, name, [sha256(concept) for concept, _ in parts])
    path = save_concept(made, out, precision)
    typer.echo(f"{path} ({made.title}, {precision or made.precision}, {path.stat().st_size:,} bytes)")
