"""The command line: `atomdiff generate` draws, `atomdiff inspect` tells what is in a concept file.

Thin on purpose: it reads flags, calls the library and prints. Whatever a user can cause ends in one sentence
and exit status 2.
"""

from __future__ import annotations

import functools
import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atomdiff import __version__
from atomdiff.errors import AtomdiffError, BaseError, SettingsError, refused_by_system

if TYPE_CHECKING:
    from PIL.Image import Image

    from atomdiff.base import Base
    from atomdiff.concept import Concept

app = typer.Typer(
    help="Personalise Stable Diffusion with concept files of a few KB.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The `atomdiff` command."""
    app()


def one_sentence(command: Callable[..., None]) -> Callable[..., None]:
    """Tells what a user can cause in one line on stderr, with exit status 2; defects keep their traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except AtomdiffError as error:
            _fail(str(error))
        except OSError as error:
            _fail(refused_by_system(error))
        except KeyboardInterrupt:
            _fail("Stopped; nothing was written.")
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not re.search(
                "out of memory|allocate memory", str(error)
            ):
                raise
            _fail("There is not enough memory: try a smaller --size, --batch-size 1 or --dtype fp16.")

    return wrapped


def _fail(sentence: str) -> None:
    typer.echo(f"error: {' '.join(sentence.split())}", err=True)
    raise typer.Exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"atomdiff {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Personalise Stable Diffusion with concept files of a few KB."""


@app.command()
@one_sentence
def generate(
    prompt: Annotated[
        str, typer.Argument(help="What to draw, with the concept's trigger: 'a sks dog on the beach'.")
    ],
    concept: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:STRENGTH]", help="A concept file or card; may be given several times."),
    ] = None,
    count: Annotated[
        int, typer.Option("--count", "-n", help="How many pictures; picture i has the seed SEED + i.")
    ] = 1,
    out: Annotated[
        Path, typer.Option(help="A .png, .jpg or .webp. Of several pictures: the sheet; each lies beside it.")
    ] = Path("picture.png"),
    seed: Annotated[int, typer.Option(help="The same seed gives the same picture.")] = 0,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 25,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale (CFG); by default what suits the base.")
    ] = None,
    sampler: Annotated[
        str, typer.Option(help="dpm++, dpm++ karras, ddim, euler, euler a, heun or unipc.")
    ] = "dpm++",
    base: Annotated[
        str | None,
        typer.Option(
            help="pocket, sd15, sd21, sdxl, a folder, file or hub id; by default the concept's own."
        ),
    ] = None,
    negative: Annotated[str, typer.Option("--negative", "--negative-prompt", help="What to keep out.")] = "",
    size: Annotated[
        str | None, typer.Option(metavar="SIDE or WxH", help="In pixels; by default the base's own.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (fp16 on a GPU, else fp32), fp32, fp16 or bf16.")] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(help="Pictures at a time; by default what suits the base.")
    ] = None,
    grid: Annotated[bool, typer.Option(help="Whether several pictures also make a contact sheet.")] = True,
    embed_concept: Annotated[
        bool,
        typer.Option("--embed-concept", help="Put the concept into every picture, which then carries it."),
    ] = False,
) -> None:
    """Draw pictures. -n 8 --out beach.png: a contact sheet beach.png, and beach-0.png to beach-7.png."""
    from atomdiff import sheets
    from atomdiff.checkpoint import require_writable

    sheets.check_suffix(out, carries=embed_concept)
    require_writable(out.parent, "--out")
    carried = _carried(concept or []) if embed_concept else None
    sides = _size(size)
    weighted = _load_concepts(concept or [])
    name, why = _which_base(base, weighted)
    typer.echo(f"base: {name} ({why})")
    loaded = _load_base(name, device, dtype, given=base is not None)
    _tell_about(loaded, prompt, negative, weighted)
    images = _draw_with_bar(
        loaded,
        prompt,
        concepts=weighted,
        count=count,
        seed=seed,
        steps=steps,
        guidance=guidance,
        negative=negative,
        size=sides,
        sampler=sampler,
        batch_size=batch_size,
    )
    for line in _write(images, out, grid, carried):
        typer.echo(line)


@app.command()
@one_sentence
def compare(
    prompts: Annotated[list[str], typer.Argument(help="What to draw; several prompts give more rows.")],
    concept: Annotated[list[str], typer.Option(metavar="FILE[:STRENGTH]", help="What to compare with none.")],
    count: Annotated[int, typer.Option("--count", "-n", help="Pictures a row.")] = 6,
    out: Annotated[Path, typer.Option(help="The sheet: a .png, .jpg or .webp.")] = Path("compare.png"),
    seed: Annotated[int, typer.Option(help="The same seeds are used in both rows.")] = 0,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 25,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale (CFG).")] = None,
    base: Annotated[str | None, typer.Option(help="By default the concept's own.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (fp16 on a GPU, else fp32), fp32, fp16 or bf16.")] = "auto",
) -> None:
    """Draw prompts without and with a concept at the same seeds, one row above the other."""
    from atomdiff import sheets
    from atomdiff.checkpoint import require_writable

    sheets.check_suffix(out)
    require_writable(out.parent, "--out")
    weighted = _load_concepts(concept)
    name, why = _which_base(base, weighted)
    typer.echo(f"base: {name} ({why})")
    loaded = _load_base(name, device, dtype, given=base is not None)
    for prompt in prompts:
        _tell_about(loaded, prompt, "", weighted)
    options = {"count": count, "seed": seed, "steps": steps, "guidance": guidance}
    without = _draw_with_bar(loaded, prompts, **options)
    drawn = _draw_with_bar(loaded, prompts, concepts=weighted, **options)
    title = " + ".join(item.title for item, _ in weighted)
    rows = []
    for i, prompt in enumerate(prompts):
        those = slice(i * count, (i + 1) * count)
        rows += [(f"{prompt}: without {title}", without[those]), (f"with {title}", drawn[those])]
    typer.echo(f"{sheets.save_picture(sheets.contact_sheet(rows), out)} (contact sheet)")


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


def _load_concepts(given: list[str]) -> list[tuple[Concept, float]]:
    """`FILE` or `FILE:STRENGTH`, each. Raises ConceptError or SettingsError."""
    from atomdiff.formats import card

    weighted = []
    for item in given:
        path, strength = _split_strength(item)
        weighted.append((card.load(path), strength))
    return weighted


def _carried(given: list[str]) -> bytes:
    """The bytes of the one concept that the pictures are to carry. Raises ConceptError or SettingsError."""
    from atomdiff.formats import card

    if len(given) != 1:
        raise SettingsError(
            f"--embed-concept needs one --concept, since a picture carries one; {len(given)} given."
        )
    return card.concept_bytes(_split_strength(given[0])[0])


def _split_strength(item: str) -> tuple[str, float]:
    head, colon, tail = item.rpartition(":")
    if not colon or not head or Path(item).exists():
        return item, 1.0
    try:
        strength = float(tail)
    except ValueError:
        if tail.endswith(".safetensors") or "\\" in tail or "/" in tail:
            return item, 1.0  # the colon belongs to the path
        raise SettingsError(f"The strength in {item!r} is not a number: write FILE:0.8, say.") from None
    if not math.isfinite(strength):
        raise SettingsError(f"The strength in {item!r} is not a finite number: write FILE:0.8, say.")
    return head, strength


def _size(text: str | None) -> tuple[int, int] | None:
    """`512` or `512x768` (width, height)."""
    if text is None:
        return None
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.strip().isdigit() for side in sides):
        raise SettingsError(f"A size is a side or WIDTHxHEIGHT in pixels (512, 512x768), not {text!r}.")
    return int(sides[0]), int(sides[-1])


def _which_base(given: str | None, weighted: list[tuple[Concept, float]]) -> tuple[str, str]:
    """The base to use, and why that one."""
    if given is not None:
        return given, "as asked"
    if not weighted:
        return "pocket", "the bundled model; --base picks another"
    concept = weighted[0][0]
    if not concept.base.name:
        raise BaseError(
            f"The concept {concept.title!r} does not say what its base ({concept.base.architecture}) is "
            "called: name it with --base."
        )
    return concept.base.name, f"the one that {concept.title!r} was trained on"


def _load_base(name: str, device: str, dtype: str, given: bool) -> Base:
    import torch

    from atomdiff.base import load_base

    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if dtype not in ("auto", *types):
        raise SettingsError(f"--dtype is auto, {', '.join(types)}, not {dtype!r}.")
    if device == "auto":
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        device = next(name for name, usable in there.items() if usable)
    chosen = types.get(dtype, torch.float16 if device.startswith("cuda") else torch.float32)
    try:
        return load_base(name, chosen, device)
    except BaseError as error:
        if given:
            raise
        raise BaseError(f"{error} The concept was trained on it; --base says where it lies.") from error


def _tell_about(base: Base, prompt: str, negative: str, weighted: list[tuple[Concept, float]]) -> None:
    """What the user should know before drawing. Raises ConceptError for a concept of another base."""
    from atomdiff.base import truncated_part

    for concept, _ in weighted:
        warning = concept.check_base(base.passport)
        if warning:
            typer.echo(f"warning: {warning}", err=True)
        if concept.trigger and concept.trigger.lower() not in prompt.lower():
            typer.echo(
                f"note: the prompt lacks {concept.trigger!r}, the word that calls {concept.title!r}.",
                err=True,
            )
    for what, text in (("prompt", prompt), ("negative prompt", negative)):
        cut = truncated_part(base, text)
        if cut:
            typer.echo(f"warning: the {what} is too long; this end of it is not used: {cut!r}", err=True)


def _draw_with_bar(base: Base, prompt: str | list[str], **settings: Any) -> list[Image]:
    from atomdiff.sampling import CousinWarning, draw
    from atomdiff.terminal import Terminal

    with warnings.catch_warnings(), Terminal() as shown:
        warnings.simplefilter("ignore", CousinWarning)  # told already
        tell = functools.partial(shown.stage, "Drawing")
        return draw(base, prompt, callback=tell, **settings)


def _write(images: list[Image], out: Path, grid: bool, carried: bytes | None = None) -> list[str]:
    """Writes the pictures, and the sheet of several at `out` itself; returns what to tell."""
    from atomdiff import sheets

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


from atomdiff import cli_card, cli_share  # noqa: E402, F401 - they add their commands to `app`
