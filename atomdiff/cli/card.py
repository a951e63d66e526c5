"""The commands that make a concept visible: `card` and `qr` draw it, `read` finds it again in a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atomdiff.cli.arguments import FileArgument, concept_file
from atomdiff.cli.common import app, check_concept_name, one_sentence
from atomdiff.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image


@app.command("card")
@one_sentence
def make_card(
    file: FileArgument,
    picture: Annotated[
        list[Path] | None, typer.Option(help="What it draws; one to four, the best first.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The card: a .png.")] = Path("card.png"),
) -> None:
    """Draw a card: a picture to post that is the concept itself, exact to the byte."""
    from atomdiff.files import atomic, card_image
    from atomdiff.files.card import concept_bytes

    if out.suffix.lower() != ".png":
        raise ImageError(f"Only a PNG can carry a concept, so a card is a .png, not {out.name!r}.")
    data = concept_bytes(concept_file(file))
    card = card_image.make(data, [_preview(path) for path in picture or []])
    atomic.write(out, card, "The card")
    typer.echo(f"{out} ({len(card):,} bytes, {len(data):,} of them the concept)")


@app.command("qr")
@one_sentence
def make_qr(
    file: FileArgument,
    out: Annotated[Path, typer.Option(help="A .png, .jpg or .webp.")] = Path("qr.png"),
    scale: Annotated[int, typer.Option(help="Pixels a module.")] = 6,
) -> None:
    """Draw a concept as QR codes, from which a photo gives it back."""
    from atomdiff.files import card, qr, qr_image
    from atomdiff.files.safetensors_file import from_bytes
    from atomdiff.sampling import sheets

    sheets.check_suffix(out)
    data = card.concept_bytes(concept_file(file))
    concept = from_bytes(data)
    facts = (concept.title, concept.trigger, concept.base.name, f"{len(data):,} bytes")
    image = qr_image.sheet(data, " · ".join(dict.fromkeys(filter(None, facts))), scale)
    codes = qr.split(data)
    sheets.save_picture(image, out)
    what = "one QR code" if len(codes) == 1 else f"{len(codes)} QR codes"
    typer.echo(f"{out} ({what} of {len(codes[0]):,} bytes, for a concept of {len(data):,})")


@app.command("read")
@one_sentence
def read_picture(
    picture: Annotated[
        list[Path], typer.Argument(help="A card, or a screenshot or photo of QR codes; several make one.")
    ],
    out: Annotated[Path, typer.Option(help="The concept file to write.")] = Path("concept.safetensors"),
) -> None:
    """Find the concept in a picture and write its file, exact to the byte."""
    from atomdiff.files import safetensors_file
    from atomdiff.files.read_any import read_any

    check_concept_name(out)
    found = read_any(*picture)
    concept, data = found.concept, found.data
    safetensors_file.write_data(data, out)
    base = f", for {concept.base.name}" if concept.base.name else ""
    typer.echo(f"{out} ({len(data):,} bytes: {concept.title!r}{base})")


def _preview(path: Path) -> Image:
    from atomdiff.files.card_image import HERO
    from atomdiff.files.images import read_picture as read

    try:
        return read(path, HERO)[0]
    except ImageError as error:
        raise ImageError(f"The picture {str(path)!r} cannot be used: {error}.") from None
