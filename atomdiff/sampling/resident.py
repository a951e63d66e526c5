"""Concepts held ready beside a base: packed, exact, and in use from one step to the next.

A resident concept is its numbers in the fewest bytes that hold them exactly (whole numbers and scales
if it came from an int8 or int4 file), on the base's device. Its maps are made of these when a batch asks for
it, which touches some ten thousand numbers and no weight of the base.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from atomdiff.base.stable_diffusion import Base
from atomdiff.concept.concept import Concept
from atomdiff.core import inject, subspace
from atomdiff.core.inject import AtomSpec
from atomdiff.files import safetensors_file
from atomdiff.files.quantization import LARGEST


@dataclass(frozen=True)
class Packed:
    """Numbers (L, r, c): `codes` times `scales` (L, 1, 1) if there are any."""

    codes: Tensor
    scales: Tensor | None = None

    @staticmethod
    def of(numbers: Tensor, precision: str) -> Packed:
        """In the fewest bytes that are exact; `precision` is that of the file they are from."""
        if precision in LARGEST:  # the largest of each layer is ± that many scales, see `quantization`
            peaks = numbers.abs().flatten(1).amax(1)[:, None, None]
            scales = (peaks / LARGEST[precision]).half().float()
            whole = (numbers / scales.where(scales > 0, 1)).round().to(torch.int8)
            if torch.equal(scales * whole, numbers):
                return Packed(whole, scales)
        half = numbers.half()
        return Packed(half if torch.equal(half.float(), numbers) else numbers)

    def read(self) -> Tensor:
        """The numbers, fp32."""
        wide = self.codes.float()
        return wide if self.scales is None else wide * self.scales

    def to(self, device: torch.device) -> Packed:
        return Packed(self.codes.to(device), None if self.scales is None else self.scales.to(device))

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + (0 if self.scales is None else self.scales.nbytes)


@dataclass(frozen=True)
class _Stack:
    """Maps of several layers: `packed` itself, (L, n, n), or D⁺ (n, m) times the atoms (L, m, n) in it."""

    names: tuple[str, ...]
    packed: Packed
    inverse: Tensor | None

    def maps(self) -> dict[str, Tensor]:
        made = self.packed.read()
        if self.inverse is not None:
            made = self.inverse @ made
        return dict(zip(self.names, made.chunk(len(self.names)), strict=True))


@dataclass(frozen=True, eq=False)
class Resident:
    """A concept as `Residents` holds it. `token` are its word's vectors, `nbytes` what its numbers occupy."""

    title: str
    trigger: str
    class_word: str
    sha256: str
    token: Mapping[str, Tensor]
    stacks: tuple[_Stack, ...]

    def layer_maps(self) -> dict[str, Tensor]:
        """Layer name -> its map (G, n, n), on the base's device, made anew."""
        return {name: M for stack in self.stacks for name, M in stack.maps().items()}

    @property
    def nbytes(self) -> int:
        words = sum(vector.nbytes for vector in self.token.values())
        return words + sum(stack.packed.nbytes for stack in self.stacks)


class Residents:
    """The concepts held for one base, by their checksums; `add` makes one ready, `drop` forgets it."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.held: dict[str, Resident] = {}
        self._selections: dict[tuple[AtomSpec, str], inject.Selection] = {}
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}  # each list of layers once
        self._inverses: dict[tuple[tuple[int, int], int], Tensor] = {}

    def add(self, concept: Concept, sha256: str = "") -> Resident:
        """The concept held ready; one that is held already is not held twice. `sha256` is its checksum, where
        the caller has it from the file. Raises ConceptError for a concept of another base, or one whose
        change is no map of the weights."""
        key = sha256 or safetensors_file.sha256(concept)
        if key not in self.held:
            concept.check_base(self.base.passport)
            token = {name: vector.half() for name, vector in concept.token.items()}
            exact = all(torch.equal(token[name].float(), v) for name, v in concept.token.items())
            self.held[key] = Resident(
                concept.title,
                concept.trigger,
                concept.class_word,
                key,
                token if exact else concept.token,
                tuple(self._stacks(concept)),
            )
        return self.held[key]

    def drop(self, resident: Resident) -> None:
        """Forget a concept. Doing it twice is harmless."""
        self.held.pop(resident.sha256, None)

    @property
    def nbytes(self) -> int:
        """Bytes of all numbers held."""
        return sum(resident.nbytes for resident in self.held.values())

    def _stacks(self, concept: Concept) -> list[_Stack]:
        device = self.base.device
        families = [key for key in concept.atoms if key not in concept.token]
        if concept.bases or not concept.spec.is_map or not set(families) <= {"conv", "linear"}:
            maps = concept.layer_maps(self.base.unet)
            return [_Stack((name,), Packed(M.to(device)), None) for name, M in maps.items()]
        concept.bind(self.base.unet)  # refuses other layers
        selection = self._selection(concept)
        stacks = []
        for key in families:
            packed = Packed.of(concept.atoms[key], concept.precision).to(device)
            if key == "linear":
                stacks.append(_Stack(self._once(selection.linear), packed, None))
                continue
            kernel = next(iter(selection.conv.values())).kernel_size
            inverse = self._inverse((kernel[0], kernel[1]), concept.atoms[key].shape[1])
            stacks.append(_Stack(self._once(selection.conv), packed, inverse))
        return stacks

    def _once(self, names: Iterable[str]) -> tuple[str, ...]:
        return self._names.setdefault(tuple(names), tuple(names))

    def _selection(self, concept: Concept) -> inject.Selection:
        key = concept.spec, concept.layers
        if key not in self._selections:
            self._selections[key] = inject.select(self.base.unet, concept.spec)
        return self._selections[key]

    def _inverse(self, kernel: tuple[int, int], m: int) -> Tensor:
        if (kernel, m) not in self._inverses:
            inverse = torch.linalg.pinv(subspace.dct_basis(kernel, m))
            self._inverses[kernel, m] = inverse.to(self.base.device)
        return self._inverses[kernel, m]
