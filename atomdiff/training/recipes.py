"""The capacity dial: from a size in bytes to what is trained.

LADDER is the order in which bytes are spent. `python -m benchmarks.size` trains and judges every rung.
"""

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from atomdiff.core.spec import AtomSpec
from atomdiff.errors import SettingsError

UNITS = {"": 1, "b": 1, "kb": 1000, "kib": 1024, "mb": 1000**2, "mib": 1024**2}
CHOSEN = (*(item.name for item in fields(AtomSpec)), "train_token", "num_vectors", "precision")
"""The training settings that a rung fills."""


@dataclass(frozen=True)
class Rung:
    """One recipe: what is trained, the vectors of the trigger (0: it is not trained), the number format of
    the file."""

    spec: AtomSpec
    vectors: int
    precision: str

    def settings(self) -> dict[str, Any]:
        """The same as training settings, by name."""
        trigger = {"train_token": self.vectors > 0, "num_vectors": max(1, self.vectors)}
        return asdict(self.spec) | trigger | {"precision": self.precision}

    def __str__(self) -> str:
        """In a line, for people."""
        spec, parts = self.spec, []
        if spec.num_atoms:
            beta = f" m1={spec.second_atoms} for {spec.channel_groups} channel groups"
            parts.append(f"atoms m={spec.num_atoms}{beta if spec.conv_family == 'recursive' else ''}")
        if spec.linear_atoms != "none":
            family = {"blocks": "Dc", "shared": "shared Dc", "kronecker": "Kronecker"}[spec.linear_family]
            numbers = f" of {spec.shared_numbers} a layer" if spec.linear_family == "shared" else ""
            parts.append(f"{family} kc={spec.linear_block}{numbers} on {spec.linear_atoms}")
        if self.vectors:
            parts.append("trigger" if self.vectors == 1 else f"trigger of {self.vectors}")
        return " + ".join(parts) + f", {self.precision}"


def _rung(
    precision: str,
    m: int,
    layers: str,
    family: str,
    kc: int,
    vectors: int = 2,
    beta: tuple[int, int] | None = None,
) -> Rung:
    recursive: dict[str, Any] = {}
    if beta is not None:
        recursive = {"conv_family": "recursive", "channel_groups": beta[0], "second_atoms": beta[1]}
    spec = AtomSpec(num_atoms=m, linear_atoms=layers, linear_family=family, linear_block=kc, **recursive)
    return Rung(spec, vectors, precision)


def _shared(numbers: int, vectors: int = 2) -> Rung:
    """So many numbers a layer in the pool of cross-attention."""
    spec = AtomSpec(num_atoms=0, linear_family="shared", linear_block=8, shared_numbers=numbers)
    return Rung(spec, vectors, "int4")


# Best first: a budget takes the first rung whose file is small enough. What is larger than the first was no
# better (atoms with a β for each channel, 1.2 MB on SD 1.5).
LADDER = (
    #     numbers  m  linear layers, family, kc   (vectors; groups of channels with a β; m1)
    _rung("int8", 9, "attn", "blocks", 4, beta=(128, 3)),
    _shared(1024),
    _shared(512),
    _shared(256),
    _shared(128),
    _shared(64),
    _shared(32),
    _shared(16, vectors=1),
    _shared(4, vectors=1),
    _rung("int4", 0, "attn2_kv", "kronecker", 2, vectors=0),
)


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
