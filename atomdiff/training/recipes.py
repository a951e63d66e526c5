"""Named recipes: what is trained, and how its file is written. One table for the command line, the API, the
studio, `--size` and the pages.

A recipe is chosen by name, `--recipe atoms`; every part of it can be given by its own flag besides, and what
is left open (None) is as the recipe has it. `LADDER` are the recipes by what they cost, the best first, of
which `--size` takes the first that fits; `python -m benchmarks.size` trains and judges all of them.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from atomdiff.core.spec import AtomSpec
from atomdiff.errors import SettingsError

UNITS = {"": 1, "b": 1, "kb": 1000, "kib": 1024, "mb": 1000**2, "mib": 1024**2}
DC = AtomSpec(linear_atoms="attn2_kvo")
"""Dc on keys, values and outputs: on the queries too the file is a fifth larger for nothing
(`python -m benchmarks.tricks`)."""
CHOSEN = (*(item.name for item in fields(AtomSpec)), "train_token", "num_vectors", "precision")
"""The training settings that a recipe fills and --size chooses."""


@dataclass(frozen=True)
class Recipe:
    """What is trained: the atoms of `spec`, and so many `vectors` of the trigger (0: it is not trained);
    the number format of the file; whether class pictures pay."""

    name: str
    about: str
    spec: AtomSpec
    vectors: int = 2
    precision: str = "int4"
    with_prior_preservation: bool = True

    def chosen(self) -> dict[str, Any]:
        """The training settings of CHOSEN, by name."""
        trigger = {"train_token": self.vectors > 0, "num_vectors": max(1, self.vectors)}
        return asdict(self.spec) | trigger | {"precision": self.precision}

    def settings(self) -> dict[str, Any]:
        """All training settings that the recipe decides, by name."""
        return self.chosen() | {"with_prior_preservation": self.with_prior_preservation}

    def __str__(self) -> str:
        """In a line, for people."""
        spec, parts = self.spec, []
        if spec.num_atoms:
            groups = f"{spec.channel_groups} channel groups" if spec.channel_groups else "each channel"
            beta = f" m1={spec.second_atoms} for {groups}" if spec.conv_family == "recursive" else ""
            parts.append(f"atoms m={spec.num_atoms}{beta}")
        if spec.linear_atoms != "none":
            parts.append(f"Dc kc={spec.linear_block} on {spec.linear_atoms}")
        if self.vectors:
            parts.append("word" if self.vectors == 1 else f"word of {self.vectors} vectors")
        return " + ".join(parts) + f", {self.precision}"


def _recursive(name: str, groups: int, about: str = "") -> Recipe:
    """Recursive atoms with a β for each of so many groups of channels, 0 for each channel, beside Dc."""
    return Recipe(name, about, replace(DC, conv_family="recursive", channel_groups=groups))


WORD = Recipe(
    "word",
    "the trigger's two vectors alone (textual inversion)",
    AtomSpec(num_atoms=0, linear_atoms="none"),
    with_prior_preservation=False,
)
ATOMS = Recipe("atoms", "the word, and nine atoms of every 3x3 convolution", AtomSpec(linear_atoms="none"))
ATOMS_DC = Recipe("atoms+dc", "the same, and Dc on k, v and out of cross-attention in blocks of 4", DC)
RECURSIVE = _recursive(
    "recursive", 16, "the same, each atom made of others, a mix for each of 16 channel groups"
)

RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in (WORD, ATOMS, ATOMS_DC, RECURSIVE)}
DEFAULT = ATOMS_DC

LADDER = (
    _recursive("recursive, each channel", 0),
    _recursive("recursive, 64 groups", 64),
    RECURSIVE,
    ATOMS_DC,
    ATOMS,
    WORD,
)
"""The best first: a budget takes the first whose file is small enough."""


def recipe_named(name: str) -> Recipe:
    """Raises SettingsError for a name that is none."""
    if name not in RECIPES:
        raise SettingsError(f"--recipe is one of {', '.join(RECIPES)}, not {name[:40]!r}.")
    return RECIPES[name]


def parse_size(size: str | int) -> int:
    """Bytes: `8KB`, `2.5 MB`, `10000`. KB is 1000 bytes and KiB 1024, so that a file of 8 KB has at most 8 KB
    however they are counted. Raises SettingsError."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?) ?([a-z]{0,3})", str(size).strip().lower(), re.ASCII)
    size_in_bytes = int(float(found[1]) * UNITS.get(found[2], 0)) if found else 0
    if size_in_bytes < 1:
        raise SettingsError(
            f"--size must be a number of bytes, as 8KB, 256KB or 10000, but {size!r} was given."
        )
    return size_in_bytes


def refuse_beside_size(given: Mapping[str, Any]) -> None:
    """Among settings that were given, --size stands without those that it chooses. Raises SettingsError."""
    chosen = [f"--{name}" for name in given if name in ("recipe", *CHOSEN)]
    if chosen and given.get("size", "") != "":
        raise SettingsError(
            f"--size {given['size']} chooses {' and '.join(chosen)} by itself; drop --size to choose by hand."
        )
