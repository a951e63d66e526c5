"""Pretraining, and the transfer of one method to one task."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from atomdiff.files.atomic import write_atomically
from atomdiff.pocket import corpus, world

from .networks import METHODS, NETWORKS, features
from .tasks import Data, task_data

TRAIN, VALID, TEST = 800, 200, 1000  # pictures of a task, the first two as in VTAB-1k


def pretrained(name: str, out: Path, count: int, epochs: int) -> nn.Module:
    """A small network that knows the world's classes and colours; kept in `out`."""
    from safetensors.torch import load_file, save

    torch.manual_seed(0)
    network, path = NETWORKS[name](), out / f"{name}-{count}-{epochs}.safetensors"
    if not path.exists():
        seen = corpus.pretraining(out / "pictures", count, 0)
        pictures = torch.from_numpy(seen.pictures)
        labels = torch.stack([torch.from_numpy(seen.labels[h]) for h in ("class", "colour")], 1)
        heads = nn.Linear(
            len(features(network.eval(), pictures[:1])[0]), len(world.CLASSES) + len(world.COLOURS)
        )
        parameters = [*network.parameters(), *heads.parameters()]
        loss = lambda answer, y: sum(  # noqa: E731
            cross_entropy(part, y[:, i])
            for i, part in enumerate(answer.split([len(world.CLASSES), len(world.COLOURS)], 1))
        )
        fit(network.train(), heads, parameters, (pictures, labels), epochs, 1e-3, 0, loss)
        state = {key: value.contiguous() for key, value in network.state_dict().items()}
        write_atomically(path, save(state))
    network.load_state_dict(load_file(path))
    return network.eval().requires_grad_(False)


def fit(
    network: nn.Module,
    head: nn.Module,
    parameters: Sequence[nn.Parameter],
    data: Data,
    epochs: int,
    rate: float,
    seed: int,
    loss: Callable[[Tensor, Tensor], Any] = cross_entropy,
) -> None:
    """AdamW with a cosine to zero, batches of 64."""
    generator = torch.Generator().manual_seed(seed)
    adam = torch.optim.AdamW(parameters, rate, weight_decay=0.0)
    batches = -(-len(data[0]) // 64)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, epochs * batches)
    for _ in range(epochs):
        for rows in torch.randperm(len(data[0]), generator=generator).split(64):
            loss(head(features(network, data[0][rows])), data[1][rows]).backward()
            adam.step()
            adam.zero_grad()
            cosine.step()


@torch.no_grad()
def accuracy(network: nn.Module, head: nn.Module, data: Data) -> float:
    hits = [
        (head(features(network, x)).argmax(1) == y).float()
        for x, y in zip(data[0].split(256), data[1].split(256), strict=True)
    ]
    return float(torch.cat(hits).mean())


def transfer(
    network: nn.Module, method: str, task: str, seed: int, a: argparse.Namespace
) -> dict[str, float]:
    """Test accuracy, gap and trained numbers (beside the head's) at the rate that validates best."""
    x, y = task_data(task, TRAIN + VALID + TEST)
    train, valid, test = ((x[part], y[part]) for part in _parts(a.train, len(x)))
    tried = []
    for rate in a.rates:
        torch.manual_seed(seed)
        own = copy.deepcopy(network)
        parameters = METHODS[method](own)
        head = nn.Linear(len(features(own, x[:1])[0]), int(y.max()) + 1)
        fit(own, head, [*parameters, *head.parameters()], train, a.epochs, rate, seed)
        scores = [accuracy(own, head, part) for part in (valid, test, train)]
        found = {"test": scores[1], "gap": scores[2] - scores[1], "rate": rate}
        tried.append((scores[0], found | {"numbers": sum(p.numel() for p in parameters)}))
    return max(tried, key=lambda pair: pair[0])[1]


def _parts(train: int, count: int) -> tuple[slice, slice, slice]:
    return slice(0, train), slice(TRAIN, TRAIN + VALID), slice(TRAIN + VALID, count)
