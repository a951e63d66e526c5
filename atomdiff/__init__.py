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

# What each module gives; it is imported when a name of it is first used: `import atomdiff` costs nothing.
_NAMES = {
    "errors": ("AtomdiffError", "BaseError", "ConceptError", "ImageError", "SettingsError", "TrainingError"),
    "core.inject": ("AtomSpec", "attach", "detach", "fold"),
    "concept.concept": ("Concept",),
    "concept.timeline": ("Timeline",),
    "files.safetensors_file": ("load_concept", "save_concept"),
    "files.timeline_file": ("load_timeline", "save_timeline"),
    "base.stable_diffusion": ("Base", "BasePassport", "encode_prompts", "load_base"),
    "sampling.draw": ("draw",),
    "sampling.sheets": ("contact_sheet", "save_picture"),
    "training.run": ("train",),
    "library": ("Library",),
    "library.hub": ("pull", "push"),
    "integrations.diffusers": ("concepts", "fuse", "load", "set_concepts", "unfuse", "unload"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "AtomSpec", "AtomdiffError", "Base", "BaseError", "BasePassport", "Concept", "ConceptError",
    "ImageError", "Library", "SettingsError", "Timeline", "TrainingError", "attach", "concepts",
    "contact_sheet", "detach", "draw", "encode_prompts", "fold", "fuse", "load", "load_base",
    "load_concept", "load_timeline", "pull", "push", "save_concept", "save_picture", "save_timeline",
    "set_concepts", "train", "unfuse", "unload",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'atomdiff' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"atomdiff.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
