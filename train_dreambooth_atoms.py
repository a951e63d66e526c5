#!/usr/bin/env python
"""Teach a Stable Diffusion model a subject from a few pictures; the result is a file of a few KB.

    accelerate launch train_dreambooth_atoms.py --instance_dir assets/dog

Exit status: 0 done; 2 something is wrong, in one sentence; 130 stopped by Ctrl-C or SIGTERM, with the
state saved.
"""

import argparse
import dataclasses
import difflib
import os
import signal
import sys
import typing
from typing import Any, NoReturn

from atomdiff.errors import BaseError, ImageError, Interrupted, SettingsError, sentence_of
from atomdiff.training import accelerate_launch
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


class Parser(argparse.ArgumentParser):
    """Refuses flags that it does not know, and says which one was probably meant."""

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
        _fail(f"{message}{end} --help lists all flags.")


def build_parser() -> Parser:
    """One flag for every field of TrainingSettings, with diffusers' names."""
    paragraphs = (__doc__ or "").split("\n\n")
    parser = Parser(
        usage="%(prog)s --instance_dir FOLDER [flags]",
        description=paragraphs[0],
        epilog=paragraphs[-1],
        allow_abbrev=False,
    )
    group: Any = parser
    for item in dataclasses.fields(TrainingSettings):
        if item.name in GROUPS:
            group = parser.add_argument_group(GROUPS[item.name])
        names = [f"--{name}" for name in (item.name, *item.metadata["aliases"])]
        kind = (typing.get_args(item.type) or (item.type,))[0]
        help_text = item.metadata["help"].replace("%", "%%")
        options: dict[str, Any] = {"dest": item.name, "default": argparse.SUPPRESS, "help": help_text}
        if kind is bool:
            options["help"] += f" (default: {'on' if item.default else 'off'})"
            group.add_argument(*names, action=argparse.BooleanOptionalAction, **options)
            if item.name == "with_prior_preservation":
                group.add_argument(
                    "--no_prior", dest=item.name, action="store_false", default=argparse.SUPPRESS,
                    help="the same as --no-with_prior_preservation",
                )  # fmt: skip
            continue
        if item.metadata["choices"]:
            options["choices"] = item.metadata["choices"]
        if item.default not in (None, ""):
            options["help"] += f" (default: {item.default})"
        group.add_argument(
            *names, type=kind, metavar=None if "choices" in options else kind.__name__.upper(), **options
        )
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Parse, train, and turn every foreseen error into one sentence."""
    given = vars(build_parser().parse_args(arguments))
    try:
        refuse_beside_size(given)
        settings = TrainingSettings(**given)
        launch = accelerate_launch.detect()
        if launch.processes > 1:
            status = accelerate_launch.run_all(launch, accelerate_launch.this_command())
            _explain_launcher(status)
            sys.exit(status)
        import torch  # late, like what follows: it takes seconds to load

        from atomdiff.training.run import fit
        from atomdiff.training.terminal import Terminal

        if launch.threads:
            torch.set_num_threads(launch.threads)
        with Terminal() as terminal:
            fit(settings, reporter=terminal)
    except Interrupted as stopped:
        _fail(str(stopped), 130)
    except KeyboardInterrupt:
        _fail("Stopped before the first step; class pictures drawn so far are kept for the next run.", 130)
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        alike = isinstance(error, (SettingsError, ImageError, BaseError))  # found by every process
        _fail(sentence, everyone=not alike)


def _fail(sentence: str, status: int = 2, everyone: bool = False) -> NoReturn:
    """Print one sentence and exit; of several processes the first, unless the trouble may be another's."""
    rank = int(os.environ.get("RANK", "0"))
    if rank == 0 or everyone:
        who = f"process {rank}: " if rank else ""
        print(f"{who}{'' if status == 130 else 'error: '}{sentence}", file=sys.stderr, flush=True)
    if "RANK" not in os.environ:
        _explain_launcher(status)
    sys.exit(status)


def _explain_launcher(status: int) -> None:
    """`accelerate launch` puts a traceback of its own below whatever fails: say so first."""
    if status == 2 and accelerate_launch.adds_traceback():
        print(
            "(What follows is accelerate's own report of exit status 2; accelerate launch -q leaves it out.)",
            file=sys.stderr,
            flush=True,
        )


def _as_ctrl_c(number: int, frame: Any) -> NoReturn:
    """SIGTERM before the first step; from then on training handles it."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    if "RANK" not in os.environ:  # one of several must end at once, even while it waits for the others
        signal.signal(signal.SIGTERM, _as_ctrl_c)
    main()
