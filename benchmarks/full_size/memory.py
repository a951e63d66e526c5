"""`python -m benchmarks.full_size.memory`: how much GPU memory a training takes, computed without one.

The forward and backward pass of one step run on tensors without contents (torch's FakeTensorMode), in fp16
as on a GPU, with PyTorch's own attention, and every storage is counted while it lives: weights and
activations at their peak. The default recipe is trained, and the text encoders stay, since the trigger's
vectors are trained with it. What a GPU takes besides, for its context, libraries' workspaces and fragments,
is not in it: allow 1 GB more.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from atomdiff.core.inject import attach
from atomdiff.training.defaults import spec_of, suit_recipe
from atomdiff.training.settings import TrainingSettings

from ..report import command, markdown, show, written
from ..shapes import asked
from .building import KINDS, components

PAGE, KEPT = Path("docs/memory.md"), Path("benchmarks/results/full_size_memory.json")
BATCHES = (1, 2)
SIDES = {"sd15": 512, "sd21": 768, "sdxl": 1024}
ABOUT = """# Memory of a training on a GPU

**Computed, not measured on a GPU.** {written}.

GB of weights and activations at the peak of a step in fp16 or bf16, with PyTorch's own attention and the
default recipe; checkpointing is `--gradient_checkpointing`. Class pictures count as pictures of a step:
with prior preservation and `--train_batch_size 1` a step has 2. A GPU takes about 1 GB more for its context
and its libraries.

"""


class Peak(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, while they live."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = WeakIdKeyDictionary()
        for tensor in known:
            self._known[tensor.untyped_storage()] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                size = storage.nbytes()
                self._known[storage] = size
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, size)
        return out

    def _gone(self, size: int) -> None:
        self.now -= size


def activations(kind: str, side: int, batches: Sequence[int]) -> Iterator[int]:
    """Bytes at the peak of one step beside the weights: for each batch without and with checkpointing."""
    from diffusers import UNet2DConditionModel

    spec = spec_of(suit_recipe(TrainingSettings()))
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.set_default_dtype(torch.float16)  # tensors without contents cannot be cast in place
        try:
            unet = UNet2DConditionModel(**KINDS[kind].unet).requires_grad_(False)
        finally:
            torch.set_default_dtype(torch.float32)
        attached = attach(unet, spec, seed=0)
        unet.train()
        for batch in batches:
            for checkpointing in (False, True):
                if checkpointing:
                    unet.enable_gradient_checkpointing()
                else:
                    unet.disable_gradient_checkpointing()
                yield _step(unet, side, batch)
                for parameter in attached.parameters():
                    parameter.grad = None


def _step(unet: Any, side: int, batch: int) -> int:
    peak = Peak([*unet.parameters(), *unet.buffers()])
    with peak:
        asked(unet, batch, side).of(unet).float().square().mean().backward()
    return peak.peak


def weights(kind: str) -> int:
    """Bytes of UNet and text encoders in fp16; the autoencoder is gone during the steps."""
    models = [model for name, model in components(KINDS[kind]).items() if name != "vae"]
    return sum(2 * p.numel() for model in models for p in model.parameters())


def main() -> None:
    parser = command("full_size.memory", __doc__, docs=str(PAGE), check=False)
    parser.add_argument("--models", nargs="+", default=list(SIDES), choices=list(SIDES))
    a = parser.parse_args()
    found = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    for kind in a.models:
        kept = weights(kind)
        found[kind] = [round((kept + more) / 1e9, 1) for more in activations(kind, SIDES[kind], BATCHES)]
        KEPT.write_text(json.dumps(found) + "\n")
    headers = ("base, side", *(f"{b} a step{c}" for b in BATCHES for c in ("", ", checkpointing")))
    rows = [(f"{kind}, {SIDES[kind]}²", *map(str, found[kind])) for kind in SIDES if kind in found]
    show("GB of GPU memory, computed", headers, rows)
    if a.docs:
        PAGE.write_text(
            ABOUT.format(written=written().replace("benchmarks.memory", "benchmarks.full_size.memory"))
            + markdown(headers, rows)
            + "\n",
            "utf-8",
        )


if __name__ == "__main__":
    main()
