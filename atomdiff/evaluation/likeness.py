"""Likeness, drift and variety of pictures as vectors of length 1, whoever looks at them: DINO, CLIP, or the
pocket's judge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor


def likeness(drawn: Tensor, real: Tensor) -> float:
    """Mean cosine of every picture drawn (n, d) to every one that it is to be like (m, d)."""
    return float((drawn @ real.T).mean())


def agreement(one: Tensor, other: Tensor) -> float:
    """Mean cosine of pairs: of pictures (n, d) to their prompts (n, d), say."""
    return float((one * other).sum(1).mean())


def drift(before: Tensor, after: Tensor) -> float:
    """1 - mean cosine of pictures of the same prompts and noise, (n, d) both."""
    return 1 - agreement(before, after)


def right(answers: Tensor, wanted: Tensor, each: int) -> float:
    """Share of `answers` (prompts · each) that are what their prompt wants (prompts)."""
    return float((answers.view(len(wanted), each) == wanted[:, None]).float().mean())


def spread(vectors: Tensor, each: int) -> float:
    """Mean distance, 1 - cosine, of pictures of different prompts; vectors (prompts · each, d)."""
    groups = vectors.unflatten(0, (-1, each)).mean(1)  # (prompts, d): pairs of all pictures, summed
    cosines, n = groups @ groups.T, len(groups)
    return float(1 - (cosines.sum() - cosines.trace()) / (n * (n - 1)))


def diversity(pictures: Sequence[Image.Image], each: int) -> float:
    """Root mean square difference between pictures of one prompt, in [0, 1]; 0 where there is one of each.

    Over pairs of n pictures the mean squared difference is twice their variance, n / (n - 1) times.
    """
    if each < 2:
        return 0.0
    values = np.stack([np.asarray(p.convert("RGB"), dtype=np.float32) / 255 for p in pictures])
    groups = values.reshape(-1, each, values[0].size)
    return float(np.sqrt(2 * groups.var(1, ddof=1).mean(1)).mean())
