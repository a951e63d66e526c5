"""The commands that reckon with concepts: `mix` and `diff` add and subtract, `similar` finds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atomdiff.cli.arguments import FileArgument, concept_file, load_concepts, tell_clashes
from atomdiff.cli.common import app, check_concept_name, one_sentence
from atomdiff.core.blocks import one_number

if TYPE_CHECKING:

    from atomdiff.concept.concept import Concept

Out = Annotated[Path, typer.Option(help="The concept file to write.")]
Precision = Annotated[
    str | None, typer.Option(help="fp32, fp16, int8 or int4; by default that of what was given.")
]


@app.command()
@one_sentence
def mix(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE[:WEIGHT]...", help="Concept files, cards or names in the library, of one base."
        ),
    ],
    out: Out,
    precision: Precision = None,
    name: Annotated[str, typer.Option(help="What to call it; by default the sum.")] = "",
) -> None:
    """Write the weighted sum of concepts as one: `mix dog.safetensors:0.7 style.safetensors:0.5`.

    Weights may be negative. It is called by the first one's trigger.
    """
    parts = load_concepts(files)
    tell_clashes(parts)
    _write(_mix([(concept, one_number(weight)) for concept, weight in parts], name), out, precision)


@app.command()
@one_sentence
def diff(
    first: FileArgument,
    second: Annotated[Path, typer.Argument(help="The one to subtract.")],
    out: Out,
    precision: Precision = None,
) -> None:
    """Write FIRST - SECOND: what the one concept changes and the other does not."""
    from atomdiff.files import card

    parts = [(card.load(concept_file(first)), 1.0), (card.load(concept_file(second)), -1.0)]
    _write(_mix(parts), out, precision)


@app.command()
@one_sentence
def similar(
    file: FileArgument,
    folder: Annotated[Path, typer.Argument(help="Where the .safetensors files to compare with lie.")],
    count: Annotated[int, typer.Option("--count", "-n", help="How many to name.")] = 10,
) -> None:
    """Name the concepts in a folder that are most like one, best first, with the cosine of their changes."""
    from atomdiff.files import card
    from atomdiff.library.similar import most_similar

    found = most_similar(card.look(concept_file(file))[0], folder, count)
    for path, likeness in found:
        typer.echo(f"{likeness:6.3f}  {path}")
    if not found:
        typer.echo("No concept in the folder can be compared with it: none has its base and layers.")


def _mix(parts: list[tuple[Concept, float]], name: str = "") -> Concept:
    """The weighted sum, which tells the files that it was made of."""
    from atomdiff.concept import algebra
    from atomdiff.files.safetensors_file import sha256

    return algebra.mix(parts, name, [sha256(concept) for concept, _ in parts])


def _write(concept: Concept, out: Path, precision: str | None) -> None:
    from atomdiff.files.safetensors_file import save_concept

    check_concept_name(out)
    path = save_concept(concept, out, precision)
    typer.echo(f"{path} ({concept.title}, {precision or concept.precision}, {path.stat().st_size:,} bytes)")
