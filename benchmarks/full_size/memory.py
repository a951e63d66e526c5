"""`python -m benchmarks.full_size.memory`: how much GPU memory a training takes, computed without one.

The forward and backward pass of one step run on tensors without contents (torch's FakeTensorMode), in fp16
as on a GPU, with PyTorch's own attention, and every storage is counted while it lives: weights and
activations at their peak. The default recipe is trained, and the text encoders stay, since the trigger's
vectors are trained with it. What a GPU takes besides, for its context, libraries' workspaces and fragments,
is not in it: allow 1 GB more.
"""

from __future__ import annotations

import argparse
import weakref
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

from ..report import markdown, show, written
from .building import KINDS, _text_config

PAGE = Path("docs/memory.md")
CASES = (("sd15", 512), ("sd15", 768), ("sd21", 768), ("sdxl", 768), ("sdxl", 1024))


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


def activations(kind: str, side: int, batch: int, checkpointing: bool) -> int:
    """Bytes at the peak of one step beside the weights."""
    from diffusers import UNet2DConditionModel

    what, spec = KINDS[kind], spec_of(suit_recipe(TrainingSettings()))
    with FakeTensorMode(allow_non_fake_inputs=True):
        unet = UNet2DConditionModel(**what.unet).half().requires_grad_(False)
        attached = attach(unet, spec, seed=0)
        unet.train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        latents, prompts = (
            side // 8,
            torch.empty(batch, 77, what.unet["cross_attention_dim"], dtype=torch.float16),
        )
        added = None
        if what.xl:
            added = {
                "text_embeds": torch.empty(batch, 1280, dtype=torch.float16),
                "time_ids": torch.empty(batch, 6, dtype=torch.float16),
            }
        peak = Peak([*unet.parameters(), *unet.buffers()])
        with peak:
            noisy = torch.empty(batch, 4, latents, latents, dtype=torch.float16)
            steps = torch.zeros(batch, dtype=torch.int64)
            answer = unet(noisy, steps, prompts, added_cond_kwargs=added, return_dict=False)[0]
            answer.float().square().mean().backward()
        attached.detach()
    return peak.peak


def weights(kind: str) -> int:
    """Bytes of UNet and text encoders in fp16; the autoencoder is gone during the steps."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    what = KINDS[kind]
    with torch.device("meta"):
        models: list[Any] = [UNet2DConditionModel(**what.unet)]
        for shape, projection, activation in what.texts:
            text = CLIPTextModelWithProjection if projection else CLIPTextModel
            models.append(text(_text_config(shape, projection, activation)))
    return sum(2 * p.numel() for model in models for p in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_size.memory", description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--docs", action="store_true", help=f"write {PAGE}")
    a = parser.parse_args()
    headers = (
        "base, side",
        *(f"{b} a step{c}" for b in a.batches for c in ("", ", --gradient_checkpointing")),
    )
    rows = []
    for kind, side in CASES:
        kept = weights(kind)
        sums = [kept + activations(kind, side, b, c) for b in a.batches for c in (False, True)]
        rows.append((f"{kind}, {side}²", *(f"{total / 1e9:.1f}" for total in sums)))
        print(rows[-1], flush=True)
    show("GB of GPU memory, computed", headers, rows)
    if a.docs:
        PAGE.write_text(
            "# Memory of a training on a GPU\n\n**Computed, not measured on a GPU.** " + f"{written()}.\n\n"
            "GB of weights and activations at the peak of a step in fp16 or bf16, with PyTorch's own "
            "attention and the default\nrecipe. Class pictures count as pictures of a step: with prior "
            "preservation and `--train_batch_size 1` a step has 2.\nA GPU takes about 1 GB more for its "
            "context and its libraries.\n\n" + markdown(headers, rows) + "\n",
            "utf-8",
        )


if __name__ == "__main__":
    main()
