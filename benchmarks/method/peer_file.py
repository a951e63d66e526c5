"""The file of a peer: fp16 under its library's names, as peers are shared, or quantised for equal bytes.

Quantised, all its numbers are one row in blocks of 64 that share a scale, as atomdiff quantises its own and
with nothing else in the file: no peer could be smaller in that precision.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from safetensors.numpy import load, save
from torch import Tensor

from atomdiff.files.quantization import pack, quantise, unpack

BLOCK = 64


def to_bytes(trained: Mapping[str, Tensor], precision: str) -> bytes:
    """A safetensors file of the numbers, by name. Raises ConceptError for what fp16 scales cannot hold."""
    arrays = {name: tensor.detach().float().cpu().numpy() for name, tensor in trained.items()}
    if precision == "fp16":
        return save({name: array.astype(np.float16) for name, array in arrays.items()})
    flat = np.concatenate([array.reshape(-1) for array in arrays.values()])
    flat = np.append(flat, np.zeros(-len(flat) % BLOCK, np.float32))
    scales, whole = quantise("numbers", flat.reshape(-1, 1, BLOCK), precision)
    numbers = np.frombuffer(pack(whole), np.uint8) if precision == "int4" else whole
    return save({"numbers": numbers, "scales": scales})


def from_bytes(data: bytes, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The numbers of a file, fp32, with the names and shapes of `trained`."""
    held = load(data)
    if held.keys() == trained.keys():
        return {name: torch.from_numpy(held[name].astype(np.float32)) for name in trained}
    whole, scales = held["numbers"], held["scales"]
    if whole.dtype == np.uint8:
        whole = unpack(whole.tobytes(), (len(scales), 1, BLOCK))
    flat = torch.from_numpy((whole * scales.astype(np.float32)[:, None, None]).reshape(-1))
    parts = flat[: sum(tensor.numel() for tensor in trained.values())].split(
        [t.numel() for t in trained.values()]
    )
    return {name: part.view(trained[name].shape) for name, part in zip(trained, parts, strict=True)}
