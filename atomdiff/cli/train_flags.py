"""The flags of training: one for every field of TrainingSettings, from the command line, from a file, or
from a list of subjects."""

import argparse
import dataclasses
import difflib
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from atomdiff.errors import SettingsError
from atomdiff.training.config_file import presets, read, write
from atomdiff.training.flag_aliases import FLAG_ALIASES
from atomdiff.training.settings import TrainingSettings, refuse_beside_size

GROUPS = {  # the headings of --help, by the field that each begins with
    "instance_data_dir": "pictures, base and words",
    "with_prior_preservation": "keeping the class as it is",
    "resolution": "how much is seen",
    "learning_rate": "how fast it learns",
    "recipe": "what is trained",
    "mixed_precision": "speed and memory",
    "checkpointing_steps": "saving, resuming, looking on",
}
ALL = 2**31  # subjects in one batch
VALUES = {"adamwschedulefree": "schedulefree"}  # what kohya's trainers call a value


@dataclass(frozen=True)
class Job:
    """What was asked for: one run, or one for each subject of a list."""

    runs: tuple[TrainingSettings, ...]
    print_config: bool = False
    together: int = 1  # so many runs share a batch


class Parser(argparse.ArgumentParser):
    """Refuses flags that it does not know, and says which one was probably meant. Raises SettingsError."""

    def error(self, message: str) -> NoReturn:
        unknown = message.split() if message.startswith("unrecognized") else []
        for word in (word.split("=")[0] for word in unknown if word.startswith("-")):
            near = difflib.get_close_matches(word, self._option_string_actions, 1)
            if word in FLAG_ALIASES:
                message = f"there is no flag {word}: {FLAG_ALIASES[word]}."
                break
            if near:
                message = f"there is no flag {word}; did you mean {near[0]}?"
                break
        end = "" if message.endswith(("?", ".")) else "."
        raise SettingsError(f"{message}{end} --help lists all flags.")


def build_parser(about: str, epilog: str) -> Parser:
    """One flag for every field of TrainingSettings, with diffusers' names."""
    parser = Parser(
        usage="%(prog)s --instance_dir FOLDER [flags]", description=about, epilog=epilog, allow_abbrev=False
    )
    files = parser.add_argument_group("settings from files")
    files.add_argument(
        "--config",
        metavar="FILE",
        help=f"settings from a TOML file, which flags go before; or one of {', '.join(presets())}",
    )
    files.add_argument(
        "--print_config", action="store_true", help="print all settings as such a file, and train nothing"
    )
    files.add_argument(
        "--concepts_list", metavar="FILE", help="several subjects, each its own run: a JSON list"
    )
    files.add_argument(
        "--together", nargs="?", type=int, const=ALL, metavar="N",
        help="with --concepts_list: train so many subjects in one batch, or all; each to the concept that it "
        "would come to alone, in less time than one after another on a GPU",
    )  # fmt: skip
    group: Any = parser
    for item in dataclasses.fields(TrainingSettings):
        if item.name in GROUPS:
            group = parser.add_argument_group(GROUPS[item.name])
        _add(group, item)
    return parser


def job_of(parser: Parser, arguments: Sequence[str] | None) -> Job:
    """What the command line asks for. Raises SettingsError or ImageError."""
    given = vars(parser.parse_args(arguments))
    config, listed, together = (given.pop(name) for name in ("config", "concepts_list", "together"))
    printing = given.pop("print_config")
    names = field_names()
    if config:
        given = read(config, names, FLAG_ALIASES) | given
        listed = listed or given.pop("concepts_list", None)
        together = given.pop("together", None) if together is None else together
    together = _together(together, bool(listed))
    refuse_beside_size(given)
    settings = TrainingSettings(**given)
    if not listed:
        return Job((settings,), printing)
    from atomdiff.training.concepts_list import read as read_list

    return Job(tuple(read_list(listed, settings, names)), printing, together)


def _together(given: Any, listed: bool) -> int:
    """How many subjects share a batch; in a file it is a number, or true for all. Raises SettingsError."""
    if given is None or given is False:
        return 1
    if not listed:
        raise SettingsError("--together is for several subjects; name them with --concepts_list FILE.json.")
    number = ALL if given is True else given
    if not isinstance(number, int) or number < 1:
        raise SettingsError(f"--together must be at least 1, but {given!r} was given.")
    return number


def field_names() -> dict[str, str]:
    """Every name that a setting may be given under -> its field."""
    found = {"concepts_list": "concepts_list", "together": "together"}
    for item in dataclasses.fields(TrainingSettings):
        found |= dict.fromkeys((item.name, *item.metadata["aliases"]), item.name)
    return found


def as_file(settings: TrainingSettings) -> str:
    """All settings as a TOML file with their help as comments."""
    helps = {item.name: item.metadata["help"] for item in dataclasses.fields(TrainingSettings)}
    return write(settings, helps)


def _add(group: Any, item: Any) -> None:
    """The flag of one field."""
    names = [f"--{name}" for name in (item.name, *item.metadata["aliases"])]
    kind = (typing.get_args(item.type) or (item.type,))[0]
    help_text = item.metadata["help"].replace("%", "%%")
    options: dict[str, Any] = {"dest": item.name, "default": argparse.SUPPRESS, "help": help_text}
    if kind is bool:
        if item.default is not None:
            options["help"] += f" (default: {'on' if item.default else 'off'})"
        group.add_argument(*names, action=argparse.BooleanOptionalAction, **options)
        if item.name == "with_prior_preservation":
            group.add_argument(
                "--no_prior", dest=item.name, action="store_false", default=argparse.SUPPRESS,
                help="the same as --no-with_prior_preservation",
            )  # fmt: skip
        return
    if typing.get_origin(item.type) is tuple:
        group.add_argument(*names, nargs="+", metavar="TEXT", **options)
        return
    if item.metadata["choices"]:
        options["choices"] = item.metadata["choices"]
        kind = _choice
    if item.default not in (None, ""):
        options["help"] += f" (default: {item.default})"
    group.add_argument(
        *names, type=kind, metavar=None if "choices" in options else kind.__name__.upper(), **options
    )


def _choice(text: str) -> str:
    """A value in capitals or not, as kohya's trainers write them: Prodigy, AdamW."""
    return VALUES.get(text.lower(), text.lower())
