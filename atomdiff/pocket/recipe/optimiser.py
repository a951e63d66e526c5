"""Muon for matrices, AdamW for everything else.

Muon (Jordan 2024; torch.optim.Muon) steps along the nearest orthogonal matrix to the momentum, and gets
far more out of the few steps that a CPU has time for. torch's takes matrices only, so a convolution's kernel
is shown to it as (c_out, c_in·kh·kw), sharing memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ADAM_SHARE = 0.3  # the rate of what is no matrix, as a share of the matrices' rate
SMALLEST = 600  # numbers: below this a matrix is too thin for an orthogonal step to mean much


class Optimiser:
    """`slower` maps a prefix of parameter names to a factor on the rate; embeddings count as no matrix."""

    def __init__(
        self, params: dict[str, nn.Parameter], rate: float, weight_decay: float, slower: dict[str, float]
    ):
        self.params, self.rate = params, rate
        self.views = {
            name: nn.Parameter(p.data.view(len(p), -1))
            for name, p in params.items()
            if p.ndim >= 2 and p.numel() > SMALLEST and "embedding" not in name
        }
        factors = {name: next((f for k, f in slower.items() if name.startswith(k)), 1.0) for name in params}
        muon: dict[float, list[nn.Parameter]] = {}
        adam: dict[float, list[nn.Parameter]] = {}
        for name, p in params.items():
            group, share = (muon, 1.0) if name in self.views else (adam, ADAM_SHARE)
            group.setdefault(share * factors[name], []).append(self.views.get(name, p))
        self.muon = torch.optim.Muon(
            _groups(muon), lr=rate, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        self.adam = torch.optim.AdamW(_groups(adam), lr=rate, weight_decay=0.0, betas=(0.9, 0.99), fused=True)

    def step(self, rate: float) -> None:
        """One step at `rate`; takes the gradients, and forgets them."""
        for name, view in self.views.items():
            grad = self.params[name].grad
            view.grad = None if grad is None else grad.view(view.shape)
        for optimiser in (self.muon, self.adam):
            for group in optimiser.param_groups:
                group["lr"] = rate * group["factor"]
            optimiser.step()
        for p in (*self.params.values(), *self.views.values()):
            p.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, as "name/key" -> tensor."""
        return {f"{name}/{key}": value for name, state in self._states() for key, value in state.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes what `tensors` gave; parameters it says nothing of start afresh."""
        for name, p in self.params.items():
            kept = {
                key.rpartition("/")[2]: value
                for key, value in tensors.items()
                if key.rpartition("/")[0] == name
            }
            if kept:
                owner = self.muon if name in self.views else self.adam
                owner.state[self.views.get(name, p)] = {
                    key: value.to(p.device if key != "step" else "cpu") for key, value in kept.items()
                }

    def _states(self):
        for name, p in self.params.items():
            owner = self.muon if name in self.views else self.adam
            yield name, owner.state[self.views.get(name, p)]


def _groups(by_factor: dict[float, list[nn.Parameter]]) -> list[dict]:
    return [{"params": params, "factor": factor} for factor, params in by_factor.items()]
