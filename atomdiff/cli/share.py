"""The commands that pass a concept on: `export`, `import` (text), `convert` (precision, credits)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atomdiff.cli.arguments import FileArgument, concept_file, load_base, which_base
from atomdiff.cli.common import app, check_concept_name, one_sentence
from atomdiff.errors import ConceptError, ImageError, SettingsError

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL = 256  # pixels a side, as the ModelSpec says


@app.command("export")
@one_sentence
def export_concept(
    file: FileArgument,
    text: Annotated[bool, typer.Option("--text", help="One line for a chat message (the default).")] = False,
    to: Annotated[
        str,
        typer.Option(
            help="For other tools, from the base's weights: embedding (the learned word), diffusers (a "
            "folder with the concept in it), checkpoint (a single file), diff (exact, for LoRA loaders; "
            "1 GB for SD 1.5), lora (small and inexact)."
        ),
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Write to this file (or folder) instead of the terminal.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="With --to: by default the concept's own.")] = None,
    strength: Annotated[float, typer.Option(help="With --to.")] = 1.0,
    rank: Annotated[int | None, typer.Option(help="Of a LoRA.")] = None,
    max_error: Annotated[
        float | None, typer.Option(help="Of each layer of a LoRA, whose ranks follow from it.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="With --to: fp16, bf16 or fp32.")] = "fp16",
) -> None:
    """Write a concept as text, from which `import` makes the same file, or --to what other tools read."""
    from atomdiff.files import atomic
    from atomdiff.files import text as forms
    from atomdiff.files.card import concept_bytes

    if text and to:
        raise SettingsError("A concept is exported as --text or --to something: run it twice.")
    file = concept_file(file)
    if to:
        _export_to(file, to, out, base, strength=strength, rank=rank, max_error=max_error, dtype=dtype)
        return
    data = concept_bytes(file)
    try:
        made = forms.to_text(data) + "\n"
    except ConceptError as error:
        raise ConceptError(f"{str(file)!r}: {error}") from None
    if out is None:
        sys.stdout.write(made)
        return
    typer.echo(str(atomic.write(out, made.encode(), "The text")))


def _export_to(file: Path, kind: str, out: Path | None, base: str | None, **settings: Any) -> None:
    from atomdiff.files import card
    from atomdiff.integrations.exports.write import ExportSettings, export

    if out is None:
        raise SettingsError("An export --to another tool needs --out: the file or folder to write.")
    concept = card.load(file)
    name, why = which_base(base, [(concept, 1.0)])
    single = Path(name).expanduser()
    checked = ExportSettings(kind, checkpoint=single if single.is_file() else None, **settings)
    typer.echo(f"base: {name} ({why})")
    export(concept, load_base(name, "cpu", "fp32", given=base is not None), checked, out, typer.echo)


@app.command("import")
@one_sentence
def import_concept(
    file: Annotated[
        str,
        typer.Argument(help="The text that `export` wrote: a file, - for standard input, or itself."),
    ],
    out: Annotated[Path, typer.Option(help="The concept file to write.")],
) -> None:
    """Make a concept file of its text: import "atomdiff:v1:..." --out dog.safetensors."""
    from atomdiff.files import safetensors_file
    from atomdiff.files import text as forms
    from atomdiff.files.card import read_file
    from atomdiff.files.read_any import is_text_form

    check_concept_name(out)
    if file != "-" and is_text_form(file):
        data = forms.from_text(file)
    else:
        raw = sys.stdin.buffer.read(forms.MAX_LINE + 1) if file == "-" else read_file(file)
        try:
            data = forms.from_text(raw)
        except ConceptError as error:
            raise ConceptError(f"{file!r}: {error}") from None
    typer.echo(f"{safetensors_file.write_data(data, out)} ({len(data):,} bytes)")


@app.command()
@one_sentence
def convert(
    file: FileArgument,
    out: Annotated[Path, typer.Option(help="The concept file to write.")],
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, int8 or int4; by default its own.")
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(help="Take the best precision, from that one or its own down, that makes it no larger."),
    ] = None,
    author: Annotated[str, typer.Option(help="Who made the concept.")] = "",
    license: Annotated[str, typer.Option(help="Its licence.")] = "",  # noqa: A002 - the flag's name
    description: Annotated[str, typer.Option(help="What it draws.")] = "",
    usage_hint: Annotated[str, typer.Option(help="How to use it best.")] = "",
    thumbnail: Annotated[Path | None, typer.Option(help="A picture to show it by (some KB).")] = None,
) -> None:
    """Write a concept in another precision, or with what its author says of it."""
    from atomdiff.files import card, modelspec, safetensors_file

    check_concept_name(out)
    concept = card.load(concept_file(file))
    concept = modelspec.annotated(
        concept,
        author=author,
        license=license,
        description=description,
        usage_hint=usage_hint,
        thumbnail=_picture(thumbnail) if thumbnail else None,
    )
    data = safetensors_file.to_bytes(concept, precision, max_bytes)
    safetensors_file.write_data(data, out)
    typer.echo(f"{out} ({safetensors_file.precision_of(data)}, {len(data):,} bytes)")


def _picture(file: Path) -> Image:
    from atomdiff.files import images

    try:
        return images.read_picture(file, THUMBNAIL)[0]
    except ImageError as error:
        raise ImageError(f"The thumbnail {str(file)!r} is {error}: give a picture.") from None
