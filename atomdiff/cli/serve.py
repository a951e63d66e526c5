"""The command that answers over HTTP: `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atomdiff.cli.arguments import AllowedHostsOption, ConceptsOption
from atomdiff.cli.base_flags import BaseAsked, with_base
from atomdiff.cli.common import app, one_sentence
from atomdiff.errors import SettingsError


@app.command()
@one_sentence
@with_base()
def serve(
    asked: BaseAsked,
    base: Annotated[
        list[str] | None,
        typer.Option(
            help="pocket (the default), sd15, sd21, sdxl, a diffusers folder, a file or hub id; several with "
            "--ray, of which requests name one as their model."
        ),
    ] = None,
    concepts: ConceptsOption = None,
    out: Annotated[Path, typer.Option(help="Where trainings are kept.")] = Path("outputs/serve"),
    host: Annotated[
        str, typer.Option(help="0.0.0.0 lets others on the network in, with --token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 is any that is free.")] = 7870,
    token: Annotated[
        list[str] | None,
        typer.Option(
            envvar="ATOMDIFF_TOKEN",
            help="Answer only to who sends it, `Authorization: Bearer TOKEN`; may be given several times, "
            "each has requests and trainings of its own. Others on this machine see it here, not in the "
            "environment variable.",
            show_envvar=True,
        ),
    ] = None,
    allowed_hosts: AllowedHostsOption = None,
    batch: Annotated[int, typer.Option(help="Pictures drawn together; 0 is what suits the base.")] = 0,
    window: Annotated[float, typer.Option(help="Seconds that a picture waits for others.")] = 0.05,
    max_pixels: Annotated[int, typer.Option(help="Of a picture; 0 is 4 times the base's area.")] = 0,
    max_steps: Annotated[int, typer.Option(help="Of a picture.")] = 100,
    max_pictures: Annotated[int, typer.Option(help="Of a request.")] = 8,
    max_waiting: Annotated[int, typer.Option(help="Pictures that may wait; then 429 is answered.")] = 64,
    max_seconds: Annotated[float, typer.Option(help="From a request to its pictures; then 503.")] = 600,
    max_upload: Annotated[int, typer.Option(help="MiB of a request that brings files.")] = 64,
    ray: Annotated[bool, typer.Option("--ray", help="Draw on a cluster, by Ray Serve.")] = False,
    address: Annotated[str, typer.Option(help="Of Ray's cluster, `auto` for this machine's.")] = "",
    replicas: Annotated[str, typer.Option(help="The fewest and the most of Ray's replicas.")] = "1:4",
    cpus: Annotated[float, typer.Option(help="Of a replica.")] = 1,
    gpus: Annotated[float, typer.Option(help="Of a replica.")] = 0,
) -> None:
    """Draw and train over HTTP: A1111's and OpenAI's API, many concepts in one batch."""
    try:
        from atomdiff.serving.app import listen, run
        from atomdiff.serving.limits import Limits
        from atomdiff.serving.service import Options, Service
    except ImportError as error:
        raise SettingsError(f"{error.name} is missing: pip install 'atomdiff[serve]'.") from None
    limits = Limits(
        max_pixels, max_steps, max_pictures, max_waiting, max_seconds, max_upload << 20, batch=batch,
        window=window,
    )  # fmt: skip
    tokens, hosts = tuple(token or ()), tuple(allowed_hosts or ())
    bases = base or ["pocket"]
    if len(bases) > 1 and not ray:
        raise SettingsError("Several bases are served with --ray; on one machine one is resident.")
    if ray and asked.tells_of_files:
        raise SettingsError(
            "With --ray a base is one that says everything itself: leave --prediction_type, "
            "--zero_terminal_snr, --vae, --variant and --revision, and give a diffusers folder that has them."
        )
    options = Options(asked.loader(bases[0]), bases[0], concepts, out, host, tokens, hosts, limits)
    between = _two(replicas)
    with listen(host, port) as listening:
        typer.echo(f"base: {', '.join(bases)}")
        if ray:
            from atomdiff.serving.cluster import ClusterService, connect

            connect(address)
            service: Service = ClusterService(options, bases, between, cpus, gpus)
        else:
            service = Service(options)
        shown = f"[{host}]" if ":" in host else host
        told = f"Serving at http://{shown}:{listening.getsockname()[1]} (Ctrl-C ends it)."
        run(service, listening, lambda: typer.echo(told))


def _two(replicas: str) -> tuple[int, int]:
    """`FEWEST:MOST`. Raises SettingsError."""
    least, _, most = replicas.partition(":")
    if not (least.isdigit() and (most or least).isdigit() and 1 <= int(least) <= int(most or least)):
        raise SettingsError(f"--replicas is FEWEST:MOST, 1:4 say, not {replicas[:40]!r}.")
    return int(least), int(most or least)
