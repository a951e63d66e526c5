"""Every method of the benchmark, and those of its quick form."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from atomdiff.errors import SettingsError

from .handmade import BASE, FULL, HANDMADE
from .ours import OURS, TOOL
from .peers import PEERS
from .protocol import Method

METHODS = (BASE, FULL, *OURS, *PEERS, *HANDMADE)
QUICK = (BASE.name, FULL.name, TOOL.name, "atoms m=9", "LoRA r=1, attention", "textual inversion")


def chosen(patterns: Sequence[str]) -> list[Method]:
    """The methods whose name is, or matches (`LoRA*`), any of the patterns; all if there are none.

    `ours` and `peers` stand for their families. Raises SettingsError for a pattern that matches nothing.
    """
    if not patterns:
        return list(METHODS)
    families = {"ours": "ours", "peers": "peer"}
    for pattern in patterns:
        if pattern not in families and not any(fnmatchcase(m.name, pattern) for m in METHODS):
            names = "; ".join(m.name for m in METHODS)
            raise SettingsError(f"No method is called {pattern!r}: choose ours, peers, or among {names}.")
    return [
        m for m in METHODS if any(families.get(p) == m.family or fnmatchcase(m.name, p) for p in patterns)
    ]
