"""Which layers a sparse file holds: one bit a layer, in the field `present` of its spec.

    present=conv:52:ffe07fc000180,linear:64:8000000000000001

FAMILY:LAYERS:BITS for every family but the bases, which lie as their convolutions do; the first layer is the
highest bit of the first hex digit. A layer is left out if it is all zeros as stored, so the bits follow from
the numbers. `spec` is where a reader that does not know the field refuses the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from atomdiff.errors import ConceptError
from atomdiff.files.header import MAX_NUMBERS

if TYPE_CHECKING:
    from atomdiff.concept.contents import Contents

Kept = dict[str, np.ndarray]
"""Family -> one truth value a layer."""

FIELD = "present"
_ITEM = re.compile(r"([a-z][a-z0-9_.]{0,30}):([1-9]\d{0,3}):([0-9a-f]{1,2500})")
_SMALLEST = 2.0**-25  # what is no larger is rounded to 0 by fp16, and by int8 and int4 with their fp16 scales


def kept_layers(concept: Contents, dtype: str) -> Kept:
    """The layers that the file of a trimmed concept holds in `dtype`: those that are not all zero there, and
    of a family of nothing else the first, so that its shape is known. Empty if it holds all of all."""
    if not concept.trimmed:
        return {}
    floor = 0.0 if dtype == "fp32" else _SMALLEST
    kept = {key: np.abs(np.asarray(a)).max((1, 2)) > floor for key, a in concept.atoms.items()}
    for layers in kept.values():
        layers[0] |= not layers.any()
    return {} if all(layers.all() for layers in kept.values()) else kept


def to_text(kept: Kept) -> str:
    """The value of the field."""
    return ",".join(f"{key}:{len(kept[key])}:{_bits(kept[key])}" for key in sorted(kept))


def from_text(text: str) -> Kept:
    """Inverse of `to_text`. Raises ConceptError on anything that it does not write."""
    found = [_ITEM.fullmatch(item) for item in text[: 2**16].split(",")]
    kept = {}
    for item in filter(None, found):
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(item[3] + "0" * (len(item[3]) % 2)), np.uint8))
        kept[item[1]] = bits[: int(item[2])].astype(bool)
    sound = len(kept) == len(found) and to_text(kept) == text and all(map(np.any, kept.values()))
    if not sound or all(map(np.all, kept.values())):
        raise ConceptError(
            f"The file says which layers it holds in a way that cannot be read ({text[:60]!r}): it was "
            "altered, get it again."
        )
    return kept


def drop(tensors: Mapping[str, np.ndarray], kept: Kept) -> dict[str, np.ndarray]:
    """The layers that a file holds, of each tensor."""
    return (
        {name: numbers[kept[_family(name)]] for name, numbers in tensors.items()} if kept else dict(tensors)
    )


def expand(tensors: Mapping[str, np.ndarray], kept: Kept) -> dict[str, np.ndarray]:
    """Inverse of `drop`: zeros where a layer was left out. Raises ConceptError if the tensors are not those
    that `kept` tells of."""
    if not kept:
        return dict(tensors)
    if {_family(name) for name in tensors} != set(kept):
        raise ConceptError(
            "The file does not say of each of its tensors which layers it holds: it was altered."
        )
    if sum(len(kept[_family(name)]) * math.prod(a.shape[1:]) for name, a in tensors.items()) > MAX_NUMBERS:
        raise ConceptError("The file stands for more numbers than a concept has: it was altered.")
    made = {}
    for name, numbers in tensors.items():
        layers = kept[_family(name)]
        hollow = ~np.abs(numbers).max((1, 2), initial=0).astype(bool)
        spared = name.startswith("basis") or (layers[0] and layers.sum() == 1)
        if len(numbers) != layers.sum() or (hollow.any() and not spared):
            raise ConceptError(
                f"The layers {name!r} are not those that the file says it holds: it was altered."
            )
        made[name] = np.zeros((len(layers), *numbers.shape[1:]), numbers.dtype)
        made[name][layers] = numbers
    return made


def _family(name: str) -> str:
    return name.replace("basis", "conv")


def _bits(layers: np.ndarray) -> str:
    return np.packbits(layers).tobytes().hex()[: -(-len(layers) // 4)]
