"""`python -m benchmarks.size`: what each rung of the capacity dial buys, and whether they are in order.

Every rung is trained on the pocket, on subjects for choosing, of which no result is reported, and judged from
the bytes of its file; rungs that differ in precision alone share a training. What is finished is kept in
OUT/results.jsonl, so that a run goes on where it was ended.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from atomdiff.concept.passport import BasePassport
from atomdiff.training.defaults import name_everything, suit_base
from atomdiff.training.recipes import LADDER, Rung, parse_size
from atomdiff.training.settings import TrainingSettings
from atomdiff.training.sizing import MANY, file_size, texts_of

from .court import CONTEXTS, Drawing
from .method.tasks import Task, tuning_subjects
from .recipes import PLAIN, Bench, Recipe
from .report import Target, machine, markdown, one_sentence, option, show, verdict, written

COLUMNS = ("context", "leak", "drift")
HEADERS = ("recipe, best first", "bytes", "on SD 1.5", "likeness", *COLUMNS)
LEGEND = """Means over subjects and seeds. Bytes: the whole file, on the pocket and for a UNet of Stable
Diffusion 1.5's shape. Likeness: mean of first colour, second colour and pattern (shares judged right) and of
identity. Leak: share of pictures of the bare class that have the subject's colour or pattern. Drift:
1 - cosine between them before and after, same seeds. `--size` takes the first recipe that fits."""


def recipe_of(rung: Rung) -> Recipe:
    settings = {name: value for name, value in rung.settings().items() if name != "precision"}
    return Recipe(str(rung), settings, rung.precision)


def bytes_on_sd15(rungs: Sequence[Rung]) -> list[int]:
    """What the files of the rungs take for a UNet of Stable Diffusion 1.5's shape."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    settings = suit_base(name_everything(TrainingSettings(instance_data_dir="dog")), "sd15", 512, 8)
    passport, texts = BasePassport("sd1-00000000", (0.5,) * 16, "sd15"), texts_of(settings, MANY, MANY, MANY)
    token = {"token": torch.zeros(1, 1, 768)}
    return [file_size(unet, passport, rung, token, texts) for rung in rungs]


def rows_of(bench: Bench, rungs: Sequence[Rung], tasks: Sequence[Task]) -> list[tuple[str, ...]]:
    rows = []
    recipes = PLAIN, *map(recipe_of, rungs)
    for recipe, elsewhere in zip(recipes, (0, *bytes_on_sd15(rungs)), strict=True):
        size, figures = bench.mean(recipe, tasks)
        shown = [f"{figures[key]:.2f}" for key in ("likeness", *COLUMNS)]
        rows.append((recipe.name, f"{size:,.0f}", f"{elsewhere:,}", *shown))
    return rows


def out_of_order(likeness: Sequence[float]) -> float:
    """By how much a rung falls behind the best of those that come after it, at most; 0 if none does."""
    behind = [max(likeness[i:]) - own for i, own in enumerate(likeness)]
    return max(behind, default=0.0)


def targets(bench: Bench, rungs: Sequence[Rung], tasks: Sequence[Task]) -> list[Target]:
    """The order of the ladder, and what its best rung of at most 10 KB on this base costs the base."""
    means = [bench.mean(recipe_of(rung), tasks) for rung in rungs]
    found = [
        Target("likeness behind a later rung", out_of_order([f["likeness"] for _, f in means]), high=0.02)
    ]
    base = bench.mean(PLAIN, tasks)[1]
    small = next((figures for size, figures in means if size <= parse_size("10KB")), None)
    if small:
        found.append(Target("context lost at 10 KB", base["context"] - small["context"], high=0.03))
        found.append(Target("leak gained at 10 KB", small["leak"] - base["leak"], high=0.10))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.size", description=__doc__)
    parser.add_argument("--subjects", type=int, default=3, choices=(1, 2, 3, 4), help="how many (default 3)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--rungs", nargs="+", type=int, default=range(len(LADDER)), choices=range(len(LADDER))
    )
    parser.add_argument("--each", type=int, default=8, help="pictures in each of the 8 contexts")
    parser.add_argument("--draw-steps", type=int, default=25)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="training settings to try")
    parser.add_argument("--out", type=Path, default=Path("outputs/size"))
    parser.add_argument("--docs", action="store_true", help="write docs/size.md")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    a = parser.parse_args(arguments)
    bench = Bench("size", a.out, Drawing(a.each, a.draw_steps), dict(map(option, a.set)), a.seeds)
    rungs, tasks = [LADDER[i] for i in sorted(set(a.rungs))], tuning_subjects(a.subjects)
    bench.judge_all([recipe_of(rung) for rung in rungs], tasks)
    rows = rows_of(bench, rungs, tasks)
    show(f"{len(tasks)} subjects x {len(CONTEXTS)} contexts x {a.each} pictures", HEADERS, rows)
    if a.docs:
        bench.ledger.publish()
        tried = f"{len(tasks)} subject{'s' * (len(tasks) > 1)} for choosing"
        told = f"{tried}, {a.seeds} seed{'s' * (a.seeds > 1)}, {len(CONTEXTS)} contexts x {a.each}"
        Path("docs/size.md").write_text(
            f"# What bytes buy\n\n{written()}: {told} pictures of {a.draw_steps} steps.\n\n"
            f"{markdown(HEADERS, rows)}\n{LEGEND}\n"
        )
    print(machine())
    verdict(targets(bench, rungs, tasks), a.check)


if __name__ == "__main__":
    with one_sentence():
        main()
