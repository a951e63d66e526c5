"""The one exchange of a training step between processes."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atomdiff.errors import TrainingError


def averaged(parameters: Iterable[nn.Parameter], numbers: Sequence[float], accelerator: Any) -> list[float]:
    """Averages the parameters' gradients, in place, and `numbers` over all processes, in one message.

    Raises TrainingError where another process is gone.
    """
    if accelerator.num_processes == 1:
        return list(numbers)
    gradients = [_gradient(parameter) for parameter in parameters]
    extra = torch.tensor(numbers, dtype=torch.float32, device=accelerator.device)
    flat = torch.cat([*(g.flatten() for g in gradients), extra])
    try:
        flat = accelerator.reduce(flat, reduction="mean")
    except RuntimeError:  # the backends have no common error for a process that is gone
        raise TrainingError("The exchange with the other processes broke off; one of them ended.") from None
    parts = flat.split([g.numel() for g in gradients] + [len(numbers)])
    for gradient, part in zip(gradients, parts, strict=False):
        gradient.copy_(part.view_as(gradient))
    return [float(x) for x in parts[-1]]


def _gradient(parameter: nn.Parameter) -> Tensor:
    """The gradient, made zero where the backward pass did not reach the layer."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
