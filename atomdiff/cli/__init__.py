"""The command line: one module for each group of commands.

Thin on purpose: a command reads flags, calls the library and prints. Whatever a user can cause ends in one
sentence and exit status 2. A new module of commands is imported here, which is all that adds them.
"""

# Each adds its commands to `app`, in the order in which --help lists them.
from atomdiff.cli import draw, inspect, timeline, card, share, algebra, library, hub, grid, evaluate  # noqa: F401, I001
from atomdiff.cli import studio, serve, farm  # noqa: F401
from atomdiff.base import threads
from atomdiff.cli.common import app

threads.set_policy()  # nothing has imported PyTorch by now


def main() -> None:
    """The `atomdiff` command."""
    app()
