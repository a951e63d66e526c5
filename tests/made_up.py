"""Concepts made up from a seed, of every kind that a file may hold, and a picture to carry them."""

from __future__ import annotations

import functools
import io
import random
from typing import Any

import numpy as np
import torch

from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import BasePassport
from atomdiff.core.spec import AtomSpec

SCRIPTS = (
    "abcXYZ019 _-.,:;=&%+#/'\"\\<>{}[]|",
    "äöüßéñçÅ",
    "Жщыω",
    "犬猫の写真",
    "🐕🦊✨",
    "\u200d\u0301\u202e ",
)
FAMILIES = ("atoms", "atoms", "recursive", "sparse")
NUMBERS = (1e-7, 1e-4, 0.02, 1.0, 300.0)  # magnitudes


def random_concept(dice: random.Random) -> Concept:
    """A concept that could be anybody's: small, of any family, with texts in any script."""
    spec, shapes = _layers(dice)
    rng = np.random.default_rng(dice.getrandbits(32))
    scale = dice.choice(NUMBERS)
    tensors = {name: torch.from_numpy(_numbers(rng, shape, scale)) for name, shape in shapes.items()}
    bases = {}
    if spec.basis == "svd" or spec.conv_family == "sparse":
        stored = {name: shape for name, shape in shapes.items() if name.startswith("conv")}
        bases = {name: torch.from_numpy(_numbers(rng, shape, 1.0)) for name, shape in stored.items()}
    names = ("", "pocket", "sd15", "stabilityai/stable-diffusion-xl-base-1.0", "mein Modell")
    return Concept(
        atoms=tensors,
        bases=bases,
        layers=f"{dice.getrandbits(32):08x}",
        spec=spec,
        base=BasePassport(
            f"{dice.choice(('pocket', 'sd1', 'sd2', 'sdxl'))}-{dice.getrandbits(32):08x}",
            tuple(rng.normal(size=16).tolist()),
            dice.choice(names),
        ),
        trigger=random_text(dice, 12),
        class_word=random_text(dice, 12),
        name=random_text(dice, 40),
        training={random_text(dice, 8) or "steps": _value(dice) for _ in range(dice.randrange(8))},
        extra={"x." + random_text(dice, 9): random_text(dice, 60) for _ in range(dice.randrange(3))},
    )


def random_text(dice: random.Random, most: int) -> str:
    """Up to `most` letters of one or several scripts."""
    letters = "".join(dice.sample(SCRIPTS, dice.randint(1, len(SCRIPTS))))
    return "".join(dice.choice(letters) for _ in range(dice.randrange(most)))


def _layers(dice: random.Random) -> tuple[AtomSpec, dict[str, tuple[int, ...]]]:
    """What is trained, and the shapes of its tensors."""
    if dice.random() < 0.05:
        return AtomSpec(num_atoms=0, linear_atoms="none"), {"token": (dice.randint(1, 4), 1, 12)}
    kernels = dice.choice(([], ["3x3"], ["3x3"], ["1x3", "3x3"], ["3x3", "5x5", "7x7"]))
    linear = not kernels or dice.random() < 0.6
    options: dict[str, Any] = {"num_atoms": 0, "linear_atoms": "none", "linear_block": dice.choice((1, 2, 3))}
    if kernels:
        options |= {"num_atoms": dice.randint(1, 9), "conv_family": dice.choice(FAMILIES)}
        options |= {"conv_layers": dice.choice(("", r"^(down|up)_blocks\.\d.*conv[12]$", "mid & 50 %"))}
        options |= {"basis": "svd"} if options["conv_family"] == "atoms" and dice.random() < 0.2 else {}
        options |= {"coef_block": 2} if dice.random() < 0.15 else {}
    if linear:
        options |= {"linear_atoms": dice.choice(("attn2", "attn2_kv", "attn", "all", r"to_(k|v)$"))}
    if options.get("conv_family") == "recursive":
        options |= {"second_atoms": dice.randint(1, 3), "channel_groups": dice.randint(0, 3)}
    spec = AtomSpec(**options)
    return spec, _shapes(spec, kernels, dice)


def _shapes(spec: AtomSpec, kernels: list[str], dice: random.Random) -> dict[str, tuple[int, ...]]:
    """Tensors that the spec may have, of a few layers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for kernel in kernels:
        k2 = int(kernel[0]) * int(kernel[2])
        name, layers = "" if len(kernels) == 1 else f".{kernel}", dice.randint(1, 6)
        m, m1 = spec.atoms_of(k2), spec.second_atoms
        shapes[f"conv{name}"] = (layers, m, k2)
        if spec.conv_family == "recursive":
            shapes[f"conv{name}"] = (layers, m * m1, k2)
            shapes[f"beta{name}"] = (layers * max(1, spec.channel_groups), m, m1)
    if spec.coef_block:
        shapes["coef"] = (dice.randint(1, 4), 4, 4)
    if spec.linear_atoms != "none":
        shapes["linear"] = (dice.randint(1, 6), spec.linear_block**2, spec.linear_block**2)
    if dice.random() < 0.2:
        shapes["token"] = (dice.randint(1, 2), 1, 12)
    return shapes


def _numbers(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Numbers as training leaves them, some of them (and some layers) zero or far larger than the rest."""
    made = rng.normal(size=shape) * scale
    made *= rng.choice([0.0, 1.0, 1.0, 1.0, 30.0], size=shape) if rng.random() < 0.3 else 1.0
    made *= rng.choice([0.0, 1.0, 1.0], size=(shape[0], 1, 1))
    return made.astype(np.float32)


def _value(dice: random.Random) -> str | int | float:
    return dice.choice(
        [
            dice.randint(-5, 10**6),
            dice.uniform(-1, 1) * 10 ** dice.randint(-12, 12),
            random_text(dice, 30),
            dice.choice(("0", "1e5", "-3.25", '"', "007", "", "nan")),
        ]
    )


@functools.cache
def picture() -> bytes:
    """A small PNG to carry concepts."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (20, 120, 110)).save(buffer, "PNG")
    return buffer.getvalue()
