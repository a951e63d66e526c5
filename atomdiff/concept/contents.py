"""What a concept file says, checked, with its numbers as numpy arrays: a `Concept` before torch is needed.

Looking into a file, listing a folder of them and sharing one need no more, and start twenty times faster.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from atomdiff.concept.passport import BasePassport
from atomdiff.core.spec import AtomSpec
from atomdiff.errors import ConceptError

PRECISIONS = ("fp32", "fp16", "int8", "int4")  # of files, best first
MAX_TEXT = 1000  # characters of any one text field: a concept is read by people and shown in lists
Array = TypeVar("Array")  # np.ndarray; of a `Concept`, torch.Tensor
_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # Unicode's categories Cc and Cs


@dataclass(frozen=True, eq=False)
class Contents(Generic[Array]):
    """The fields of a concept; `atoms` and `bases` are fp32 arrays (L, r, c), packed as `concept` tells.

    `layers` is the digest of the layers that the atoms belong to. `bases` holds, packed like the atoms, the
    basis of every convolution where it follows from the weights and spans a subspace (svd with fewer atoms
    than weights in the kernel); everything else follows from `spec`. `extra` keeps metadata that this
    version does not know. `precision` is that of the file it came from, which is written again as it was.
    Raises ConceptError if the parts contradict each other, a text cannot be shown or a number is not finite.
    """

    atoms: Mapping[str, Array]
    layers: str
    spec: AtomSpec
    base: BasePassport
    trigger: str = ""
    class_word: str = ""
    name: str = ""
    training: Mapping[str, str | int | float] = field(default_factory=dict)
    bases: Mapping[str, Array] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)
    precision: str = "fp16"

    def __post_init__(self) -> None:
        self._check_texts()
        self._check_numbers()

    @property
    def title(self) -> str:
        """What to call the concept: its name, else its trigger."""
        return self.name or self.trigger or "unnamed"

    @property
    def token(self) -> dict[str, Array]:
        """What is added to the embeddings of the trigger's tokens, (n, 1, d) for each text encoder; empty if
        none was trained."""
        return {key: array for key, array in self.atoms.items() if key.startswith("token")}

    def num_parameters(self) -> int:
        """How many numbers were trained."""
        return sum(np.asarray(array).size for array in self.atoms.values())

    def _check_texts(self) -> None:
        texts = {
            "name": self.name,
            "trigger": self.trigger,
            "class word": self.class_word,
            "base name": self.base.name,
        }
        texts |= {f"training {key}": value for key, value in self.training.items() if isinstance(value, str)}
        for what, text in texts.items():
            _check_text(what, text)
        for what, text in self.extra.items():
            _check_text("metadata key", what)
            _check_text(what, text, limit=len(text))
        for key, value in self.training.items():
            _check_text("training summary", key)
            known = isinstance(value, (str, int, float)) and not isinstance(value, bool)
            if not known or (isinstance(value, float) and not math.isfinite(value)):
                raise ConceptError(
                    f"A training summary holds texts and finite numbers, not {key} = {value!r}."
                )

    def _check_numbers(self) -> None:
        held = {key: np.asarray(array) for key, array in self.atoms.items()}
        over = {key: np.asarray(array) for key, array in self.bases.items()}
        for key, array in [*held.items(), *over.items()]:
            if array.ndim != 3 or not array.size:
                raise ConceptError(f"A packed tensor has three dimensions; {key!r} is {array.shape}.")
            if not np.isfinite(array).all():
                raise ConceptError(f"The numbers {key!r} of the concept {self.title!r} hold NaN or infinity.")
        spec = self.spec
        shapes = {key: array.shape for key, array in held.items()}
        bases = {key: array.shape for key, array in over.items()}
        wanted = {key: (shape[0], *_sides(spec, key, shapes)) for key, shape in shapes.items()}
        spatial = {key: s for key, s in shapes.items() if key.split(".")[0] == "conv"}
        beside = {key.replace("conv", part) for key in spatial for part in spec.beside}
        layers = any(key.split(".")[0] in ("conv", "linear") for key in shapes)
        sound = bool(shapes) and layers == spec.has_layers and shapes == wanted and beside <= shapes.keys()
        if not sound or bases != (spatial if spec.keeps_basis else {}):
            raise ConceptError(
                f"The concept {self.title!r} holds atoms {shapes} and bases {bases}, which contradicts its "
                f"{spec}."
            )


def _sides(spec: AtomSpec, key: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Rows and columns of a packed tensor's matrices as the spec wants them; (0, 0) where it has none."""
    kind, dot, kernel = key.partition(".")
    k2 = shapes.get(f"conv{dot}{kernel}", (0, 0, 0))[2]
    return (1, shapes[key][2]) if kind.startswith("token") else spec.sides(kind, k2)


def _check_text(what: str, text: str, limit: int = MAX_TEXT) -> None:
    """Texts are shown in terminals and pages: no control characters, no lone surrogates, no endless ones."""
    if len(text) > limit:
        raise ConceptError(
            f"The {what[:60]!r} of a concept is {len(text)} characters long; at most {limit} fit."
        )
    if _UNSHOWN.search(text):
        raise ConceptError(f"The {what[:60]!r} of a concept holds control characters: {text[:60]!r}.")
