"""Small classifiers with a full-size twin each, and the ways of tuning them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from atomdiff.core import inject, subspace
from atomdiff.core.inject import AtomSpec


def resnet(full: bool = False) -> Any:
    """ResNet-50, or a small one for pictures of 64 pixels."""
    from transformers import ResNetConfig, ResNetModel

    small = {"embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [2, 2, 2], "layer_type": "basic"}
    return ResNetModel(ResNetConfig(**({} if full else small)))


def convnext(full: bool = False) -> Any:
    """ConvNeXt-T, or a small one for pictures of 64 pixels."""
    from transformers import ConvNextConfig, ConvNextModel

    small = {"hidden_sizes": [32, 64, 128], "depths": [2, 2, 2], "num_stages": 3}
    return ConvNextModel(ConvNextConfig(**({} if full else small)))


NETWORKS = {"ResNet": resnet, "ConvNeXt": convnext}


def features(network: nn.Module, pictures: Tensor) -> Tensor:
    """uint8 (b, 64, 64, 3) -> (b, c)."""
    x = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
    return network(x).pooler_output.flatten(1)


def atom_share(make: Callable[[bool], nn.Module], num_atoms: int, side: int = 0) -> tuple[int, int]:
    """How many numbers the atoms of all spatial convolutions of a full-size network are, or of those with a
    square kernel of that side, and its weights."""
    with torch.device("meta"):
        network = make(True)
    chosen = inject.select(network, AtomSpec(linear_atoms="none")).conv.values()
    sizes = [conv.kernel_size for conv in chosen if not side or conv.kernel_size == (side, side)]
    kernels = [height * width for height, width in sizes]
    return sum(min(num_atoms, k2) * k2 for k2 in kernels), sum(p.numel() for p in network.parameters())


# -------------------------------------------------------------------------------------------------- methods


def _nothing(network: nn.Module) -> list[nn.Parameter]:
    return []


def _everything(network: nn.Module) -> list[nn.Parameter]:
    return list(network.requires_grad_(True).parameters())


def _atoms(spec: AtomSpec, network: nn.Module) -> list[nn.Parameter]:
    return inject.attach(network, spec).parameters()


def _atoms_and_dc(network: nn.Module) -> list[nn.Parameter]:
    """Dc on the coefficients of the convolutions as in the paper; on the linear layers where all convolutions
    are depthwise, whose coefficients have no blocks."""
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in network.modules())
    dc = {"linear_atoms": "all"} if depthwise else {"linear_atoms": "none", "coef_block": 4}
    return _atoms(AtomSpec(**dc), network)


class Coefficients(nn.Module):
    """W' = W + Δα D over the atoms D (m, k2), which stay: what the paper compares tuned atoms with."""

    basis: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        kernel = (weight.shape[2], weight.shape[3])
        self.register_buffer("basis", subspace.dct_basis(kernel, min(9, kernel[0] * kernel[1])))
        self.change = nn.Parameter(torch.zeros(*weight.shape[:2], len(self.basis)))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.change @ self.basis).view_as(weight)


def _coefficients(network: nn.Module) -> list[nn.Parameter]:
    trained = []
    for conv in inject.select(network, AtomSpec(linear_atoms="none")).conv.values():
        part = Coefficients(conv.weight.detach())
        parametrize.register_parametrization(conv, "weight", part)
        trained.append(part.change)
    return trained


def _lora(network: nn.Module) -> list[nn.Parameter]:
    from peft import LoraConfig, inject_adapter_in_model

    names = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=names), network)
    return [p for p in network.parameters() if p.requires_grad]


METHODS: dict[str, Callable[[nn.Module], list[nn.Parameter]]] = {
    "linear probe": _nothing,
    "atoms": partial(_atoms, AtomSpec(linear_atoms="none")),
    "recursive": partial(_atoms, AtomSpec(linear_atoms="none", conv_family="recursive", channel_groups=0)),
    "atoms + Dc": _atoms_and_dc,
    "α tuned": _coefficients,
    "LoRA r=4, convs": _lora,
    "full": _everything,
}
