"""atomdiff: personalise Stable Diffusion with concept files of a few KB."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atomdiff.base.stable_diffusion import Base, BasePassport, encode_prompts, load_base
    from atomdiff.concept.concept import Concept
    from atomdiff.concept.timeline import Timeline
    from atomdiff.core.inject import AtomSpec, attach, detach, fold
    from atomdiff.errors import (
        AtomdiffError,
        BaseError,
        ConceptError,
        ImageError,
        SettingsError,
        TrainingError,
    )
    from atomdiff.files.safetensors_file import load_concept, save_concept
    from atomdiff.files.timeline_file import load_timeline, save_timeline
    from atomdiff.integrations.diffusers import concepts, fuse, load, set_concepts, unfuse, unload
    from atomdiff.library import Library
    from atomdiff.library.hub import pull, push
    from atomdiff.sampling.draw import draw
    from atomdiff.sampling.sheets import contact_sheet, save_picture
    from atomdiff.training.run import train

__version__ = "0.1.0"

# Where each name lives; its module is imported when the name is first used, so that `import atomdiff` costs
# nothing.
_HOMES = {
    "AtomSpec": "core.inject",
    "AtomdiffError": "errors",
    "Base": "base.stable_diffusion",
    "BaseError": "errors",
    "BasePassport": "base.stable_diffusion",
    "Concept": "concept.concept",
    "ConceptError": "errors",
    "ImageError": "errors",
    "Library": "library",
    "SettingsError": "errors",
    "Timeline": "concept.timeline",
    "TrainingError": "errors",
    "attach": "core.inject",
    "concepts": "integrations.diffusers",
    "contact_sheet": "sampling.sheets",
    "detach": "core.inject",
    "draw": "sampling.draw",
    "encode_prompts": "base.stable_diffusion",
    "fold": "core.inject",
    "fuse": "integrations.diffusers",
    "load": "integrations.diffusers",
    "load_base": "base.stable_diffusion",
    "load_concept": "files.safetensors_file",
    "load_timeline": "files.timeline_file",
    "pull": "library.hub",
    "push": "library.hub",
    "save_concept": "files.safetensors_file",
    "save_picture": "sampling.sheets",
    "save_timeline": "files.timeline_file",
    "set_concepts": "integrations.diffusers",
    "train": "training.run",
    "unfuse": "integrations.diffusers",
    "unload": "integrations.diffusers",
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
    "concepts",
    "contact_sheet",
    "detach",
    "draw",
    "encode_prompts",
    "fold",
    "fuse",
    "load",
    "load_base",
    "load_concept",
    "load_timeline",
    "pull",
    "push",
    "save_concept",
    "save_picture",
    "save_timeline",
    "set_concepts",
    "train",
    "unfuse",
    "unload",
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
