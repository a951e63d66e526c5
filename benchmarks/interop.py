"""A concept in other tools, route by route: is what the UNet predicts what we predict, and what does it cost?

    python -m benchmarks.interop [--small] [--routes ...] [--comfyui FOLDER] [--docs] [--check]

A pipeline of SD 1.5's real shape with random weights and CLIP's vocabulary, in fp32, and a random concept as
large as trained ones are, word included. Each route is read by the library it is for: diffusers, LyCORIS,
PEFT, and with --comfyui, a checkout, ComfyUI on its small model (see `benchmarks.comfyui`). All routes take
15 GB of a disk, 11 GB of memory and ten minutes of one core; --small takes the same layout with few channels,
on which seconds and memory say little. With --check the exit status is 1 if a target is missed, and the last
line names those.
"""

from __future__ import annotations

import contextlib
import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import atomdiff
from atomdiff.base import loading, textual_inversion
from atomdiff.base.stable_diffusion import Base, load_base
from atomdiff.core.inject import fold
from atomdiff.integrations.exports import weights
from atomdiff.integrations.exports.write import ExportSettings, export

from . import comfyui
from .comfyui import apart, random_concept
from .full_size.building import CLIP_L, SD15, VAE, Kind, build
from .full_size.original_names import save_single_file
from .mixed_batch import resident_megabytes
from .report import Target, command, conclude, one_sentence

WORD = "sks"
SMALL = Kind(
    SD15 | {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1},
    ((CLIP_L | {"intermediate_size": 32, "num_hidden_layers": 1}, 0, "quick_gelu"),),
    VAE | {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1},
)
ROUTES = ("load", "models", "diff", "lora")
RANKS, MAX_ERROR = {False: 64, True: 4}, 0.5  # of LoRAs of the real shape, and of the small one
LIMIT, LOAD, SWAP = 1e-4, 0.5, 30.0
HEADERS = ("route", "read by", "MB", "load s", "RAM MB", "rank", "ΔW missed", "ε̂ from ours", "of its change")
LEGEND = f"""\
With random weights, fp32, 16 × 16 latents, the word in the prompt. *MB* is what is kept on disk (the concept
in fp16, with Dc on the queries too: one of the default recipe is a quarter of it), *load s* CPU seconds
until the pipeline can draw with it, *RAM MB* what the process grows by beside the base (a merged
model takes the base's place). *ε̂ from ours* is ‖ε̂ − ours‖ / ‖ours‖, ours being what `atomdiff.draw` folds;
*of its change* the same as a share of what the concept changes: 100% is as far off as no concept at all.
`--max-error {MAX_ERROR}` takes the least rank that misses each layer's ΔW by so much at most."""


@dataclass
class Row:
    """What is found of a route; None where it means nothing."""

    route: str
    reader: str
    eps: Tensor | None = None
    file: Path | None = None
    seconds: float | None = None
    memory: float | None = None
    rank: str = ""
    missed: float | None = None
    exact: bool = True
    difference: float | None = None


@dataclass
class Bench:
    """The random pipeline on disk, ours in memory, and what we predict without and with the concept."""

    folder: Path
    small: bool = False
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.home = build(SMALL if self.small else "sd15", self.folder / "base")
        self.base = load_base(str(self.home))
        self.dog, *self.others = (random_concept(self.base.unet, f"{WORD}{i or ''}", i) for i in range(4))
        self.plain = predicted(self.base.pipe, WORD)
        learned = textual_inversion.embeddings_of(self.base, [(self.dog, 1.0)])
        folded = fold(self.base.unet, [(self.dog.deltas(self.base.unet), 1.0)])
        with textual_inversion.added(self.base, learned), folded:
            self.ours = predicted(self.base.pipe, textual_inversion.convert_prompt(WORD, learned))

    def add(self, row: Row) -> None:
        self.rows.append(row)
        if row.eps is not None:
            row.difference, row.eps = apart(row.eps, self.ours), None
        print(f"{row.route}: {row.difference:.1e}", flush=True)

    def exported(self, kind: str, base: Base | None = None, **given: Any) -> Path:
        """The file, or folder, of the concept as `atomdiff export` writes it."""
        name = "-".join(map(str, (kind, *(value for value in given.values() if not isinstance(value, Path)))))
        out = self.folder / (name if kind == "diffusers" else f"{name}.safetensors")
        settings = ExportSettings(kind, dtype="fp32", **given)
        export(self.dog, base or self.base, settings, out, tell=lambda line: None)
        return out


@torch.no_grad()
def predicted(pipe: Any, word: str) -> Tensor:
    """ε̂ for fixed noise in the middle of the way and the prompt "a WORD dog", (1, 4, 16, 16)."""
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    hidden = pipe.encode_prompt(f"a {word} dog", "cpu", 1, False)[0]
    return pipe.unet(noise, 500, hidden, return_dict=False)[0]


@contextlib.contextmanager
def costs(row: Row) -> Iterator[None]:
    """CPU seconds and memory of what is done within."""
    gc.collect()
    before, start = resident_megabytes(), time.process_time()
    yield
    row.seconds = time.process_time() - start
    gc.collect()
    row.memory = resident_megabytes() - before


# ------------------------------------------------------------------------------------------ routes


def in_diffusers(bench: Bench) -> float:
    """`load` and `fuse` in the stock pipeline; returns the ms that `set_concepts` takes a concept."""
    pipe, file = bench.base.pipe, bench.folder / "dog.safetensors"
    atomdiff.save_concept(bench.dog, file)
    row = Row("atomdiff.load", "diffusers", file=file)
    with costs(row):
        atomdiff.load(pipe, bench.dog, name="dog")
    row.eps = predicted(pipe, WORD)
    bench.add(row)
    fused = Row("atomdiff.fuse", "diffusers")
    with costs(fused):
        atomdiff.fuse(pipe)
    fused.eps = predicted(pipe, WORD)
    bench.add(fused)
    atomdiff.unfuse(pipe)
    for i, other in enumerate(bench.others):
        atomdiff.load(pipe, other, name=f"other {i}")
    names = list(atomdiff.concepts(pipe))
    times = []
    for turn in range(11):
        start = time.process_time()
        atomdiff.set_concepts(pipe, dict.fromkeys(names, 0.5 + 0.1 * (turn % 3)))
        times.append(time.process_time() - start)
    atomdiff.unload(pipe)
    after = predicted(pipe, WORD)
    bench.add(Row("the base after unload", "diffusers", difference=float((after - bench.plain).abs().max())))
    return 1000 * median(times) / len(names)


def merged_models(bench: Bench, embedding: Path) -> None:
    """A diffusers folder, and a single file with the word beside it."""
    from diffusers import StableDiffusionPipeline

    folder = bench.exported("diffusers")
    row = Row("export --to diffusers", "diffusers", file=folder)
    start = time.process_time()
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    row.seconds, row.eps = time.process_time() - start, predicted(pipe, WORD)
    bench.add(row)
    del pipe
    single = save_single_file(bench.base.pipe, bench.folder / "base.safetensors")
    file = bench.exported("checkpoint", checkpoint=single)
    row = Row("export --to checkpoint, embedding", "diffusers", file=file)
    start = time.process_time()
    pipe = StableDiffusionPipeline.from_single_file(str(file), config=str(bench.home), local_files_only=True)
    pipe.load_textual_inversion(str(embedding), token="its-word")
    row.seconds, row.eps = time.process_time() - start, predicted(pipe, "its-word")
    bench.add(row)
    single.unlink()


def stock(bench: Bench, row: Row, embedding: Path, put_in: Callable[[Any], None]) -> None:
    """A route that changes a stock pipeline, to which the word comes as an embedding."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(bench.home, dtype=torch.float32)
    predicted(pipe, WORD)  # what only the first forward takes is no cost of the route
    with costs(row):
        put_in(pipe)
        pipe.load_textual_inversion(str(embedding), token="its-word")
    row.eps = predicted(pipe, "its-word")
    bench.add(row)


def as_diff(bench: Bench, embedding: Path) -> None:
    """`.diff` keys, added to the weights by LyCORIS."""
    from lycoris.modules import get_module, make_module
    from safetensors.torch import load_file

    file = bench.exported("diff")

    def merge(pipe: Any) -> None:
        tensors = load_file(file)
        for name in bench.dog.deltas(bench.base.unet):
            layer, key = pipe.unet.get_submodule(name), weights.kohya_name(name)
            kind, parts = get_module(tensors, key)
            make_module(kind, parts, key, layer).merge_to(1.0)

    stock(bench, Row("export --to diff, embedding", "LyCORIS", file=file), embedding, merge)


def as_lora(bench: Bench, embedding: Path, **given: Any) -> None:
    """A LoRA, loaded by diffusers into PEFT's layers."""
    from safetensors.torch import load_file

    file = bench.exported("lora", **given)
    flag, value = next(iter(given.items()))
    row = Row(f"export --to lora --{flag.replace('_', '-')} {value}, embedding", "PEFT", file=file)
    row.exact, lost, whole, ranks, tensors = False, 0.0, 0.0, [], load_file(file)
    for name, change in weights.changed_weights(bench.dog, bench.base.unet):
        key = weights.kohya_name(name)
        up, down = (tensors[f"{key}.lora_{part}.weight"].flatten(1) for part in ("up", "down"))
        own = float(tensors[f"{key}.alpha"]) / len(down) * up @ down
        lost += float((change.flatten(1) - own).square().sum())
        whole += float(change.square().sum())
        ranks.append(len(down))
    row.rank = f"{min(ranks)} to {max(ranks)}" if min(ranks) < max(ranks) else str(ranks[0])
    row.missed = (lost / whole) ** 0.5
    stock(bench, row, embedding, lambda pipe: pipe.load_lora_weights(str(file)))


# -------------------------------------------------------------------------------------- reporting


def megabytes(file: Path | None) -> str:
    if file is None:
        return ""
    files = [file] if file.is_file() else [part for part in file.rglob("*") if part.is_file()]
    size = sum(part.stat().st_size for part in files) / 1e6
    return f"{size:,.0f}" if size >= 100 else f"{size:.3g}"


def cells(row: Row, change: float) -> tuple[str, ...]:
    relative = "" if row.difference is None else f"{row.difference / change:.1%}"
    return (
        row.route,
        row.reader,
        megabytes(row.file),
        "" if row.seconds is None else f"{row.seconds:.2f}",
        "" if row.memory is None else f"{max(row.memory, 0):,.0f}",
        row.rank,
        "" if row.missed is None else f"{row.missed:.0%}",
        "" if row.difference is None else "0" if row.difference == 0 else f"{row.difference:.1e}",
        relative if not row.exact else "",
    )


def measure(
    folder: Path, small: bool, routes: Sequence[str] = ROUTES, comfy: Path | None = None
) -> tuple[list[tuple[str, ...]], list[Target]]:
    """The table, and the targets."""
    bench = Bench(folder, small)
    change, swap, seconds = apart(bench.plain, bench.ours), None, None
    if "load" in routes:
        swap, seconds = in_diffusers(bench), bench.rows[0].seconds
    embedding = bench.exported("embedding")
    if "models" in routes:
        merged_models(bench, embedding)
    if "diff" in routes:
        as_diff(bench, embedding)
    if "lora" in routes:
        as_lora(bench, embedding, rank=RANKS[small])
        as_lora(bench, embedding, max_error=MAX_ERROR)
    if comfy is not None:
        found = dict(comfyui.differences(comfy))["ε̂ with a concept at 0.8"]
        bench.add(Row("comfyui-atomdiff", "ComfyUI, a small UNet", difference=found))
    targets = [
        Target(f"{row.route}: ε̂", row.difference, high=LIMIT if row.difference else 0)
        for row in bench.rows
        if row.exact
    ]
    targets += [Target("comfyui-atomdiff: ε̂", None, high=LIMIT)] if comfy is None else []
    targets += [
        Target("load", seconds, high=LOAD, unit="s"),
        Target("set_concepts, a concept", swap, high=SWAP, unit="ms"),
    ]
    print(f"the concept changes ε̂ by {change:.0%}")
    return [cells(row, change) for row in bench.rows], targets


def main() -> None:
    parser = command("interop", __doc__, docs="docs/results.md")
    add = parser.add_argument
    add("--small", action="store_true", help="few channels: seconds instead of minutes")
    add("--routes", nargs="*", choices=ROUTES, default=ROUTES, help="only some (all by default)")
    add("--comfyui", type=Path, help="a checkout of ComfyUI whose requirements this Python has")
    add("--folder", type=Path, help="where the models are written for the time being")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=a.folder) as folder, loading.quiet():
        rows, targets = measure(Path(folder), a.small, a.routes, a.comfyui)
    size = "SD 1.5's layout, few channels" if a.small else "SD 1.5's shape"
    swap = next(target.value for target in targets if target.name.startswith("set_concepts"))
    told = (
        f"`set_concepts` took {swap:.1f} CPU ms a concept, with four loaded.\n\n" if swap is not None else ""
    )
    section = "interop small" if a.small else "interop"
    conclude(a, f"A concept in other tools, {size}", (HEADERS, rows), targets, section, told + LEGEND)


if __name__ == "__main__":
    with one_sentence():
        main()
