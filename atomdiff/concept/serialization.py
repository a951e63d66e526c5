"""Where concepts reach for their files: the one import against the order of packages, made when it runs.

Reading and writing are functions of `files`, which is built on this package. `Concept` and `Timeline` have
`load` and `save` for convenience, and a concept is known by the checksum of its file.
"""

from __future__ import annotations

import hashlib
from types import ModuleType

from atomdiff.concept.contents import Contents
from atomdiff.errors import ConceptError


def concept_file() -> ModuleType:
    """`files.safetensors_file`, which reads and writes concepts."""
    return _files()[0]


def timeline_file() -> ModuleType:
    """`files.timeline_file`, which reads and writes timelines."""
    return _files()[1]


def sha256(concept: Contents) -> str:
    """The checksum of the concept's file in its own precision; in fp32 where that cannot hold it."""
    write = concept_file().to_bytes
    try:
        data = write(concept)
    except ConceptError:
        data = write(concept, "fp32")
    return hashlib.sha256(data).hexdigest()


def _files() -> tuple[ModuleType, ModuleType]:
    from atomdiff.files import safetensors_file, timeline_file

    return safetensors_file, timeline_file
