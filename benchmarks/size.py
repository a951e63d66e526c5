"""`python -m benchmarks.size`: what each recipe of the ladder buys, and whether they are in order.

On subjects for choosing, of which no result is reported, judged from the bytes of their files.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from atomdiff.concept.passport import BasePassport
from atomdiff.training.defaults import name_everything, suit_base, suit_recipe
from atomdiff.training.recipes import LADDER, Recipe
from atomdiff.training.settings import TrainingSettings
from atomdiff.training.sizing import MANY, file_size, texts_of

from .bench import Bench, Method, mean, parser
from .report import Target, one_sentence, verdict
from .shapes import SD15, empty_unet
from .tables import Table, likeness_table, tell
from .tasks import Task, tuning_subjects

NOISE = 0.02  # of likeness, taken for chance


def method_of(recipe: Recipe) -> Method:
    return Method(recipe.name, recipe.settings())


def bytes_on_sd15(recipe: Recipe) -> int:
    """What the file of a recipe takes for a UNet of Stable Diffusion 1.5's shape, at most."""
    settings = suit_recipe(name_everything(TrainingSettings(instance_data_dir="dog")))
    texts = texts_of(suit_base(settings, "sd15", 512, 8), MANY, MANY, MANY)
    passport = BasePassport("sd1-00000000", (0.5,) * 16, "sd15")
    return file_size(empty_unet(SD15), passport, recipe, {"token": torch.zeros(1, 1, 768)}, texts)


def table(bench: Bench, recipes: Sequence[Recipe], tasks: Sequence[Task]) -> Table:
    """The rows of the ladder, with their bytes on Stable Diffusion 1.5."""
    headers, rows = likeness_table(bench, [method_of(recipe) for recipe in recipes], tasks)
    elsewhere = {recipe.name: f"{bytes_on_sd15(recipe):,}" for recipe in recipes}
    return (*headers[:2], "on SD 1.5", *headers[2:]), [
        (*row[:2], elsewhere.get(row[0], ""), *row[2:]) for row in rows
    ]


def out_of_order(likeness: Sequence[float]) -> float:
    """By how much one falls behind the best of those that come after it, at most; 0 if none does."""
    behind = [max(likeness[i:]) - own for i, own in enumerate(likeness)]
    return max(behind, default=0.0)


def main(arguments: Sequence[str] | None = None) -> None:
    command = parser("size", __doc__)
    add = command.add_argument
    names = [recipe.name for recipe in LADDER]
    add("--recipes", nargs="+", default=names, choices=names, metavar="NAME", help="; ".join(names))
    add("--subjects", type=int, default=4, choices=(1, 2, 3, 4), help="tuning subjects")
    a = command.parse_args(arguments)
    bench, tasks = Bench.of(a, "size"), tuning_subjects(a.subjects)
    recipes = [recipe for recipe in LADDER if recipe.name in a.recipes]
    bench.run([method_of(recipe) for recipe in recipes], tasks)
    told = [("Recipes, the best first, on tuning subjects", table(bench, recipes, tasks))]
    tell(bench, "size", "What bytes buy", told, a.docs)
    known = [found for recipe in recipes if (found := bench.outcomes(method_of(recipe), tasks))]
    behind = out_of_order([mean(found, "likeness") for found in known]) if len(known) > 1 else None
    verdict([Target("plain likeness behind a smaller recipe", behind, high=NOISE)], a.check)


if __name__ == "__main__":
    with one_sentence():
        main()
