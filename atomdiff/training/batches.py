"""Which picture, which noise, which timestep: every sample of a run as a pure function of (seed, its number).

Sample g of a run (g = 0, 1, 2, ...) draws from generators of its own, seeded by a digest of (seed, g).
So there is no generator state to save: resuming is exact from the step alone; and however the samples
of an optimiser step are dealt to processes and accumulation rounds, they are the same samples, so that
n processes compute the gradient of the joint batch.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from atomdiff.training.latents import LatentCache


class Batch(NamedTuple):
    """Samples of one set, on the CPU."""

    latents: Tensor  # (b, c, h, w) fp32
    noise: Tensor  # (b, c, h, w) fp32
    timesteps: Tensor  # (b,) int64
    prompts: list[int]  # rows of the prompt table


@dataclass(frozen=True)
class Sampler:
    """Draws the samples of one set of pictures; `stream` keeps the draws of two sets apart."""

    cache: LatentCache
    seed: int
    stream: str
    num_timesteps: int
    noise_offset: float = 0.0

    def batch(self, first: int, size: int) -> Batch:
        """Samples first, ..., first + size - 1 of the run."""
        drawn = [self._sample(number) for number in range(first, first + size)]
        return Batch(
            torch.stack([latent for latent, _, _, _ in drawn]),
            torch.stack([noise for _, noise, _, _ in drawn]),
            torch.tensor([timestep for _, _, timestep, _ in drawn]),
            [prompt for _, _, _, prompt in drawn],
        )

    def _sample(self, number: int) -> tuple[Tensor, Tensor, int, int]:
        generator = seeded(self.seed, self.stream, number)
        picture = self.picture(number)
        flip = int(torch.randint(self.cache.mean.shape[1], (), generator=generator))
        timestep = int(torch.randint(self.num_timesteps, (), generator=generator))
        shape = self.cache.mean.shape[2:]
        latent = self.cache.sample(picture, flip, torch.randn(shape, generator=generator))
        noise = torch.randn(shape, generator=generator)
        if self.noise_offset:
            noise = noise + self.noise_offset * torch.randn(shape[0], 1, 1, generator=generator)
        return latent, noise, timestep, self.cache.prompts[picture]

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


def joined(a: Batch, b: Batch) -> Batch:
    """The rows of a, then those of b."""
    return Batch(
        torch.cat([a.latents, b.latents]),
        torch.cat([a.noise, b.noise]),
        torch.cat([a.timesteps, b.timesteps]),
        a.prompts + b.prompts,
    )
