"""How long the decompositions of a Stable Diffusion 1.5-shaped UNet take, and what they are worth.

For each family: seconds until its layers stand in the model, what of the weights the decomposition misses,
and the share of zeros among the coefficients. A family with a closed form misses nothing that it moves in:
the frozen weight is kept as it is. That UNet has random weights, in which there is nothing to be found, so
the second table is of the pocket model's, over several λ. Checked are seconds or, where other work keeps the
machine busy and they are more, CPU seconds, of which a quiet machine takes no more than that.

    python -m benchmarks.decompose --docs --check
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import torch
from torch import nn

from atomdiff.base.stable_diffusion import load_base
from atomdiff.core import inject, sparse
from atomdiff.core.families import SpatialFamily
from atomdiff.core.inject import AtomSpec
from benchmarks.report import Target, machine, markdown, show, verdict, write_section, written

SPECS = {
    "atoms m=9, dct": AtomSpec(linear_atoms="none"),
    "atoms m=6, svd": AtomSpec(num_atoms=6, basis="svd", linear_atoms="none"),
    "recursive, 8 groups": AtomSpec(conv_family="recursive", channel_groups=8, linear_atoms="none"),
    "atoms + Kronecker": AtomSpec(linear_family="kronecker", linear_block=8),
    "sparse m=9": AtomSpec(conv_family="sparse", linear_atoms="none"),
}
LIMITS = {"atoms": 5.0, "recursive": 5.0, "sparse": 300.0}
SPARSITIES, DICTIONARIES = (0.02, 0.05, 0.2), (9, 12)
QUALITY = "‖W − αD‖ / ‖W‖", "zeros in α"
TIMES = ("family", "layers", "seconds", "CPU s", *QUALITY)
CODES = ("atoms", "λ", *QUALITY)


def main() -> None:
    """Prints the tables; with --check, exits 1 where a decomposition takes longer than it may."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--docs", action="store_true", help="write the section of docs/results.md")
    parser.add_argument("--check", action="store_true", help="exit 1 if a limit is missed")
    parser.add_argument("--layers", default="", help="regular expression: only these convolutions")
    options = parser.parse_args()
    rows, targets = _times(options.layers)
    show(f"Decomposing ({machine()})", TIMES, rows)
    codes = _codes()
    show("Sparse codes of the pocket model's weights", CODES, codes)
    if options.docs:
        text = (
            f"## Decompositions\n\n{written()}.\n\n"
            f"Of a random-weight UNet of Stable Diffusion 1.5's shape:\n\n{markdown(TIMES, rows)}\n"
            f"Sparse codes of the pocket model's weights:\n\n{markdown(CODES, codes)}"
        )
        write_section(Path("docs/results.md"), "decompose", text)
    verdict(targets, options.check)


def _times(layers: str) -> tuple[list[tuple[str, ...]], list[Target]]:
    """Every family on the UNet of Stable Diffusion 1.5's shape."""
    unet = _unet()
    rows: list[tuple[str, ...]] = []
    targets: list[Target] = []
    for name, spec in SPECS.items():
        spec = dataclasses.replace(spec, conv_layers=layers)
        start, used = time.perf_counter(), time.process_time()
        attached = inject.attach(
            unet, spec, progress=_tell if spec.conv_family == "sparse" else lambda *_: None
        )
        seconds, used = time.perf_counter() - start, time.process_time() - used
        taken = str(len(attached.layers)), f"{seconds:.2f}", f"{used:.2f}"
        rows.append((name, *taken, *_quality(attached)))
        attached.detach()
        targets.append(Target(name, min(seconds, used), high=LIMITS[spec.conv_family], unit="s"))
    return rows, targets


def _codes() -> list[tuple[str, ...]]:
    """What a learned dictionary makes of trained weights."""
    unet, rows = load_base("pocket").unet, list[tuple[str, ...]]()
    for m in DICTIONARIES:
        for sparsity in SPARSITIES:
            spec = AtomSpec(conv_family="sparse", num_atoms=m, sparsity=sparsity, linear_atoms="none")
            attached = inject.attach(unet, spec)
            rows.append((f"m={m}", f"{sparsity:g}", *_quality(attached)))
            attached.detach()
    return rows


def _tell(done: int, total: int) -> None:
    print(f"\r  {done} of {total} layers", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _quality(attached: inject.Attached) -> tuple[str, str]:
    """Means over the convolutions of what is missed and of the zeros."""
    found: list[tuple[float, float]] = []
    for layer in attached.layers.values():
        if not isinstance(layer.base_layer, nn.Conv2d) or layer.base_layer.kernel_size == (1, 1):
            continue
        weight, family = layer.base_layer.weight, layer.family
        assert isinstance(family, SpatialFamily)
        with torch.no_grad():
            found.append(sparse.quality(weight, family.coefficients(weight), family.basis))
    missed, zeros = zip(*found, strict=True)
    return f"{sum(missed) / len(found):.1%}", f"{sum(zeros) / len(found):.0%}"


def _unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    return unet.requires_grad_(False)


if __name__ == "__main__":
    main()
