"""The command that opens the web page: `studio`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from atomdiff.base.architectures import ALIASES
from atomdiff.cli.arguments import AllowedHostsOption, ConceptsOption
from atomdiff.cli.base_flags import BaseAsked, with_base
from atomdiff.cli.common import app, one_sentence
from atomdiff.errors import SettingsError


@app.command()
@one_sentence
@with_base()
def studio(
    asked: BaseAsked,
    base: Annotated[
        str, typer.Option(help=f"{', '.join(ALIASES)}, a diffusers folder, a file or a hub id.")
    ] = "pocket",
    concepts: ConceptsOption = None,
    out: Annotated[Path, typer.Option(help="Where pictures and history are kept.")] = Path("outputs/studio"),
    host: Annotated[
        str, typer.Option(help="0.0.0.0 lets others on the network in; think of --auth then.")
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="By default the first free one from 7860.")] = None,
    share: Annotated[bool, typer.Option("--share", help="A public link, through Gradio's servers.")] = False,
    auth: Annotated[
        list[str] | None,
        typer.Option(metavar="USER:PASSWORD", help="Let only this user in; may be given several times."),
    ] = None,
    allowed_hosts: AllowedHostsOption = None,
) -> None:
    """Open the studio, the web page to draw with concepts."""
    from atomdiff.studio.session import Options, Studio

    users, hosts = tuple(map(_user, auth or ())), tuple(allowed_hosts or ())
    options = Options(asked.loader(base), base, concepts, out, host, port, share, users, hosts)
    from atomdiff.studio import app as studio_app  # the slowest to import comes last

    typer.echo(f"base: {base}")
    running = Studio(options)
    blocks = studio_app.launch(running)
    typer.echo(f"The studio is open at {blocks.local_url} (Ctrl-C ends it).")
    if blocks.share_url:
        typer.echo(f"Everyone with this link may use it: {blocks.share_url}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: a training is kept
    try:
        blocks.block_thread()
    finally:
        running.close()


def _user(auth: str) -> tuple[str, str]:
    """`USER:PASSWORD`. Raises SettingsError."""
    user, colon, password = auth.partition(":")
    if not (user and colon and password):
        raise SettingsError("--auth is USER:PASSWORD, with something on both sides of the colon.")
    return user, password
