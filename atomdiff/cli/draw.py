"""The commands that draw: `generate` pictures, `compare` them without and with a concept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atomdiff.cli.arguments import (
    HOW,
    GuidanceOption,
    NegativeOption,
    SamplerOption,
    StepsOption,
    check_picture,
    draw_with_bar,
    load_concepts,
    split_loras,
    split_regions,
    split_strength,
    tell_about,
)
from atomdiff.cli.base_flags import BaseAsked, with_base
from atomdiff.cli.common import app, one_sentence
from atomdiff.errors import SettingsError
from atomdiff.sampling.prompts import STYLES
from atomdiff.sampling.settings import USUAL, parse_size

if TYPE_CHECKING:
    from PIL.Image import Image


@app.command()
@one_sentence
@with_base()
def generate(
    prompt: Annotated[
        str, typer.Argument(help="What to draw, with the concept's trigger: 'a sks dog on the beach'.")
    ],
    concept: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:STRENGTH]", help="A concept file or card; may be given several times."),
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:STRENGTH]:WHERE",
            help="A concept in a part of the picture, LEFT,TOP,RIGHT,BOTTOM in shares of it or a mask "
            "picture: --region dog:0,0,0.5,1 --region cat:0.5,0,1,1. Those of --concept act everywhere.",
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:STRENGTH]", help="Somebody's LoRA (.safetensors) beside the concepts."),
    ] = None,
    embedding: Annotated[
        list[Path] | None,
        typer.Option(help="Somebody's textual inversion (.safetensors); its word is the file's name."),
    ] = None,
    count: Annotated[
        int, typer.Option("--count", "-n", help="How many pictures; picture i has the seed SEED + i.")
    ] = 1,
    out: Annotated[
        Path, typer.Option(help="A .png, .jpg or .webp. Of several pictures: the sheet; each lies beside it.")
    ] = Path("picture.png"),
    seed: Annotated[int, typer.Option(help="The same seed gives the same picture.")] = 0,
    steps: StepsOption = 25,
    guidance: GuidanceOption = None,
    sampler: SamplerOption = "dpm++",
    negative: NegativeOption = "",
    size: Annotated[
        str | None, typer.Option(metavar="SIDE or WxH", help="In pixels; by default the base's own.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pictures at a time; by default what suits the base.")
    ] = None,
    acting: Annotated[str, HOW] = USUAL,
    image: Annotated[
        Path | None, typer.Option(help="A picture to start from, instead of noise alone.")
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="What of --image is drawn anew: white in this picture of its shape; the rest stays."
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="How much of --image may change, up to 1 (0.6), or with --hires in its pass (0.4)."
        ),
    ] = None,
    hires: Annotated[
        float, typer.Option(metavar="FACTOR", help="Draw a second time, with sides so many times as long.")
    ] = 1.0,
    style: Annotated[
        str, typer.Option(help=f"A style for the prompt: {', '.join(STYLES)}, or one of styles.csv here.")
    ] = "",
    grid: Annotated[bool, typer.Option(help="Whether several pictures also make a contact sheet.")] = True,
    embed_concept: Annotated[
        bool,
        typer.Option("--embed-concept", help="Put the concept into every picture, which then carries it."),
    ] = False,
    *,
    asked: BaseAsked,
) -> None:
    """Draw pictures. -n 8 --out beach.png: a contact sheet beach.png, and beach-0.png to beach-7.png.

    Of {red|blue} in a prompt each picture takes one part, of __animal__ a line of animal.txt here.
    """
    from atomdiff.files.images import open_start
    from atomdiff.sampling import prompts
    from atomdiff.sampling.settings import DrawingSettings

    check_picture(out, carries=embed_concept)
    carried = _carried(concept or []) if embed_concept else None
    prompt, negative = prompts.styled(prompt, negative, style, prompts.load_styles(Path("styles.csv")))
    begun = {name: open_start(path) for name, path in (("image", image), ("mask", mask)) if path is not None}
    in_parts, regions = split_regions(region or [], len(concept or []))
    settings = DrawingSettings(
        prompt, tuple(load_concepts([*(concept or []), *in_parts])), negative, seed, steps, guidance,
        parse_size(size or ""), sampler.lower(), acting, strength, hires, tuple(split_loras(lora or [])),
        tuple(embedding or []), tuple(regions),
    )  # fmt: skip
    loaded = asked.open(settings.concepts)
    tell_about(loaded, settings)
    texts = prompts.for_each(prompt, seed, count)
    each: dict[str, Any] = {"count": count} if isinstance(texts, str) else {"prompts": texts}
    images = draw_with_bar(loaded, settings, batch_size=batch_size, spend=True, **each, **begun)
    for line in _write(images, out, grid, carried):
        typer.echo(line)


@app.command()
@one_sentence
@with_base()
def compare(
    prompts: Annotated[list[str], typer.Argument(help="What to draw; several prompts give more rows.")],
    concept: Annotated[list[str], typer.Option(metavar="FILE[:STRENGTH]", help="What to compare with none.")],
    count: Annotated[int, typer.Option("--count", "-n", help="Pictures a row.")] = 6,
    out: Annotated[Path, typer.Option(help="The sheet: a .png, .jpg or .webp.")] = Path("compare.png"),
    seed: Annotated[int, typer.Option(help="The same seeds are used in both rows.")] = 0,
    steps: StepsOption = 25,
    guidance: GuidanceOption = None,
    acting: Annotated[str, HOW] = USUAL,
    *,
    asked: BaseAsked,
) -> None:
    """Draw prompts without and with a concept at the same seeds, one row above the other."""
    from atomdiff.sampling import sheets
    from atomdiff.sampling.settings import DrawingSettings

    check_picture(out)
    weighted = load_concepts(concept)
    loaded = asked.open(weighted)
    settings = DrawingSettings("", tuple(weighted), seed=seed, steps=steps, guidance=guidance, acting=acting)
    for prompt in prompts:
        tell_about(loaded, replace(settings, prompt=prompt))
    without = draw_with_bar(loaded, replace(settings, concepts=()), prompts=prompts, count=count)
    drawn = draw_with_bar(loaded, settings, prompts=prompts, count=count, spend=True)
    title = " + ".join(item.title for item, _ in weighted)
    rows = []
    for i, prompt in enumerate(prompts):
        those = slice(i * count, (i + 1) * count)
        rows += [(f"{prompt}: without {title}", without[those]), (f"with {title}", drawn[those])]
    typer.echo(f"{sheets.save_picture(sheets.contact_sheet(rows), out)} (contact sheet)")


def _carried(given: list[str]) -> bytes:
    """The bytes of the one concept that the pictures are to carry. Raises ConceptError or SettingsError."""
    from atomdiff.files import card

    if len(given) != 1:
        raise SettingsError(
            f"--embed-concept needs one --concept, since a picture carries one; {len(given)} given."
        )
    return card.concept_bytes(split_strength(given[0])[0])


def _write(images: list[Image], out: Path, grid: bool, carried: bytes | None = None) -> list[str]:
    """Writes the pictures, and the sheet of several at `out` itself; returns what to tell."""
    from atomdiff.sampling import sheets

    if len(images) == 1:
        return [str(sheets.save_picture(images[0], out, concept=carried))]
    files = [out.with_name(f"{out.stem}-{i}{out.suffix}") for i in range(len(images))]
    for image, file in zip(images, files, strict=True):
        sheets.save_picture(image, file, concept=carried)
    lines = [f"{files[0]} to {files[-1].name}"]
    if grid:
        sheet = sheets.grid(images)
        written = sheets.save_picture(sheet, out, images[0].info["parameters"], carried)
        lines.insert(0, f"{written} (contact sheet)")
    return lines
