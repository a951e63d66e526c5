"""atomdiff: personalise Stable Diffusion with concept files of a few KB."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atomdiff.concepts.concept import Concept
    from atomdiff.concepts.timeline import Timeline
    from atomdiff.core.inject import AtomSpec, attach, detach, fold
    from atomdiff.errors import (
        AtomdiffError,
        BaseError,
        ConceptError,
        ImageError,
        SettingsError,
        TrainingError,
    )
    from atomdiff.models.base import Base, BasePassport, encode_prompts, load_base
    from atomdiff.pictures.sampling import draw
    from atomdiff.pictures.sheets import contact_sheet, save_picture
    from atomdiff.sharing.hub import pull, push
    from atomdiff.sharing.library import Library
    from atomdiff.training.run import train

__version__ = "0.1.0"

# Where each name lives; its module is imported when the name is first used, so that `import atomdiff` costs
# nothing.
_HOMES = {
    "AtomSpec": "core.inject",
    "AtomdiffError": "errors",
    "Base": "models.base",
    "BaseError": "errors",
    "BasePassport": "models.base",
    "Concept": "concepts.concept",
    "ConceptError": "errors",
    "ImageError": "errors",
    "Library": "sharing.library",
    "SettingsError": "errors",
    "Timeline": "concepts.timeline",
    "TrainingError": "errors",
    "attach": "core.inject",
    "contact_sheet": "pictures.sheets",
    "detach": "core.inject",
    "draw": "pictures.sampling",
    "encode_prompts": "models.base",
    "fold": "core.inject",
    "load_base": "models.base",
    "pull": "sharing.hub",
    "push": "sharing.hub",
    "save_picture": "pictures.sheets",
    "train": "training.run",
}

__all__ = [
    "AtomSpec",
    "AtomdiffError",
    "Base",
    "BaseError",
    "BasePassport",
    "Concept",
    "ConceptError",
    "ImageError",
    "Library",
    "SettingsError",
    "Timeline",
    "TrainingError",
    "attach",
    "contact_sheet",
    "detach",
    "draw",
    "encode_prompts",
    "fold",
    "load_base",
    "pull",
    "push",
    "save_picture",
    "train",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'atomdiff' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"atomdiff.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
