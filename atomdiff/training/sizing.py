"""How large a concept's file will be, known before training; and the recipe that a budget of bytes buys.

A file's size follows from the layers of the base and from the texts in it alone, never from what was learned:
so a concept of zeros is written, by the code that writes every file, and its bytes are counted.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from atomdiff.base.stable_diffusion import Base
from atomdiff.base.textual_inversion import TriggerToken
from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import BasePassport
from atomdiff.core import building
from atomdiff.core.families import Family
from atomdiff.core.selection import select
from atomdiff.core.spec import AtomSpec
from atomdiff.errors import AtomdiffError, SettingsError
from atomdiff.files import safetensors_file
from atomdiff.training.defaults import spec_of, with_recipe
from atomdiff.training.recipes import LADDER, Recipe, parse_size
from atomdiff.training.settings import TrainingSettings

LONGEST = 1.23e-05  # of rates that are yet to be measured: as many letters as any
MANY = 9_999_999  # of steps or pictures: as many digits as any run's
Texts = dict[str, Any]
"""What a concept says beside its numbers, as `Concept.of` takes it."""


def suit_size(settings: TrainingSettings, base: Base) -> tuple[TrainingSettings, str]:
    """Fill what --size decides, and tell what that is; without --size nothing.

    `name_everything` and `suit_base` must have been asked. Raises SettingsError, naming the smallest size,
    where nothing is small enough.
    """
    if settings.size == "":
        return settings, ""
    budget, token = parse_size(settings.size), _token(settings, base)
    texts = texts_of(settings, steps=MANY, pictures=MANY, class_pictures=MANY)
    recipe, size = pick(budget, base.unet, base.passport, token, texts)
    told = f"Size: at most {size:,} of {budget:,} bytes, {recipe}"
    return with_recipe(dataclasses.replace(settings, size=""), recipe), told


def recipe_of(settings: TrainingSettings) -> Recipe:
    """What settings train, as a recipe; `suit_recipe` must have been asked."""
    vectors = int(settings.num_vectors or 1) if settings.train_token else 0
    return Recipe(settings.recipe, "", spec_of(settings), vectors, str(settings.precision))


def pick(
    budget: int, unet: nn.Module, passport: BasePassport, token: Mapping[str, Tensor], texts: Texts
) -> tuple[Recipe, int]:
    """The best recipe that takes at most `budget` bytes on this UNet, and the bytes. Raises SettingsError."""
    sizes = []
    for recipe in (recipe for recipe in LADDER if _fits(unet, recipe) and (recipe.spec.has_layers or token)):
        size = file_size(unet, passport, recipe, token, texts)
        if size <= budget:
            return recipe, size
        sizes.append(size)
    if not sizes:
        raise SettingsError(
            "--size knows no recipe for this base; choose with --num_atoms and --linear_atoms."
        )
    raise SettingsError(
        f"A --size of {budget:,} bytes is too small: the smallest concept takes {min(sizes):,} on this base, "
        f"with its name and prompts; give --size {min(sizes)} or more."
    )


def file_size(
    unet: nn.Module, passport: BasePassport, recipe: Recipe, token: Mapping[str, Tensor], texts: Texts
) -> int:
    """Bytes of the file of a concept trained by a recipe; `token` is what a trigger read once would have.
    Weights are not looked at, so the UNet may lie on the meta device."""
    words = _vectors(token, recipe.vectors)
    concept = Concept.of(unet, recipe.spec, zeros(unet, recipe.spec), passport, token=words, **texts)
    return len(safetensors_file.to_bytes(concept, recipe.precision))


def _fits(unet: nn.Module, recipe: Recipe) -> bool:
    try:
        return bool(select(unet, recipe.spec).linear) or recipe.spec.linear_atoms == "none"
    except AtomdiffError:
        return False


def zeros(unet: nn.Module, spec: AtomSpec) -> dict[str, Tensor]:
    """Untrained atoms as `Attached.read` gives them, without attaching any. (Sparse atoms would first learn
    their dictionaries, for minutes.)"""
    selection, generator = select(unet, spec), torch.Generator().manual_seed(0)
    families: dict[str, Family] = {
        name: building.conv_family(layer, spec, generator) for name, layer in selection.conv.items()
    }
    families |= {name: building.linear_family(layer, spec) for name, layer in selection.linear.items()}
    return {
        building.entry(name, part): torch.zeros(tensor.shape)
        for name, family in families.items()
        for part, tensor in family.tensors().items()
    }


def texts_of(s: TrainingSettings, steps: int, pictures: int, class_pictures: int) -> Texts:
    """What the concept of a run says beside its numbers; `suit_base` must have been asked."""
    summary: dict[str, str | int | float] = {
        "steps": steps,
        "learning_rate": LONGEST if s.learning_rate is None else s.learning_rate,
        "linear_learning_rate": LONGEST if s.linear_learning_rate is None else s.linear_learning_rate,
        **({"match_lora_rate": s.match_lora_rate} if s.match_lora_rate else {}),
        **({"prediction_type": s.prediction_type} if s.prediction_type else {}),
        **({"zero_terminal_snr": 1} if s.zero_terminal_snr else {}),
        "pictures": pictures,
        "class_pictures": class_pictures,
        "resolution": int(s.resolution or 0),
        "seed": s.seed,
        "instance_prompt": s.instance_prompt,
        "class_prompt": s.class_prompt,
    }
    return {"trigger": s.trigger, "class_word": s.class_word, "name": s.name, "training": summary}


def _token(settings: TrainingSettings, base: Base) -> Mapping[str, Tensor]:
    """The vectors that the trigger would have, read once; none where it can have none (see `preparing`)."""
    try:
        return TriggerToken(base, settings.trigger, [settings.class_prompt]).read()
    except SettingsError:
        return {}


def _vectors(token: Mapping[str, Tensor], vectors: int) -> dict[str, Tensor]:
    """Those of a trigger with at least so many of them."""
    times = -(-vectors // min(map(len, token.values()), default=1))
    return {key: read.repeat(times, 1, 1) for key, read in token.items()} if times else {}
