"""The block maps of many layers out of one pool of numbers, which all of them share.

A map of kc × kc blocks has kc⁴ numbers, far more than a concept needs. Here each of L layers adds c numbers
to a pool θ (L, 1, c), and takes all of its map ΔDc from it:

    ΔDc[l] = ± θ[h],    h and the sign by a hash of the place in the map

This is the hashing trick (Chen et al. 2015, arXiv 1504.04788) over all layers at once, as Uni-LoRA has it
for the factors of LoRA (arXiv 2506.00799). ΔDc is linear in θ, and ‖ΔDc‖² about kc⁴ / c times ‖θ‖².
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

WORD = 0xFFFFFFFF


@lru_cache(maxsize=4)
def places(layers: int, block: int, numbers: int) -> tuple[Tensor, Tensor]:
    """Where in the pool the numbers of every map lie, and their signs: (L, kc²·kc²) int64, and fp32.

    Number e of map l has the hash H of p = l kc⁴ + e; its place is ⌊H / 2⌋ mod (L c), its sign minus if H is
    odd. Callers must not write to what they get.
    """
    size = block**4
    H = _mixed(torch.arange(layers * size))
    index, sign = (H >> 1) % (layers * numbers), 1.0 - 2.0 * (H & 1)
    return index.view(layers, size), sign.view(layers, size)


def maps(pool: Tensor, block: int) -> Tensor:
    """ΔDc of every layer: (L, 1, c) -> (L, kc², kc²), of the pool's dtype."""
    index, sign = places(len(pool), block, pool.shape[2])
    side = block**2
    return (pool.flatten()[index.to(pool.device)] * sign.to(pool)).view(-1, side, side)


def uses(layers: int, block: int, numbers: int) -> Tensor:
    """How often each number of a pool stands in the maps: (L, 1, c) fp32. With these as weights, an inner
    product of pools is that of their maps."""
    index, _ = places(layers, block, numbers)
    counted = torch.bincount(index.flatten(), minlength=layers * numbers)
    return counted.view(layers, 1, numbers).float()


def _mixed(p: Tensor) -> Tensor:
    """The finaliser of MurmurHash3 for 32 bits, of integers in int64."""
    H = p & WORD
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        H = ((H ^ (H >> shift)) * factor) & WORD
    return H ^ (H >> 16)
