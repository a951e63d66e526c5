"""Peers through their own libraries, PEFT and LyCORIS, each with its library's defaults where not said."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from atomdiff.base.stable_diffusion import Base

from .protocol import Handle, Kept, Method

ATTENTION = r".*attn\d\.to_(q|k|v|out\.0)"
CROSS = r".*attn2\.to_(q|k|v|out\.0)"
CONVS = r".*(conv1|conv2|samplers\.0\.conv|conv_in|conv_out)"
BOTH = rf"{ATTENTION}|{CONVS}"
NORMS = r".*(norm\d?|conv_norm_out)"


class Adapted(Handle):
    """A base with a library's adapter in it; `adapter` is the library's object, which nothing else holds."""

    def __init__(
        self, base: Base, kept: Kept, trained: Mapping[str, nn.Parameter], adapter: nn.Module
    ) -> None:
        super().__init__(base, kept, trained)
        self.adapter = adapter


def _peft(config: str, targets: str, **options: Any) -> Callable[[Base], Handle]:
    """An adapter of PEFT's class `config` in the layers whose whole name matches `targets`."""

    def attach(base: Base) -> Handle:
        import peft

        kept, before = Kept(base.unet), set(base.unet.parameters())
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice on options, which a benchmark sets on purpose
            torch.manual_seed(0)
            made = getattr(peft, config)(target_modules=targets, **options)
            model = peft.get_peft_model(base.unet, made)  # also holds what the layers share
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad and p not in before}
        return Adapted(base, kept, trained, model)

    return attach


def lora(rank: int, targets: str) -> Callable[[Base], Handle]:
    return _peft("LoraConfig", targets, r=rank, lora_alpha=rank)


def uni_lora(numbers: int) -> Callable[[Base], Handle]:
    return _peft("UniLoraConfig", ATTENTION, r=4, theta_d_length=numbers)


def _ia3(base: Base) -> Handle:
    """Scales of keys, values and the feed-forward's inner activations, as the paper has it."""
    inner = r".*ff\.net\.2"
    return _peft("IA3Config", rf".*attn\d\.to_(k|v)|{inner}", feedforward_modules=inner)(base)


def _lycoris(algorithm: str, targets: str, **options: Any) -> Callable[[Base], Handle]:
    """A network of LyCORIS over the layers whose whole name matches `targets`."""

    def attach(base: Base) -> Handle:
        from lycoris import LycorisNetwork

        logging.getLogger("LyCORIS").setLevel(logging.ERROR)
        kept = Kept(base.unet)
        LycorisNetwork.apply_preset(
            {
                "enable_conv": True,
                "target_module": [],
                "target_name": [rf"(?:{targets})$"],
                "use_fnmatch": False,
            }
        )
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            network = LycorisNetwork(base.unet, network_module=algorithm, **options)
            network.apply_to()
        network.to(base.device)
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        return Adapted(base, kept, trained, network)

    return attach


PEFT = (
    Method("LoRA r=1, attention", lora(1, ATTENTION), 1e-3),
    Method("LoRA r=4, attention", lora(4, ATTENTION), 1e-3),
    Method("LoRA r=16, attention", lora(16, ATTENTION), 5e-4),
    Method("LoRA r=1, convs", lora(1, CONVS), 1e-3),
    Method("LoRA r=4, convs", lora(4, CONVS), 1e-3),
    Method("LoRA r=16, convs", lora(16, CONVS), 5e-4),
    Method("LoRA r=1, both", lora(1, BOTH), 1e-3),
    Method("LoRA r=4, both", lora(4, BOTH), 1e-3),
    Method("LoRA r=16, both", lora(16, BOTH), 5e-4),
    Method("LoRA r=1, cross-attention", lora(1, CROSS), 1e-3),
    Method("LoHa r=2", _peft("LoHaConfig", ATTENTION, r=2, alpha=2), 2e-3),
    Method("LoKr r=2", _peft("LoKrConfig", ATTENTION, r=2, alpha=2), 2e-3),
    Method("LoKr r=1, both", _peft("LoKrConfig", BOTH, r=1, alpha=1, decompose_both=True), 2e-3),
    Method("OFT block 4", _peft("OFTConfig", ATTENTION, r=0, oft_block_size=4), 2e-3),
    Method("IA3", _ia3, 1e-2),
    Method("LN tuning", _peft("LNTuningConfig", NORMS), 2e-3),
    Method("VeRA r=16", _peft("VeraConfig", ATTENTION, r=16, save_projection=False), 1e-2),
    Method("FourierFT n=64", _peft("FourierFTConfig", ATTENTION, n_frequency=64, init_weights=True), 1e-2),
    Method("Uni-LoRA 2304", uni_lora(2304), 1e-2),
    Method("Uni-LoRA 4608", uni_lora(4608), 1e-2),
)
LYCORIS = (
    Method("LyCORIS LoCon r=1", _lycoris("locon", BOTH, lora_dim=1, conv_lora_dim=1), 1e-3),
    Method("LyCORIS LoKr factor 8", _lycoris("lokr", BOTH, lora_dim=1, conv_lora_dim=1, factor=8), 2e-3),
    Method("LyCORIS IA3", _lycoris("ia3", ATTENTION), 1e-2),
)
PEERS = (*PEFT, *LYCORIS)
