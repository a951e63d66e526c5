"""Which base a command draws with: its flags, given to the command as one object."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atomdiff.base.architectures import ALIASES
from atomdiff.cli.arguments import DeviceOption, DtypeOption, load_base, which_base

if TYPE_CHECKING:
    from atomdiff.base.stable_diffusion import Base, Choice
    from atomdiff.concept.concept import Concept
    from atomdiff.core.blocks import Strength

_KNOWN = f"{', '.join(ALIASES)}, a folder, file or hub id"
_FLAGS: dict[str, tuple[Any, Any]] = {
    "base": (Annotated[str | None, typer.Option(help=f"{_KNOWN}; by default the concept's own.")], None),
    "device": (DeviceOption, "auto"),
    "dtype": (DtypeOption, "auto"),
    "prediction_type": (
        Annotated[
            str | None,
            typer.Option(
                "--prediction-type",
                "--prediction_type",
                help="epsilon or v_prediction: what the base predicts, where its files do not say it.",
            ),
        ],
        None,
    ),
    "zero_terminal_snr": (
        Annotated[
            bool,
            typer.Option(
                "--zero-terminal-snr",
                "--zero_terminal_snr",
                help="Begin in pure noise, with bases of v_prediction that were trained so.",
            ),
        ],
        False,
    ),
    "vae": (Annotated[str, typer.Option(help="Another autoencoder: a folder, file or hub id.")], ""),
    "variant": (Annotated[str, typer.Option(help="Variant of the base's files, fp16 say.")], ""),
    "revision": (Annotated[str, typer.Option(help="Branch, tag or commit of a base on the hub.")], ""),
}


@dataclass(frozen=True)
class BaseAsked:
    """The base that a command was told to take."""

    base: str | None
    device: str
    dtype: str
    prediction_type: str | None
    zero_terminal_snr: bool
    vae: str
    variant: str
    revision: str

    def choice(self) -> Choice:
        """What was said of the base's files. Raises SettingsError."""
        from atomdiff.base.stable_diffusion import Choice

        return Choice(self.revision, self.variant, self.vae, self.prediction_type, self.zero_terminal_snr)

    @property
    def tells_of_files(self) -> bool:
        """Whether anything was said but what the base is called."""
        from atomdiff.base.stable_diffusion import Choice

        return self.choice() != Choice()

    def loader(self, named: str) -> Callable[[str], Base]:
        """Loads one base after another, by name; what was said of files holds for the base `named` alone.
        Raises SettingsError."""
        return functools.partial(_load, self.device, self.dtype, {named: self.choice()})

    def name(self, weighted: Sequence[tuple[Concept, Strength]]) -> tuple[str, str]:
        """What it is called, and why that one."""
        return which_base(self.base, weighted)

    def load(self, weighted: Sequence[tuple[Concept, Strength]]) -> Base:
        """The base, or else the first concept's own. Raises BaseError or SettingsError."""
        name, _ = self.name(weighted)
        return load_base(name, self.device, self.dtype, self.base is not None, self.choice())

    def open(self, weighted: Sequence[tuple[Concept, Strength]]) -> Base:
        """The same, telling which one it is."""
        name, why = self.name(weighted)
        typer.echo(f"base: {name} ({why})")
        return self.load(weighted)


def _load(device: str, dtype: str, choices: dict[str, Choice], name: str) -> Base:
    return load_base(name, device, dtype, given=True, choice=choices.get(name))


def with_base(default: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """For a command with an argument `asked`, a BaseAsked, in whose place it gets these flags; a command with
    a `base` of its own keeps it."""

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapped(**given: Any) -> None:
            asked = BaseAsked(**{"base": None} | {name: given.pop(name) for name in added})
            command(**given, asked=asked)

        own = inspect.signature(command, eval_str=True)
        added = {name: flag for name, flag in _FLAGS.items() if name not in own.parameters}
        flags = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=kind,
                default=usual if name != "base" else default,
            )
            for name, (kind, usual) in added.items()
        ]
        kept = [
            argument.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, argument in own.parameters.items()
            if name != "asked"
        ]
        vars(wrapped)["__signature__"] = own.replace(parameters=[*kept, *flags])
        wrapped.__annotations__ = {item.name: item.annotation for item in [*kept, *flags]}
        return wrapped

    return decorated
