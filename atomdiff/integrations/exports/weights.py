"""A concept's ΔW in full: as `.diff` keys of A1111 and ComfyUI, which is exact and large, or as a LoRA of
some rank, which is smaller and not exact at all.

ΔW = W M has the rank of W, whatever M is: no small LoRA comes near it. What one loses is measured, layer by
layer and in what the UNet predicts, and told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atomdiff.base.plain_unet import PlainUNet, plain_layers
from atomdiff.concept.concept import Concept
from atomdiff.errors import SettingsError


def changed_weights(concept: Concept, unet: nn.Module, strength: float = 1.0) -> Iterator[tuple[str, Tensor]]:
    """Layer name in diffusers -> strength · ΔW, fp32, one after the other. Raises ConceptError for another
    base."""
    layers = plain_layers(unet)
    for name, delta in concept.deltas(PlainUNet(layers)).items():
        yield name, strength * delta(layers[name].weight).float()


def kohya_name(layer: str) -> str:
    """What kohya's scripts, A1111 and ComfyUI call a layer of diffusers' UNet."""
    return "lora_unet_" + layer.replace(".", "_")


def diff_size(concept: Concept, unet: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of the tensors that `diff_tensors` makes."""
    layers = plain_layers(unet)
    return sum(layers[name].weight.numel() for name in concept.deltas(PlainUNet(layers))) * dtype.itemsize


def diff_tensors(changes: Iterator[tuple[str, Tensor]], dtype: torch.dtype) -> dict[str, Tensor]:
    """`.diff` keys, which A1111's and ComfyUI's LoRA loaders and LyCORIS add to the weights as they are."""
    return {f"{kohya_name(name)}.diff": change.to(dtype).contiguous() for name, change in changes}


# -------------------------------------------------------------------------------------------- LoRA


@dataclass(frozen=True)
class LowRank:
    """ΔW ≈ up · down of one layer: up (c_out, r), down (r, c_in · k²); `lost` is ‖ΔW − up · down‖ and `whole`
    ‖ΔW‖."""

    up: Tensor
    down: Tensor
    lost: float
    whole: float

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    @property
    def change(self) -> Tensor:
        """up · down."""
        return self.up @ self.down


def low_rank(change: Tensor, rank: int | None = None, max_error: float | None = None) -> LowRank:
    """The best approximation (Eckart and Young 1936) of ΔW seen as a matrix (c_out, c_in · k²): of this rank,
    or of the least rank whose relative error is at most `max_error`.

    By the eigenvectors U of ΔW ΔWᵀ: up = U, down = Uᵀ ΔW, and what is lost are the other eigenvalues.
    """
    matrix = change.flatten(1)
    values, vectors = torch.linalg.eigh((matrix @ matrix.T).double())
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    beyond = values.sum() - values.cumsum(0)  # squared error of ranks 1, 2, ...
    most = min(matrix.shape)
    if rank is None:
        assert max_error is not None
        enough = beyond[:most] <= max_error**2 * values.sum()
        rank = int(enough.int().argmax()) + 1 if bool(enough.any()) else most
    rank = min(rank, most)
    up = vectors[:, :rank].to(matrix.dtype)
    lost = math.sqrt(max(float(beyond[rank - 1]), 0.0))
    down = up.T @ matrix
    scale = down.norm(dim=1).clamp(min=1e-30).sqrt()  # both factors alike, which half precision likes
    return LowRank(up * scale, down / scale[:, None], lost, float(values.sum().sqrt()))


@dataclass(frozen=True)
class Lora:
    """A LoRA file's tensors, and how far it is from the concept."""

    tensors: dict[str, Tensor]
    changes: Mapping[str, Tensor]
    """Layer -> up · down, as the file's dtype has it."""
    ranks: Mapping[str, int]
    error: float
    """‖ΔW − up · down‖ / ‖ΔW‖ over all layers together."""


def lora(
    changes: Iterator[tuple[str, Tensor]],
    dtype: torch.dtype,
    rank: int | None = None,
    max_error: float | None = None,
) -> Lora:
    """The concept's changes as a LoRA in kohya's form, which diffusers, A1111 and ComfyUI read, each layer of
    this rank or of the least that keeps its own relative error at most `max_error`.

    Raises SettingsError unless exactly one of the two is given and can be met.
    """
    if (rank is None) == (max_error is None):
        raise SettingsError("A LoRA is made of a rank or of a largest error: give one of the two.")
    if rank is not None and rank < 1:
        raise SettingsError(f"A LoRA's rank is a whole number from 1 up, not {rank}.")
    if max_error is not None and not 0 < max_error < 1:
        raise SettingsError(f"The largest error is a number between 0 and 1, not {max_error}: 0.5, say.")
    tensors: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}
    ranks, lost, whole = {}, 0.0, 0.0
    for name, change in changes:
        part = low_rank(change, rank, max_error)
        # One alpha for all layers, whose ranks differ: diffusers loses those that differ at attention layers.
        up, down = (part.rank * part.up).to(dtype), part.down.to(dtype)
        made[name] = (up.float() @ down.float() / part.rank).view(change.shape)
        lost += float((made[name] - change).square().sum())
        whole += part.whole**2
        ranks[name] = part.rank
        if change.ndim == 4:
            up, down = up[:, :, None, None], down.view(part.rank, *change.shape[1:])
        key = kohya_name(name)
        tensors |= {
            f"{key}.lora_up.weight": up.contiguous(),
            f"{key}.lora_down.weight": down.contiguous(),
            f"{key}.alpha": torch.tensor(1.0, dtype=dtype),
        }
    return Lora(tensors, made, ranks, math.sqrt(lost / whole) if whole else 0.0)
