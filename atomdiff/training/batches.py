"""Which picture, which noise, which timestep: every sample of a run as a pure function of (seed, its number).

Sample g of a run (g = 0, 1, 2, ...) draws from generators of its own, seeded by a digest of (seed, g).
So there is no generator state to save: resuming is exact from the step alone; and however the samples
of an optimiser step are dealt to processes and accumulation rounds, they are the same samples, so that
n processes compute the gradient of the joint batch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from atomdiff.training.latents import LatentCache


class Sample(NamedTuple):
    """One picture as it is seen once, on the CPU."""

    latent: Tensor  # (c, h, w) fp32
    noise: Tensor  # (c, h, w) fp32
    timestep: int
    prompt: int  # row of the prompt table
    weight: Tensor | None = None  # (1, h, w) fp32: what each place counts, see `masks`


class Batch(NamedTuple):
    """Samples of one shape, on the CPU."""

    latents: Tensor  # (b, c, h, w) fp32
    noise: Tensor  # (b, c, h, w) fp32
    timesteps: Tensor  # (b,) int64
    prompts: list[int]  # rows of the prompt table
    weights: Tensor | None = None  # (b, 1, h, w) fp32


@dataclass(frozen=True)
class Sampler:
    """Draws the samples of one set of pictures; `stream` keeps the draws of two sets apart."""

    cache: LatentCache
    seed: int
    stream: str
    num_timesteps: int
    noise_offset: float = 0.0

    def batch(self, first: int, size: int) -> Batch:
        """Samples first, ..., first + size - 1 of the run, of pictures of one shape."""
        return stacked(self.samples(first, size))

    def samples(self, first: int, size: int) -> list[Sample]:
        """Samples first, ..., first + size - 1 of the run."""
        return [self._sample(number) for number in range(first, first + size)]

    def _sample(self, number: int) -> Sample:
        generator = seeded(self.seed, self.stream, number)
        picture = self.picture(number)
        flip = int(torch.randint(len(self.cache.mean[picture]), (), generator=generator))
        timestep = int(torch.randint(self.num_timesteps, (), generator=generator))
        shape = self.cache.mean[picture].shape[1:]
        latent = self.cache.sample(picture, flip, torch.randn(shape, generator=generator))
        noise = torch.randn(shape, generator=generator)
        if self.noise_offset:
            noise = noise + self.noise_offset * torch.randn(shape[0], 1, 1, generator=generator)
        weight = self.cache.weight(picture, flip)
        return Sample(latent, noise, timestep, self.cache.prompt(picture, generator), weight)

    def picture(self, number: int) -> int:
        """The picture of sample `number`: every picture once in each round, each round in a new order."""
        round_number, place = divmod(number, len(self.cache))
        return _order(self.seed, self.stream, round_number, len(self.cache))[place]


def sample_number(step: int, turn: int, process: int, *, batch: int, turns: int, processes: int) -> int:
    """Number of the first sample of a batch: counted by step, then turn (accumulation), then process."""
    return ((step * turns + turn) * processes + process) * batch


def seeded(*what: object) -> Generator:
    """A CPU generator that depends on nothing but `what`."""
    digest = hashlib.blake2b("/".join(map(str, what)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@lru_cache(maxsize=8)
def _order(seed: int, stream: str, round_number: int, n: int) -> tuple[int, ...]:
    return tuple(torch.randperm(n, generator=seeded(seed, stream, "order", round_number)).tolist())


def stacked(samples: Sequence[Sample]) -> Batch:
    """Samples of one shape in one batch."""
    weights = None
    if any(sample.weight is not None for sample in samples):
        whole = torch.ones(1, *samples[0].latent.shape[1:])
        weights = torch.stack([whole if s.weight is None else s.weight for s in samples])
    return Batch(
        torch.stack([sample.latent for sample in samples]),
        torch.stack([sample.noise for sample in samples]),
        torch.tensor([sample.timestep for sample in samples]),
        [sample.prompt for sample in samples],
        weights,
    )


def by_shape(instance: Sequence[Sample], prior: Sequence[Sample]) -> list[tuple[Batch, int]]:
    """Samples of many shapes as one batch a shape, each with the number of its instance samples, which come
    first. A joint batch is then several forward passes, whose losses add up."""
    groups: dict[tuple[int, ...], tuple[list[Sample], list[Sample]]] = {}
    for place, samples in enumerate((instance, prior)):
        for sample in samples:
            groups.setdefault(tuple(sample.latent.shape), ([], []))[place].append(sample)
    return [(stacked([*own, *others]), len(own)) for own, others in groups.values()]
