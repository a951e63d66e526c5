"""The commands that reckon with concepts: `mix` and `diff` add and subtract, `similar` finds, `trim` cuts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atomdiff.cli.common import app, one_sentence
from atomdiff.cli.given import load_concepts, tell_clashes
from atomdiff.core.blocks import one_number

if TYPE_CHECKING:
    from torch import Tensor

    from atomdiff.concepts.concept import Concept

Out = Annotated[Path, typer.Option(help="The concept file to write.")]
Precision = Annotated[str, typer.Option(help="fp32, fp16, int8 or int4.")]


@app.command()
@one_sentence
def mix(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE[:WEIGHT]...", help="Concept files or cards of one base.")
    ],
    out: Out,
    precision: Precision = "fp16",
    name: Annotated[str, typer.Option(help="What to call it; by default the sum.")] = "",
) -> None:
    """Write the weighted sum of concepts as one: `mix dog.safetensors:0.7 style.safetensors:0.5`.

    Weights may be negative. It is called by the first one's trigger.
    """
    from atomdiff.concepts import algebra

    parts = load_concepts(files)
    tell_clashes(parts)
    weighted = [(concept, one_number(weight)) for concept, weight in parts]
    _write(algebra.mix(weighted, name), out, precision)


@app.command()
@one_sentence
def diff(
    first: Annotated[Path, typer.Argument(help="A concept file or card.")],
    second: Annotated[Path, typer.Argument(help="The one to subtract.")],
    out: Out,
    precision: Precision = "fp16",
) -> None:
    """Write FIRST - SECOND: what the one concept changes and the other does not."""
    from atomdiff.formats import card

    _write(card.load(first) - card.load(second), out, precision)


@app.command()
@one_sentence
def similar(
    file: Annotated[Path, typer.Argument(help="A concept file or card.")],
    folder: Annotated[Path, typer.Argument(help="Where the .safetensors files to compare with lie.")],
    count: Annotated[int, typer.Option("--count", "-n", help="How many to name.")] = 10,
) -> None:
    """Name the concepts in a folder that are most like one, best first, with the cosine of their changes."""
    from atomdiff.concepts import algebra
    from atomdiff.formats import card

    found = algebra.neighbours(card.look(file)[0], folder, count)
    for path, likeness in found:
        typer.echo(f"{likeness:6.3f}  {path}")
    if not found:
        typer.echo("No concept in the folder can be compared with it: none has its base and layers.")


@app.command()
@one_sentence
def trim(
    file: Annotated[Path, typer.Argument(help="A concept file or card.")],
    max_bytes: Annotated[int, typer.Option(help="How large the file may be.")],
    out: Out,
    precision: Annotated[str | None, typer.Option(help="By default the file's own.")] = None,
) -> None:
    """Leave out the layers that matter least, until the file is small enough."""
    from atomdiff.formats import card, header, safetensors_file
    from atomdiff.formats import precision as precisions

    concept, data = card.load(file), card.concept_bytes(file)
    dtype = precision or precisions.of(header.parse_header(data)[1])
    trimmed = concept.trim(max_bytes, dtype)
    _write(trimmed, out, dtype)
    if trimmed is concept:
        return
    had, kept = (sum(_used(atoms) for atoms in c.atoms.values()) for c in (concept, trimmed))
    typer.echo(f"kept {kept} of {had} layers")
    for coarser in precisions.PRECISIONS[precisions.PRECISIONS.index(dtype) + 1 :]:
        if len(safetensors_file.to_bytes(concept, coarser)) <= max_bytes:
            typer.echo(f"note: --precision {coarser} fits with all of them.", err=True)
            break


def _used(atoms: Tensor) -> int:
    """How many layers are not zero."""
    return int(atoms.flatten(1).any(1).sum())


def _write(concept: Concept, out: Path, precision: str) -> None:
    path = concept.save(out, precision)
    typer.echo(f"{path} ({concept.title}, {precision}, {path.stat().st_size:,} bytes)")
