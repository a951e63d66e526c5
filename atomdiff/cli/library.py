"""The commands that keep concepts: `library add`, `list`, `tag`, `remove`, `restore`, `scan`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atomdiff.cli.common import app, one_sentence
from atomdiff.errors import ConceptError

if TYPE_CHECKING:
    from atomdiff.files.read_any import Source
    from atomdiff.library import Entry, Library, Report

library_app = typer.Typer(help="Keep concepts in a folder, to use them by name.", no_args_is_help=True)
app.add_typer(library_app, name="library")

FolderOption = Annotated[
    Path | None,
    typer.Option("--folder", help="The library; by default $ATOMDIFF_LIBRARY or a place among your data."),
]
NameArgument = Annotated[str, typer.Argument(help="A name, trigger, file name or the first digits of an id.")]


@library_app.command("add")
@one_sentence
def add(
    source: Annotated[
        list[str],
        typer.Argument(help="Concept files, cards, pictures of QR codes, or the text atomdiff:v1:..."),
    ],
    tag: Annotated[list[str] | None, typer.Option(help="A tag for all of them.")] = None,
    together: Annotated[
        bool, typer.Option("--together", help="The pictures show the QR codes of one concept together.")
    ] = False,
    folder: FolderOption = None,
) -> None:
    """Take concepts into the library."""
    from atomdiff.files.read_any import is_text_form

    library = _open(folder)
    sources: list[Source] = [item if is_text_form(item) else Path(item) for item in source]
    for group in [sources] if together else [[item] for item in sources]:
        entry = library.add(*group)
        if tag:
            library.tag(entry.id, *tag)
        typer.echo(f"{entry.title} ({entry.id[:8]}, {entry.size:,} bytes): {entry.path}")


@library_app.command("list")
@one_sentence
def show(
    query: Annotated[
        list[str] | None, typer.Argument(help="Words of name, trigger, class, base or tags.")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Only concepts with this tag.")] = None,
    base: Annotated[str | None, typer.Option(help="Only concepts of this base.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    folder: FolderOption = None,
) -> None:
    """List the concepts, the latest used or added first."""
    library = _open(folder)
    report = library.scan()
    found = library.find(" ".join(query or []), tag, base)
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in found], default=str, indent=2))
        return
    _tell_changes(report)
    if found:
        _print_table(found)
    else:
        typer.echo(
            "No concept found." if query or tag or base else f"'{library.folder}' holds no concept yet."
        )


@library_app.command("tag")
@one_sentence
def tag(
    name: NameArgument,
    tags: Annotated[list[str] | None, typer.Argument(help="Tags to add.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A tag to take away.")] = None,
    folder: FolderOption = None,
) -> None:
    """Give a concept tags, or take them away."""
    library = _open(folder)
    entry = library.named(name)
    if tags:
        entry = library.tag(entry.id, *tags)
    if remove:
        entry = library.untag(entry.id, *remove)
    typer.echo(f"{entry.title}: {', '.join(entry.tags) or 'no tags'}")


@library_app.command("remove")
@one_sentence
def remove(name: NameArgument, folder: FolderOption = None) -> None:
    """Move a concept to the library's trash."""
    library = _open(folder)
    entry = library.named(name)
    library.remove(entry.id)
    typer.echo(f"{entry.title} is in the trash; `atomdiff library restore {entry.id[:8]}` brings it back.")


@library_app.command("restore")
@one_sentence
def restore(
    name: Annotated[
        str | None,
        typer.Argument(help="A name, file name or the first digits of an id; none lists the trash."),
    ] = None,
    folder: FolderOption = None,
) -> None:
    """Bring a removed concept back."""
    from atomdiff.library.folder import file_name

    library = _open(folder)
    removed = library.removed()
    if name is None:
        for ident, files in removed.items():
            typer.echo(f"{ident[:8]}  {', '.join(map(_shown, files))}")
        return
    asked = name.casefold()
    found = [
        ident
        for ident, files in removed.items()
        if ident.startswith(asked)
        or file_name(name, ident) in files
        or any(asked in (file.casefold(), Path(file).stem.casefold()) for file in files)
    ]
    if len(found) != 1:
        raise ConceptError(
            f"{len(found) or 'No'} concepts in the trash are called {name!r}: `atomdiff library restore` "
            "lists them."
        )
    entry = library.restore(found[0])
    typer.echo(f"{entry.title} ({entry.id[:8]}): {_shown(entry.path)}")


@library_app.command("scan")
@one_sentence
def scan(folder: FolderOption = None) -> None:
    """See what was added, moved or deleted in the folder."""
    library = _open(folder)
    report = library.scan()
    _tell_changes(report)
    for _, problem in report.foreign:
        typer.echo(f"not a concept: {problem}", err=True)
    typer.echo(f"{len(library.find())} concepts in '{library.folder}'")


def _open(folder: Path | None) -> Library:
    from atomdiff.library import Library

    return Library(folder)


def _tell_changes(report: Report) -> None:
    for what, entries in (("new", report.new), ("moved", report.moved)):
        for entry in entries:
            typer.echo(f"{what}: {entry.title} ({entry.id[:8]}, {_shown(entry.path.name)})")
    for ident in report.gone:
        typer.echo(f"gone: {ident[:8]}")


def _print_table(entries: list[Entry]) -> None:
    """Names may be a stranger's: no markup in them is obeyed."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("id", "name", "trigger", "base", "bytes", "tags", box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for entry in entries:
        cells = (
            entry.id[:8],
            entry.title,
            entry.trigger,
            entry.base or entry.architecture,
            f"{entry.size:,}",
        )
        table.add_row(*(Text(cell) for cell in (*cells, ", ".join(entry.tags))))
    Console(highlight=False).print(table)


def _shown(name: str | Path) -> str:
    """A file's name, which need not be text."""
    return str(name).encode(errors="replace").decode()
