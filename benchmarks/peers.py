"""The peers: LoRA and Uni-LoRA through PEFT, each with a learned word, and DreamBooth, which trains every
weight. (Textual inversion with its class pictures is the tool's own recipe `word`.)

A peer is put into a copy of the UNet, trained in the benchmark's own loop, filed in fp16 as its library would
and drawn from. Every peer sees the pictures, noise and timesteps that the tool's own training would see at
the same step, as DreamBooth trains: class pictures beside the subject's, a constant rate.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from safetensors.numpy import load, save
from torch import nn

from atomdiff.base.stable_diffusion import Base, PromptEmbeds, embed_prompts
from atomdiff.base.textual_inversion import TriggerToken, added
from atomdiff.training.batches import Sampler
from atomdiff.training.forward import TrainingData
from atomdiff.training.latents import LiveTable, PromptTable
from atomdiff.training.objective import diffusion_loss

TRIGGER = "sks"
ATTENTION = r".*attn\d\.to_(q|k|v|out\.0)"
TEXT = "text_encoder."
IN_TEXT = r".*self_attn\.(q|k|v|out)_proj"
WORDS = 1.25  # the rate of embeddings, as a multiple of LoRA's; searched with it


class Handle:
    """A base of its own with a peer in it: the numbers that are trained, by name. `adapter` is the library's
    object, which nothing else may hold; `reads`: the text encoder is trained too."""

    def __init__(
        self, base: Base, trained: Mapping[str, nn.Parameter], adapter: object = None, reads: bool = False
    ) -> None:
        self.base, self.trained, self.adapter, self.reads = base, dict(trained), adapter, reads

    def table(self, known: PromptTable) -> PromptTable | LiveTable | ReadAnew:
        """Embeddings of the prompts while it is trained."""
        return ReadAnew(known, self.base) if self.reads else known

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser."""
        return [{"params": list(self.trained.values()), "lr": rate}]

    def numbers(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.trained.values())

    def to_bytes(self) -> bytes:
        """A safetensors file in fp16, under the library's names, as peers are shared."""
        return save({name: p.detach().half().cpu().numpy() for name, p in self.trained.items()})

    @contextmanager
    def filed(self, data: bytes) -> Iterator[None]:
        """Within: the base draws what the file says."""
        with torch.no_grad():
            for name, values in load(data).items():
                self.trained[name].copy_(torch.from_numpy(values))
        yield

    def asked(self, prompt: str) -> str:
        """The prompt as the base must be given it within `filed`."""
        return prompt


Attach = Callable[[Base], Handle]


def copied(base: Base) -> Base:
    """The same base with a UNet and a text encoder of its own."""
    pipe = copy.copy(base.pipe)
    pipe.unet, pipe.text_encoder = copy.deepcopy(base.unet), copy.deepcopy(pipe.text_encoder)
    return replace(base, pipe=pipe)


def peft(config: str, targets: str, in_text: str = "", **options: Any) -> Attach:
    """An adapter of PEFT's class `config` in the layers of the UNet whose whole name matches `targets`, and
    in those of the text encoder that match `in_text`."""

    def attach(base: Base) -> Handle:
        import peft

        own = copied(base)
        parts = [("", own.unet, targets), (TEXT, own.pipe.text_encoder, in_text)]
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice on options, which a benchmark sets on purpose
            torch.manual_seed(0)
            models = {  # each also holds what its layers share
                part: peft.get_peft_model(model, getattr(peft, config)(target_modules=layers, **options))
                for part, model, layers in parts
                if layers
            }
        return Handle(own, _trainable(models), models, reads=bool(in_text))

    return attach


def lora(rank: int, text_encoder: bool = False) -> Attach:
    """As diffusers' `train_dreambooth_lora.py` trains it, with `--train_text_encoder` where that is said."""
    return peft("LoraConfig", ATTENTION, IN_TEXT if text_encoder else "", r=rank, lora_alpha=rank)


def uni_lora(numbers: int) -> Attach:
    return peft("UniLoraConfig", ATTENTION, r=4, theta_d_length=numbers)


def full(text_encoder: bool = False) -> Attach:
    """Every weight, of the UNet or of the text encoder too: diffusers' `train_dreambooth.py`, without or with
    `--train_text_encoder`."""

    def attach(base: Base) -> Handle:
        own = copied(base)
        parts = {"": own.unet} | ({TEXT: own.pipe.text_encoder} if text_encoder else {})
        for model in parts.values():
            model.requires_grad_(True)
        return Handle(own, _trainable(parts), reads=text_encoder)

    return attach


def _trainable(parts: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    return {
        part + name: parameter
        for part, model in parts.items()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


class ReadAnew:
    """A `PromptTable` whose prompts are all embedded anew each time, with gradients."""

    def __init__(self, table: PromptTable, base: Base) -> None:
        self._prompts, self._base = table.prompts, base

    def rows(self, numbers: Sequence[int], device: Any) -> PromptEmbeds:
        """Embeddings for a batch, on `device`."""
        different = sorted(set(numbers))
        made = embed_prompts(self._base, [self._prompts[i] for i in different])
        index = [different.index(i) for i in numbers]
        return PromptEmbeds(made.hidden[index].to(device), None)


class WithWords(Handle):
    """A peer together with embeddings of the trigger, as advanced trainers of peers do it; or those alone."""

    def __init__(self, base: Base, attach: Attach | None, rate: float = WORDS, vectors: int = 2) -> None:
        """`rate`: that of the embeddings, as a multiple of the peer's."""
        other = attach(base) if attach else Handle(copied(base), {})
        self.words, self.rate = TriggerToken(other.base, TRIGGER, vectors=vectors), rate
        super().__init__(other.base, dict(self.words.vectors) | other.trained, other.adapter)
        self.learned = self.words.embedding()

    def table(self, known: PromptTable) -> LiveTable:
        return LiveTable(known, self.base, self.words)

    def groups(self, rate: float) -> list[dict[str, Any]]:
        words = self.learned.vectors
        others = [parameter for name, parameter in self.trained.items() if name not in words]
        both = [([self.trained[name] for name in words], self.rate * rate), (others, rate)]
        return [{"params": some, "lr": own} for some, own in both if some]

    @contextmanager
    def filed(self, data: bytes) -> Iterator[None]:
        vectors = {key: torch.from_numpy(load(data)[key]).float() for key in self.learned.vectors}
        moved = {key: vector.to(self.base.device) for key, vector in vectors.items()}
        with super().filed(data), added(self.base, [replace(self.learned, vectors=moved)]):
            yield

    def asked(self, prompt: str) -> str:
        return self.learned.convert_prompt(prompt)


def with_words(attach: Attach) -> Attach:
    return lambda base: WithWords(base, attach)


def textual_inversion(base: Base) -> Handle:
    """One embedding of the trigger alone."""
    return WithWords(base, None, rate=1.0, vectors=1)


def fit(handle: Handle, data: TrainingData, steps: int, batch: int, seed: int, rate: float) -> float:
    """Trains what the handle trains, on so many pictures a step and as many of the class, at a constant rate;
    returns the last loss. A loss that is no number ends it: what is there then is judged."""
    base, trained = handle.base, list(handle.trained.values())
    assert isinstance(data.table, PromptTable)
    table = handle.table(data.table)
    adam = torch.optim.AdamW(handle.groups(rate), weight_decay=0.0)
    times = int(base.scheduler.config.num_train_timesteps)
    caches = ((data.instance, "instance"), (data.prior, "class"))
    samplers = [Sampler(cache, seed, name, times) for cache, name in caches if cache]
    loss = 0.0
    for step in range(steps):
        parts = [sampler.batch(step * batch, batch) for sampler in samplers]
        rows = [row for part in parts for row in part.prompts]
        total = diffusion_loss(
            base.unet,
            base.scheduler,
            torch.cat([part.latents for part in parts]).to(base.device),
            table.rows(rows, base.device).hidden,
            None,
            torch.cat([part.noise for part in parts]).to(base.device),
            torch.cat([part.timesteps for part in parts]).to(base.device),
            instances=batch,
            prior_weight=1.0,
        ).total
        total.backward()
        if not nn.utils.clip_grad_norm_(trained, 1.0).isfinite():
            break
        adam.step()
        adam.zero_grad()
        loss = float(total.detach())
    return loss
