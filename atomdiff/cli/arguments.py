"""What the drawing commands make of their flags: concepts with strengths, the base, pictures with a bar."""

from __future__ import annotations

import functools
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atomdiff.core.blocks import Strength, parse_strength
from atomdiff.errors import BaseError, ConceptError, SettingsError
from atomdiff.sampling import hints
from atomdiff.sampling.settings import SAMPLERS

if TYPE_CHECKING:
    from PIL.Image import Image

    from atomdiff.base import stable_diffusion as bases
    from atomdiff.base.stable_diffusion import Base
    from atomdiff.concept.concept import Concept
    from atomdiff.library import Entry
    from atomdiff.sampling.region import Region
    from atomdiff.sampling.settings import DrawingSettings

SamplerOption = Annotated[str, typer.Option(help=", ".join(SAMPLERS) + ".")]
StepsOption = Annotated[int, typer.Option(help="Denoising steps.")]
GuidanceOption = Annotated[
    float | None, typer.Option(help="Guidance scale (CFG); by default what suits the base.")
]
NegativeOption = Annotated[str, typer.Option("--negative", "--negative-prompt", help="What to keep out.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
DtypeOption = Annotated[str, typer.Option(help="auto (fp16 on a GPU, else fp32), fp32, fp16 or bf16.")]
ConceptsOption = Annotated[
    Path | None, typer.Option(help="The folder of concepts; by default your own library.")
]
AllowedHostsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="A name under which a reverse proxy reaches it, draw.example.com or *.example.com; may be given "
        "several times.",
    ),
]
FileArgument = Annotated[Path, typer.Argument(help="A concept file, a card, or a name in the library.")]
HOW = typer.Option(
    metavar="plain|gated",
    help="plain: concepts act on everything, as other tools draw. gated: only where the prompt says their "
    "trigger, on its side of guidance, and not in the first steps.",
)


def load_concepts(given: list[str]) -> list[tuple[Concept, Strength]]:
    """`FILE` or `NAME` of a concept in the library, which is told, each with or without `:STRENGTH`.

    Raises ConceptError or SettingsError.
    """
    from atomdiff.files import card
    from atomdiff.library import Library

    weighted = []
    for item in given:
        name, strength = _split(item)
        entry = _in_library(name)
        if entry:
            Library().used(entry.id)
            typer.echo(f"note: {name!r} is {entry.path} in the library", err=True)
        weighted.append((card.load(entry.path if entry else name), strength))
    return weighted


def split_loras(given: list[str]) -> list[tuple[Path, float]]:
    """`FILE` or `FILE:0.7` of LoRAs. Raises SettingsError."""
    loras = []
    for item in given:
        name, strength = _split(item)
        if not isinstance(strength, float):
            raise SettingsError(
                f"The strength of a LoRA is one number, not that of {item!r}: write FILE:0.7."
            )
        loras.append((Path(name), strength))
    return loras


def split_regions(given: list[str], first: int) -> tuple[list[str], list[Region]]:
    """`FILE[:STRENGTH]:LEFT,TOP,RIGHT,BOTTOM`, in shares of the picture, or with a mask picture in their
    place: the concepts, and where the place of each is, `first` being the first's number. Raises ImageError
    or SettingsError."""
    from atomdiff.files import images
    from atomdiff.sampling.region import Region, parse_where

    names, regions = [], []
    for number, item in enumerate(given, first):
        name, _, where = item.rpartition(":")
        if not name or not where:
            raise SettingsError(
                f"A region is CONCEPT:LEFT,TOP,RIGHT,BOTTOM or CONCEPT:MASK.png, not {item!r}: dog:0,0,0.5,1."
            )
        place: Any = parse_where(where) if where.count(",") == 3 else images.open_picture(Path(where)).image
        names.append(name)
        regions.append(Region(place, (number,)))
    return names, regions


def concept_file(given: Path) -> Path:
    """The file that `FILE`, or `NAME` of a concept in the library, means. Raises ConceptError."""
    entry = _in_library(str(given))
    return entry.path if entry else given


def split_strength(item: str) -> tuple[str, Strength]:
    """The file that `FILE`, `NAME` or these with `:STRENGTH` mean, and the strength. Raises as above."""
    name, strength = _split(item)
    entry = _in_library(name)
    return str(entry.path) if entry else name, strength


def _in_library(name: str) -> Entry | None:
    """The library's only concept of this name; None if it is a file's name, or there is no library.

    Raises ConceptError if the library has none or several of the name.
    """
    path = Path(name)
    if path.exists() or path.name != name or path.suffix.lower() in (".safetensors", ".png"):
        return None
    from atomdiff.library import Library, default_folder

    if not default_folder().is_dir():
        return None
    try:
        return Library().named(name)
    except ConceptError as error:
        raise ConceptError(f"There is no file {name!r}. {error}") from None


def _split(item: str) -> tuple[str, Strength]:
    head, colon, tail = item.rpartition(":")
    if not colon or not head or Path(item).exists():
        return item, 1.0
    if re.fullmatch(r"\s*\w+=[^/\\]*(?<!\.safetensors)", tail):
        return head, parse_strength(tail)
    try:
        strength = float(tail)
    except ValueError:
        if tail.endswith(".safetensors") or "\\" in tail or "/" in tail:
            return item, 1.0  # the colon belongs to the path
        raise SettingsError(f"The strength in {item!r} is not a number: write FILE:0.8, say.") from None
    if not math.isfinite(strength):
        raise SettingsError(f"The strength in {item!r} is not a finite number: write FILE:0.8, say.")
    return head, strength


def open_base(
    given: str | None,
    concepts: Sequence[tuple[Concept, Strength]],
    device: str,
    dtype: str,
    quiet: bool = False,
) -> Base:
    """The base that was named, or else the first concept's own; told, on stderr if `quiet`."""
    name, why = which_base(given, concepts)
    typer.echo(f"base: {name} ({why})", err=quiet)
    return load_base(name, device, dtype, given=given is not None)


def which_base(given: str | None, weighted: Sequence[tuple[Concept, Strength]]) -> tuple[str, str]:
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


def load_base(name: str, device: str, dtype: str, given: bool, choice: bases.Choice | None = None) -> Base:
    """The base of that name; `given` where the user named it. Raises BaseError or SettingsError."""
    import torch

    from atomdiff.base import stable_diffusion as bases

    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if dtype not in ("auto", *types):
        raise SettingsError(f"--dtype is auto, {', '.join(types)}, not {dtype!r}.")
    if device == "auto":
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        device = next(name for name, usable in there.items() if usable)
    chosen = types.get(dtype, torch.float16 if device.startswith("cuda") else torch.float32)
    try:
        return bases.load_base(name, chosen, device, choice)
    except BaseError as error:
        if given:
            raise
        raise BaseError(f"{error} The concept was trained on it; --base says where it lies.") from error


def tell_about(base: Base, settings: DrawingSettings) -> None:
    """What the user should know before drawing. Raises ConceptError for a concept of another base."""
    _tell(hints.before_drawing(base, settings))


def tell_clashes(weighted: list[tuple[Concept, Strength]]) -> None:
    """Warns of concepts that get in each other's way, before they are used together."""
    _tell(hints.clashes(weighted))


def _tell(told: Iterable[hints.Hint]) -> None:
    for remark in told:
        typer.echo(f"{'warning' if remark.warning else 'note'}: {remark.text}", err=True)


def check_picture(out: Path, carries: bool = False) -> None:
    """Before anything is drawn: raises AtomdiffError where `out` is no picture, one that is to carry a
    concept, or cannot be written."""
    from atomdiff.files.atomic import require_writable
    from atomdiff.sampling import sheets

    sheets.check_suffix(out, carries=carries)
    require_writable(out.parent, "--out")


def draw_with_bar(base: Base, settings: DrawingSettings, **options: Any) -> list[Image]:
    """`draw_as`, with a bar on the terminal."""
    from atomdiff.sampling.draw import CousinWarning, draw_as
    from atomdiff.training.terminal import Terminal

    with warnings.catch_warnings(), Terminal() as shown:
        warnings.simplefilter("ignore", CousinWarning)  # told already
        return draw_as(base, settings, callback=functools.partial(shown.stage, "Drawing"), **options)
