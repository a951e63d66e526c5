"""atomdiff: personalise Stable Diffusion with concept files of a few KB."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atomdiff.base import Base, BasePassport, encode_prompts, load_base
    from atomdiff.concept import Concept
    from atomdiff.errors import (
        AtomdiffError,
        BaseError,
        ConceptError,
        ImageError,
        SettingsError,
        TrainingError,
    )
    from atomdiff.inject import AtomSpec, attach, detach, fold
    from atomdiff.sampling import draw
    from atomdiff.sheets import contact_sheet, save_picture
    from atomdiff.timeline import Timeline
    from atomdiff.training import train

__version__ = "0.1.0"

# Where each name lives; its module is imported when the name is first used, so that `import atomdiff` costs
# nothing.
_HOMES = {
    "AtomSpec": "inject",
    "AtomdiffError": "errors",
    "Base": "base",
    "BaseError": "errors",
    "BasePassport": "base",
    "Concept": "concept",
    "ConceptError": "errors",
    "ImageError": "errors",
    "SettingsError": "errors",
    "Timeline": "timeline",
    "TrainingError": "errors",
    "attach": "inject",
    "contact_sheet": "sheets",
    "detach": "inject",
    "draw": "sampling",
    "encode_prompts": "base",
    "fold": "inject",
    "load_base": "base",
    "save_picture": "sheets",
    "train": "training",
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
