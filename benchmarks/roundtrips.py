"""Whether a concept is the same bytes whichever way it travels: file, card, QR codes, chat text, JSON.

    python -m benchmarks.roundtrips [--cases 10000] [--seed 0] [--check]

Each case is a concept made up from a seed (families, kernels, sizes, magnitudes and texts in any script),
saved in one of the four precisions. Its file must come back byte for byte from every form and from a chain
of all of them; what is read from it, saved again in the same precision, must give the same bytes; and its
numbers must be those that were saved, as closely as the precision holds them. With --check the exit status
is 1 if a target is missed, and the last line names those.
"""

from __future__ import annotations

import argparse
import functools
import io
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import BasePassport
from atomdiff.core.spec import AtomSpec
from atomdiff.files import card, qr, qr_image, quantization, text
from atomdiff.files.safetensors_file import from_bytes, to_bytes
from benchmarks import report

PICTURES_EVERY = 100  # every so many cases the QR codes are drawn and read as a picture too
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


# ------------------------------------------------------------------------------------------ the ways


@functools.cache
def picture() -> bytes:
    """A small PNG to carry concepts."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (20, 120, 110)).save(buffer, "PNG")
    return buffer.getvalue()


def by_card(data: bytes, dice: random.Random) -> bytes:
    """Into a picture and out of it."""
    return card.extract(card.embed(picture(), data)) or b""


def by_codes(data: bytes, dice: random.Random) -> bytes:
    """Into the frames of QR codes, which arrive in any order, some twice."""
    frames = [
        frame for frame in map(qr.parse_frame, qr.split(data, dice.choice((200, qr.COMFORTABLE)))) if frame
    ]
    frames += dice.choices(frames, k=dice.randrange(4))
    dice.shuffle(frames)
    return qr.join(frames)


def by_text(data: bytes, dice: random.Random) -> bytes:
    """Into a line that a chat program wraps and quotes."""
    line = text.to_text(data)
    width = dice.choice((40, 76, len(line)))
    return text.from_text("\n".join("> " + line[i : i + width] for i in range(0, len(line), width)))


def by_json(data: bytes, dice: random.Random) -> bytes:
    """Into JSON."""
    return text.from_json(text.to_json(data))


def by_pictures(data: bytes, dice: random.Random) -> bytes:
    """Onto a sheet of QR codes, which is photographed without a fault."""
    return qr_image.read([qr_image.sheet(data, "", 3)])


def by_all(data: bytes, dice: random.Random) -> bytes:
    """All ways, one after another, in any order."""
    for way in dice.sample((by_card, by_codes, by_text, by_json), 4):
        data = way(data, dice)
    return data


WAYS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "card": by_card,
    "QR codes": by_codes,
    "chat text": by_text,
    "JSON": by_json,
    "all of these in a row": by_all,
}


def kept(concept: Concept, again: Concept, dtype: str) -> bool:
    """Whether the texts are the same, and the numbers as near as the precision promises."""
    fields = ("trigger", "class_word", "name", "extra", "spec", "layers", "base")
    same = all(getattr(concept, field) == getattr(again, field) for field in fields)
    same = same and list(concept.training.items()) == list(again.training.items())
    for name, numbers in concept.atoms.items():
        held = again.atoms[name]
        if dtype == "fp32":
            same = same and torch.equal(held, numbers)
        elif dtype == "fp16":
            same = same and torch.equal(held, numbers.half().float())
        else:  # error feedback moves numbers by some steps, and fp16 rounds scales to 2**-25
            peaks = numbers.abs().amax((1, 2), keepdim=True)
            share = 0.25 if dtype == "int8" else 1.5
            same = same and bool(((held - numbers).abs() <= share * peaks + 128 * 2.0**-25).all())
    return same


def case(seed: int) -> dict[str, bool]:
    """What held for the concept of this seed: a truth for each way, "idempotent" and "numbers"."""
    dice = random.Random(seed)
    concept, dtype = random_concept(dice), dice.choice(quantization.PRECISIONS)
    data = to_bytes(concept, dtype)
    again = from_bytes(data)
    held = {name: way(data, dice) == data for name, way in WAYS.items()}
    held["read and saved again"] = to_bytes(again, dtype) == data
    held["numbers and texts"] = kept(concept, again, dtype)
    if seed % PICTURES_EVERY == 0:
        held["a picture of the QR codes"] = by_pictures(data, dice) == data
    return held


def campaign(cases: int, seed: int = 0) -> tuple[dict[str, int], dict[str, list[int]]]:
    """How many cases each way had, and the seeds of those that it failed (an exception fails all)."""
    counts: dict[str, int] = {}
    failed: dict[str, list[int]] = {}
    for i in range(seed, seed + cases):
        try:
            held = case(i)
        except Exception as error:
            print(f"case {i}: {type(error).__name__}: {error}", file=sys.stderr)
            held = {type(error).__name__: False}
        for name, fine in held.items():
            counts[name] = counts.get(name, 0) + 1
            if not fine:
                failed.setdefault(name, []).append(i)
    return counts, failed


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    options = parser.parse_args()
    start = time.process_time()
    counts, failed = campaign(options.cases, options.seed)
    each = 1000 * (time.process_time() - start) / options.cases
    rows = [
        (name, f"{count:,}", f"{count - len(failed.get(name, [])):,}", str(failed.get(name, [])[:5] or ""))
        for name, count in counts.items()
    ]
    report.show(
        f"Round trips, {each:.1f} ms a case ({report.machine()})",
        ("way", "cases", "exact", "seeds of failures"),
        rows,
    )
    wrong = float(sum(map(len, failed.values())))
    report.verdict([report.Target("round trips that are not exact", wrong, high=0)], options.check)


if __name__ == "__main__":
    main()
