"""The passport of a base model: which UNet a concept was made for, in 44 characters, whatever the dtype.

Two questions are answered without ever storing a weight:

- *Is it the same architecture?* A hash of the ordered shapes of all conv and linear weights.
- *Are they the same weights?* A Johnson-Lindenstrauss sketch: with r_l a fixed vector of +-1,
      q_l = <W_l, r_l> / ||W_l||        (over a strided sample of layer l),
      s_i = sum_{l = i mod 16} q_l / sqrt(number of such l),
  a change of the weights by the relative size d moves every s_i by about d, so that the root mean square of
  s - s' estimates d. Rounding to fp16 or bf16 moves it by at most about 0.002; fine-tuning by much more.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from atomdiff.errors import BaseError, ConceptError

if TYPE_CHECKING:  # a passport is read and compared without torch
    from torch import Tensor, nn

BUCKETS = 16
SAMPLE = 4096  # at most this many elements of a layer enter the sketch
SAME_WEIGHTS = 4e-3  # above what bf16 rounding does (about 1e-3), below what any fine-tuning does
APART = 0.5  # above what fine-tuning does; weights that were trained apart are about 1.4 away from each other


class Match(NamedTuple):
    """What comparing two passports found."""

    kind: Literal["same", "cousin", "other"]
    distance: float
    """Estimated relative change of the weights; infinite for another architecture."""


@dataclass(frozen=True)
class BasePassport:
    """Identity of a base model's UNet.

    `architecture` is `FAMILY-HASH`, e.g. `sd1-1a2b3c4d`; `sketch` holds 16 numbers that fp16 represents
    exactly (they are rounded here, so that a passport read from a file equals the one written to it); `name`
    is how to ask for this base again (`pocket`, `sd15`, a hub id, or the bare name of a folder or file) and
    takes no part in any comparison.
    """

    architecture: str
    sketch: tuple[float, ...]
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if len(self.sketch) != BUCKETS or not all(np.isfinite(self.sketch)):
            raise BaseError(f"A base's sketch is {BUCKETS} finite numbers; received {self.sketch!r}.")
        object.__setattr__(self, "sketch", tuple(float(np.float16(s)) for s in self.sketch))

    @property
    def family(self) -> str:
        """`pocket`, `sd1`, `sd2` or `sdxl`."""
        return self.architecture.rpartition("-")[0]

    def compare(self, other: BasePassport) -> Match:
        """Same weights, a fine-tuned cousin, or another architecture."""
        if self.architecture.rpartition("-")[2] != other.architecture.rpartition("-")[2]:
            return Match("other", float("inf"))
        gap = np.asarray(self.sketch) - np.asarray(other.sketch)
        distance = float(np.sqrt(np.mean(gap**2)))
        return Match("same" if distance <= SAME_WEIGHTS else "cousin", distance)

    def sketch_text(self) -> str:
        """The sketch as base64 of 16 little-endian fp16 numbers (44 characters)."""
        return base64.b64encode(np.asarray(self.sketch, "<f2").tobytes()).decode()

    @classmethod
    def from_text(cls, architecture: str, sketch_text: str, name: str = "") -> BasePassport:
        """Inverse of `sketch_text`. Raises ConceptError on anything else than 16 finite fp16 numbers."""
        try:
            sketch = np.frombuffer(base64.b64decode(sketch_text, validate=True), "<f2")
            return cls(architecture, tuple(sketch.tolist()), name)
        except (binascii.Error, ValueError, BaseError):
            raise ConceptError(
                f"The fingerprint of the base is not base64 of {BUCKETS} fp16 numbers: {sketch_text[:60]!r}; "
                "the file is damaged, get it again."
            ) from None


def passport_of(unet: nn.Module, family: str, name: str = "") -> BasePassport:
    """Passport of a UNet in any dtype, on any device. Raises BaseError on NaN or infinite weights."""
    weights = _weights(unet)
    lines = "\n".join(f"{layer}:{tuple(weight.shape)}" for layer, weight in weights.items())
    digest = hashlib.blake2b(lines.encode(), digest_size=4).hexdigest()
    totals, counts = np.zeros(BUCKETS), np.zeros(BUCKETS)
    for index, (layer, weight) in enumerate(weights.items()):
        sample = _sample(weight)
        norm = float(np.linalg.norm(sample))
        if not np.isfinite(norm):
            raise BaseError(
                f"The base's layer {layer!r} holds NaN or infinite weights, so it cannot draw; get the model "
                "again."
            )
        if norm > 0:
            totals[index % BUCKETS] += sample @ _signs(index, sample.size) / norm
        counts[index % BUCKETS] += 1
    sketch = totals / np.sqrt(np.maximum(counts, 1))
    return BasePassport(f"{family}-{digest}", tuple(sketch.tolist()), name)


def _weights(unet: nn.Module) -> dict[str, Tensor]:
    """Every conv and linear weight, in module order."""
    from torch import nn

    kinds = (nn.Conv2d, nn.Linear)
    return {name: module.weight for name, module in unet.named_modules() if isinstance(module, kinds)}


def _sample(weight: Tensor) -> np.ndarray:
    """At most SAMPLE elements spread over the whole tensor, as float64."""
    flat = weight.detach().reshape(-1)
    stride = -(-flat.numel() // SAMPLE)
    return flat[::stride].cpu().double().numpy()


def _signs(layer: int, count: int) -> np.ndarray:
    """`count` pseudo-random +-1, the same on every machine: a counter through a 64-bit mixing function."""
    x = np.arange(count, dtype=np.uint64) + np.uint64(layer * SAMPLE + 1)
    x *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x ^ (x >> np.uint64(31))) & np.uint64(1)).astype(np.float64) * 2 - 1
