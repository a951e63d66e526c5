"""How long it takes to find a concept's neighbours in a folder of thousands, and whether they are right.

    python -m benchmarks.search [--files 2000] [--check]

Concepts of Stable Diffusion 1.5's shape, random but in families of alike ones, are written to a folder, half
of them with cross-attention, in fp16 and int8. The folder is searched for the relatives of some. Times are of
this process alone (CPU seconds), the disk's cache warm. With --check the exit status is 1 if a target is
missed, and the last line names those.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import BasePassport
from atomdiff.core.inject import AtomSpec
from atomdiff.files.safetensors_file import load_concept, save_concept
from atomdiff.library.similar import most_similar

from .report import Target, machine, show, verdict

BASE = BasePassport("sd1-1a2b3c4d", (0.1,) * 16, "sd15")
RELATIVES = 5  # concepts of one family: the same maps, half of their norm again in noise of their own
WITHIN = 1.0  # seconds


def fill(folder: Path, files: int) -> None:
    """Writes `files` concepts, in families of RELATIVES: FAMILY-MEMBER.safetensors."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv": (52, 9, 9), "linear": (64, 16, 16)}
    for family in range(files // RELATIVES):
        whole = family % 2 == 0
        used = {key: shape for key, shape in shapes.items() if whole or key == "conv"}
        centre = {key: torch.randn(shape, generator=generator) / 20 for key, shape in used.items()}
        concept = Concept(
            centre,
            layers="0badcafe" if whole else "0badca3e",
            spec=AtomSpec(linear_atoms="attn2" if whole else "none"),
            base=BASE,
            trigger="sks",
            class_word="dog",
            name=f"concept {family}",
            training={"steps": 300, "learning_rate": 0.001, "seed": family, "instance_prompt": "a sks dog"},
        )
        for member in range(RELATIVES):
            noise = {k: torch.randn(shape, generator=generator) / 40 for k, shape in used.items()}
            atoms = {key: centre[key] + noise[key] for key in used}
            made = replace(concept, atoms=atoms)
            save_concept(
                made, folder / f"{family}-{member}.safetensors", "fp16" if family % 4 < 2 else "int8"
            )


def search(folder: Path, name: str) -> tuple[float, float]:
    """CPU seconds of one search, and the share of the concept's relatives among its nearest."""
    start = time.process_time()
    found = most_similar(load_concept(folder / f"{name}-0.safetensors"), folder, RELATIVES)
    seconds = time.process_time() - start
    return seconds, sum(path.stem.split("-")[0] == name for path, _ in found) / RELATIVES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    a = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        fill(folder, a.files)
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        results = [search(folder, str(family)) for family in range(4)]
    seconds, right = min(s for s, _ in results), sum(share for _, share in results) / len(results)
    rows = [(i, f"{s:.2f}", f"{share:.0%}") for i, (s, share) in enumerate(results)]
    show(f"{a.files:,} concepts, {size:.0f} MB", ("search", "seconds", "relatives found"), rows)
    print(machine())
    verdict(
        [
            Target(f"search of {a.files:,} files", seconds, high=WITHIN, unit="s"),
            Target("relatives found", right, low=1.0),
        ],
        a.check,
    )


if __name__ == "__main__":
    main()
