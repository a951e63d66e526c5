#!/usr/bin/env python
"""Teach a Stable Diffusion model a subject from a few pictures; the result is a file of a few KB.

    accelerate launch train_dreambooth_atoms.py --instance_dir assets/dog

Exit status: 0 done; 2 something is wrong, in one sentence; 130 stopped by Ctrl-C or SIGTERM, with the
state saved.
"""

import os
import signal
from typing import Any, NoReturn

from atomdiff.cli import train, train_flags


def build_parser() -> train_flags.Parser:
    paragraphs = (__doc__ or "").split("\n\n")
    return train_flags.build_parser(paragraphs[0], paragraphs[-1])


def main(arguments: list[str] | None = None) -> None:
    train.main(build_parser(), arguments)


def _as_ctrl_c(number: int, frame: Any) -> NoReturn:
    """SIGTERM before the first step; from then on training handles it."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    if "RANK" not in os.environ:  # one of several must end at once, even while it waits for the others
        signal.signal(signal.SIGTERM, _as_ctrl_c)
    main()
