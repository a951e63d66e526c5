"""What of a run's settings follows from something else, and what of them decides its result.

`name_everything`, `suit_recipe`, `suit_base` and `count_steps` fill what was left open, in that order, as
picture folder, base and number of pictures become known.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atomdiff.core.spec import AtomSpec
from atomdiff.errors import SettingsError
from atomdiff.training.recipes import Recipe, recipe_named
from atomdiff.training.settings import TrainingSettings


@dataclass(frozen=True)
class FamilyDefaults:
    """What suits a family of bases: a toy that learns in minutes on a CPU, or a full Stable Diffusion."""

    max_train_steps: int
    train_batch_size: int
    num_class_images: int


@dataclass(frozen=True)
class Rates:
    """Learning rates of conv atoms, of linear atoms, and of the trigger's embedding."""

    learning_rate: float
    linear_learning_rate: float
    token_learning_rate: float


POCKET = FamilyDefaults(max_train_steps=300, train_batch_size=4, num_class_images=24)
FULL_SIZE = FamilyDefaults(max_train_steps=600, train_batch_size=1, num_class_images=100)
POCKET_RATES = Rates(5e-3, 4e-3, 2.5e-3)
"""Found on the pocket; on other bases they are measured, see `calibration`."""


def name_everything(settings: TrainingSettings) -> TrainingSettings:
    """Fill the names and prompts, which follow from the name of the picture folder."""
    if not settings.instance_data_dir:
        raise SettingsError("No pictures were given; name their folder with --instance_dir FOLDER.")
    folder_name = Path(settings.instance_data_dir).expanduser().resolve().name
    name = settings.name or folder_name or "concept"
    called, subject = _kohya_names(folder_name)
    class_word = settings.class_word or _class_word(subject)
    trigger = settings.trigger or _trigger(settings.instance_prompt, class_word, called)
    return dataclasses.replace(
        settings,
        name=name,
        output_dir=settings.output_dir or str(Path("outputs") / name),
        class_word=class_word,
        trigger=trigger,
        instance_prompt=settings.instance_prompt or f"a {trigger} {class_word}",
        class_prompt=settings.class_prompt or f"{_article(class_word)} {class_word}",
    )


def suit_recipe(settings: TrainingSettings) -> TrainingSettings:
    """Fill what the recipe decides and was left open; with --size nothing, see `sizing`. Raises SettingsError
    where nothing is left to train."""
    return settings if settings.size != "" else with_recipe(settings, recipe_named(settings.recipe))


def with_recipe(settings: TrainingSettings, recipe: Recipe) -> TrainingSettings:
    """The settings, and where they are open those of a recipe."""
    values = recipe.settings()
    if settings.conv_family not in (None, recipe.spec.conv_family):
        plain = AtomSpec()
        values |= {name: getattr(plain, name) for name in ("channel_groups", "second_atoms", "sparsity")}
    filled = {name: value for name, value in values.items() if getattr(settings, name) is None}
    settings = dataclasses.replace(settings, size="", **filled)
    if not (settings.num_atoms or settings.linear_atoms != "none" or settings.train_token):
        raise SettingsError(
            "--num_atoms 0, --linear_atoms none and --no-train_token leave nothing to train: drop one."
        )
    return settings


def spec_of(settings: TrainingSettings) -> AtomSpec:
    """The part of the settings that says what is trained where; `suit_recipe` must have been asked. Raises
    SettingsError."""
    return AtomSpec(**{item.name: getattr(settings, item.name) for item in dataclasses.fields(AtomSpec)})


def suit_base(
    settings: TrainingSettings, family: str, native_resolution: int, factor: int
) -> TrainingSettings:
    """Fill what depends on the base: `family`, and `factor`, the pixels a side of one latent."""
    defaults = dataclasses.asdict(POCKET if family == "pocket" else FULL_SIZE)
    defaults |= dataclasses.asdict(POCKET_RATES) if family == "pocket" else {}
    if settings.learning_rate is not None:
        defaults["linear_learning_rate"] = settings.learning_rate
    if settings.optimizer == "prodigy":
        defaults |= dict.fromkeys(("learning_rate", "linear_learning_rate", "token_learning_rate"), 1.0)
    values = {key: value for key, value in defaults.items() if getattr(settings, key) is None}
    if settings.num_train_epochs is not None:
        values.pop("max_train_steps", None)
    if settings.prior_batch_size is None:
        values["prior_batch_size"] = max(1, (settings.train_batch_size or defaults["train_batch_size"]) // 2)
    resolution = settings.resolution or native_resolution
    if resolution % factor:
        raise SettingsError(
            f"--resolution must be a multiple of {factor} for this base, but {resolution} was given; "
            f"{resolution // factor * factor} would do."
        )
    return dataclasses.replace(settings, resolution=resolution, **values)


def count_steps(settings: TrainingSettings, pictures: int, processes: int) -> TrainingSettings:
    """Turn epochs into steps: a step sees `pictures_a_step` of the `pictures`, and none is partly filled."""
    if settings.num_train_epochs is None:
        return settings
    steps = -(-settings.num_train_epochs * pictures // pictures_a_step(settings, processes))
    return dataclasses.replace(settings, max_train_steps=steps, num_train_epochs=None)


def numerical(settings: TrainingSettings, processes: int) -> dict[str, Any]:
    """The settings that decide the result, for comparing two runs.

    Batch, accumulation and processes count only by their product, the pictures of one optimiser step. The
    number of steps is left out where no schedule or mean depends on it, so that a finished run may go on for
    longer; so are --recipe and --size, which are known by what they chose.
    """
    values = {item.name: getattr(settings, item.name) for item in dataclasses.fields(settings)}
    inert = {item.name for item in dataclasses.fields(settings) if item.metadata["inert"]}
    inert |= {
        "instance_data_dir",
        "class_data_dir",
        "base",
        "num_train_epochs",
        "size",
        "recipe",
        "match_lora_rate",
    }  # known by their contents instead
    batch = pictures_a_step(settings, processes)
    inert |= {"train_batch_size", "gradient_accumulation_steps", "prior_batch_size"}
    if not settings.average_last:
        inert.add("average_last")
        if settings.lr_scheduler.startswith("constant"):
            inert.add("max_train_steps")
    kept = {name: value for name, value in values.items() if name not in inert}
    kept |= {"train_batch_size x gradient_accumulation_steps x processes": batch}
    if settings.with_prior_preservation:
        times = settings.gradient_accumulation_steps * processes
        kept["prior_batch_size x the same"] = (settings.prior_batch_size or 1) * times
    return kept


def pictures_a_step(settings: TrainingSettings, processes: int) -> int:
    """Instance pictures that one optimiser step sees, over all processes."""
    return (settings.train_batch_size or 1) * settings.gradient_accumulation_steps * processes


def _kohya_names(folder_name: str) -> tuple[str, str]:
    """The trigger, "" if there is none, and the subject in the name of a picture folder, which kohya's
    trainers call REPEATS_TRIGGER CLASS: `10_zwx dog` -> zwx, dog."""
    found = re.fullmatch(r"\d{1,3}_(?:([^\W\d]\S*) )?(.+)", folder_name)
    return (found[1] or "", found[2]) if found else ("", folder_name)


def _class_word(folder_name: str) -> str:
    """`dog6` -> dog, `My_Teddy-Bear 2` -> my teddy bear. SettingsError when nothing of the name is left."""
    words = re.sub(r"[\W\d_]+", " ", folder_name).strip().lower()
    if not words:
        raise SettingsError(
            f"The folder name '{folder_name}' does not say what the subject is; say it: --class_word dog."
        )
    return words


def _trigger(instance_prompt: str, class_word: str, called: str) -> str:
    """The trigger of a prompt written by hand: the word between an article and the class word, if any.
    Without a prompt what the subject is `called`, or else sks."""
    if not instance_prompt:
        return called or "sks"
    found = re.search(
        rf"(?:\b(?:an?|the|of|my)\s+)(\S+)\s+{re.escape(class_word)}\b", instance_prompt, re.IGNORECASE
    )
    if found:
        return found.group(1)
    return "sks" if re.search(r"\bsks\b", instance_prompt) else instance_prompt


def _article(word: str) -> str:
    return "an" if word[:1] in "aeiou" else "a"
