"""What every command shares: the `atomdiff` app itself, and how a user's mistakes are told."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from atomdiff import __version__
from atomdiff.errors import ConceptError, sentence_of

app = typer.Typer(
    help="Personalise Stable Diffusion with concept files of a few KB.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def one_sentence(command: Callable[..., None]) -> Callable[..., None]:
    """Tells what a user can cause in one line on stderr, with exit status 2; defects keep their traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            _fail("Stopped; nothing was written.")
        except Exception as error:
            sentence = sentence_of(error)
            if sentence is None:
                raise
            _fail(sentence)

    return wrapped


def check_concept_name(out: Path) -> None:
    """Raises ConceptError for a name under which a concept file would not be known for one."""
    if out.suffix.lower() != ".safetensors":
        raise ConceptError(
            f"A concept file ends in .safetensors, not {out.suffix or 'nothing'!r}: rename it."
        )


def _fail(sentence: str) -> None:
    typer.echo(f"error: {sentence}", err=True)
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
