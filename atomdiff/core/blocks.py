"""The blocks of a UNet, down, mid and up: which layer belongs to which, and a strength for each.

On the way down a UNet reads what is there, in the middle it composes, on the way up it paints; a concept may
be wanted more in one than in another. ΔW is linear in the strength layer by layer, so that is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

from atomdiff.errors import SettingsError

BLOCKS = ("down", "mid", "up")
OTHER = "other"  # of layers in a model that is no UNet
_PLACES: dict[str, str] = {
    "conv_in": "down",
    "down_blocks": "down",
    "mid_block": "mid",
    "up_blocks": "up",
    "conv_out": "up",
}

Strength = float | Mapping[str, float]
"""Of a concept: one number, or one a block, 1 for a block that is not named."""

T = TypeVar("T")


def block_of(layer: str) -> str:
    """The block of a layer by its diffusers name: down (with conv_in), mid, up (with conv_out), or other."""
    return _PLACES.get(layer.split(".")[0], OTHER)


def level_of(layer: str) -> str:
    """Where in its block a layer is, for people: in, down 0, ..., mid, up 0, ..., out."""
    head, *rest = layer.split(".")
    block = block_of(layer)
    if head in ("conv_in", "conv_out"):
        return head.removeprefix("conv_")
    return f"{block} {rest[0]}" if head in ("down_blocks", "up_blocks") else block


def in_flow_order(layers: Mapping[str, T]) -> dict[str, T]:
    """Layers as a picture meets them; the UNet itself lists attentions before resnets, and mid at the end."""
    return dict(sorted(layers.items(), key=lambda item: _place(item[0])))


def _place(layer: str) -> tuple[int, int, int, bool]:
    """Block, level, index within the level (resnet and attention of one index together), attention."""
    parts = [*layer.split("."), "", ""]
    head, rest = parts[0], parts[1:]
    block = list(_PLACES).index(head) if head in _PLACES else len(_PLACES)
    level = int(rest.pop(0)) if head in ("down_blocks", "up_blocks") else 0
    paired = rest[0] in ("resnets", "attentions")  # samplers come after all of them
    return block, level, int(rest[1]) if paired else 10**6, rest[0] == "attentions"


def parse_strength(text: str) -> Strength:
    """`0.8`, or `down=0.5,up=1`. Raises SettingsError for anything else and numbers that are not finite."""
    parts = [part.partition("=") for part in text.replace(",", " ").split()]
    try:
        if len(parts) == 1 and not parts[0][1]:
            made: Strength = float(parts[0][0])
        else:
            made = {name: float(number) for name, _, number in parts}
    except ValueError:
        made = {}
    if isinstance(made, dict) and (not made or len(made) != len(parts)):
        raise SettingsError(
            f"A strength is a number (0.8), or one a block (down=0.5,up=1): not {text[:60]!r}."
        )
    return check_strength(made)


def check_strength(strength: Strength) -> Strength:
    """The strength, found usable. Raises SettingsError for an unknown block or a number not finite."""
    numbers = strength if isinstance(strength, Mapping) else {"": strength}
    for block, number in numbers.items():
        if block and block not in BLOCKS:
            raise SettingsError(f"A strength is given to the block {', '.join(BLOCKS)}, not {block[:60]!r}.")
        if not math.isfinite(number):
            raise SettingsError(f"A strength is a finite number, not {number}: 0 to 1 are usual.")
    return strength


def strength_text(strength: Strength) -> str:
    """`0.8`, or `down=0.5 mid=1 up=1`: inverse of `parse_strength`, without commas, which part concepts."""
    if isinstance(strength, Mapping):
        return " ".join(f"{block}={strength.get(block, 1.0):g}" for block in BLOCKS)
    return f"{strength:g}"


def one_number(strength: Strength) -> float:
    """The strength where only one will do. Raises SettingsError for one a block."""
    if isinstance(strength, Mapping):
        raise SettingsError(f"Here a concept has one strength, not one a block ({strength_text(strength)}).")
    return strength


def of_words(strength: Strength) -> float:
    """The strength of what is outside the UNet, the trigger's embedding: 1 where each block has its own."""
    return 1.0 if isinstance(strength, Mapping) else strength


def by_strength(deltas: Mapping[str, T], strength: Strength) -> list[tuple[dict[str, T], float]]:
    """Layers with one strength each, as `inject.fold` takes them; those of strength 0 are left out."""
    check_strength(strength)
    parts: dict[float, dict[str, T]] = {}
    for layer, delta in deltas.items():
        own = strength.get(block_of(layer), 1.0) if isinstance(strength, Mapping) else strength
        if own != 0:
            parts.setdefault(float(own), {})[layer] = delta
    return [(layers, own) for own, layers in parts.items()]
