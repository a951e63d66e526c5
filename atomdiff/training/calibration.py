"""Learning rates that follow from the base, by function-space speed.

A rate as a number means nothing across bases and families: an atom moves a whole layer, an entry of a LoRA
matrix hardly anything. What can be compared is by how much k steps of Adam change the base's noise
prediction,

    d_g(η) = ‖ε̂(θ + η u_g) − ε̂(θ)‖ / ‖ε̂(θ)‖,    u_g = −Σⱼ m̂ⱼ / (√v̂ⱼ + 1e-8),

u_g being what Adam does at rate 1, for a group of parameters g, with k gradients of the DreamBooth loss at
the untrained concept. Each group's η is solved for d_g(η) = D. LoRA on attention is one of the groups, and
its good rate is known from years of use: so group g is as fast as LoRA at η_g / η_LoRA · rate_LoRA. Groups
that are trained together share that speed evenly.

Nothing here depends on how a function is written as weights: an atom scales with the weight that it moves,
and the LoRA of the probe does so too (see `LoraProbe`).
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from atomdiff.base.stable_diffusion import Base, PromptEmbeds, added_conditions
from atomdiff.core.inject import attach
from atomdiff.core.spec import AtomSpec
from atomdiff.training.objective import diffusion_loss
from atomdiff.training.optimiser import groups_of
from atomdiff.training.probes import Probes, denoising_probes, noise_prediction, relative_change, repeated

VERSION = 1  # to be raised when the same base would get other rates
LORA_RATE = 1e-4  # of diffusers' train_dreambooth_lora.py, r=4 on attention, 500 steps: its README's example
WORD_RATE, WORD_SIZE = 5e-4, 0.4 / 768**0.5  # textual inversion's rate, and SD 1.x's embeddings' rms, for it
STEPS, PICTURES = 4, 2  # k, each with one of so many pictures
CHANGE = 0.1  # D: far above the rounding of half precision, small enough to be nearly linear
NEAR = 0.3  # relative deviation from D within which d(η) is taken as proportional to η
ATTENTION = re.compile(r"(^|\.)attn\d\.to_(q|k|v|out\.0)$")
Groups = Mapping[str, Sequence[nn.Parameter]]


@dataclass(frozen=True)
class Calibration:
    """Rates of conv and linear atoms (0 where none are trained) as fast, together, as LoRA r=4 on attention
    at `lora_rate`; `speed` is that, the relative change of the noise prediction in a step."""

    learning_rate: float
    linear_learning_rate: float
    lora_rate: float
    speed: float

    def __post_init__(self) -> None:
        rates = (self.learning_rate, self.linear_learning_rate)
        if not all(type(x) is float and 0 <= x < math.inf for x in (*rates, self.lora_rate, self.speed)):
            raise ValueError(f"rates are finite numbers from 0 up, not {self!r}")

    def __str__(self) -> str:
        rates = (("conv", self.learning_rate), ("linear", self.linear_learning_rate))
        said = " and ".join(f"{rate:g} for {kind} atoms" for kind, rate in rates if rate)
        return (
            f"{said}, which on this base are as fast as LoRA r=4 on attention at {self.lora_rate:g}: "
            f"{100 * self.speed:.2g} % of the noise prediction a step"
        )


class LoraProbe:
    """LoRA on a UNet's attention as diffusers trains it: ΔW = B A, A of normal numbers of deviation 1/r, B
    zeros. Hooks on the layers; `remove` takes them off.

    ΔW is multiplied by √3 · rms(W x) / rms(x), which is 1 for a layer as nn.Linear makes it: then W x, with
    a normalisation's gain or the next layer's scale moved into W, is moved by the same share of itself.
    """

    def __init__(self, unet: nn.Module) -> None:
        generator, rank = Generator().manual_seed(0), 4
        self.up: list[nn.Parameter] = []
        self.gains: dict[str, Tensor] = {}
        self._handles = []
        for name, layer in unet.named_modules():
            if ATTENTION.search(name):
                weight: Tensor = layer.weight
                down = torch.randn(rank, weight.shape[1], generator=generator) / rank
                up = nn.Parameter(torch.zeros(len(weight), rank, device=weight.device))
                self.up.append(up)
                self._handles.append(layer.register_forward_hook(self._hook(name, down.to(up.device), up)))

    def _hook(self, name: str, down: Tensor, up: nn.Parameter) -> Any:
        def hook(layer: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            x = args[0].float()
            if name not in self.gains:
                product = out.detach() if layer.bias is None else out.detach() - layer.bias
                rms = (product.float().square().mean() / x.detach().square().mean().clamp(min=1e-12)).sqrt()
                self.gains[name] = math.sqrt(3) * rms
            return out + (self.gains[name] * (x @ down.T) @ up.T).to(out.dtype)

        return hook

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def calibrate(
    base: Base,
    spec: AtomSpec,
    prompt: PromptEmbeds,
    empty: PromptEmbeds,
    resolution: int,
    lora_rate: float = LORA_RATE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """The rates of what `spec` trains on this base, measured with pictures of `resolution` that the base
    itself makes of the `empty` prompt, learned as if they were of `prompt` (both of one row). It takes as
    long as about ten training steps.

    The base is left as it was. Raises AtomdiffError where the spec does not fit the UNet.
    """
    probes, _ = denoising_probes(base, prompt, resolution)
    _, pictures = denoising_probes(base, empty, resolution, PICTURES, seed=1)
    # A learned dictionary takes minutes, and its atoms move a layer as those of the closed form do.
    if spec.conv_family == "sparse":
        atoms = min(spec.num_atoms, 9)
        spec = replace(spec, conv_family="atoms", sparsity=AtomSpec.sparsity, num_atoms=atoms)
    attached = attach(base.unet, spec)
    lora = LoraProbe(base.unet)
    try:
        groups = groups_of(attached) | {"lora": lora.up}
        before = noise_prediction(base, probes)
        with _own_forward(base.unet):
            moves = adam_moves(base, groups, pictures, prompt, resolution, progress)
        rates = matched_rates(base, groups, moves, probes, before)
    finally:
        lora.remove()
        attached.detach()
    of = {name: rounded(rate / rates["lora"] * lora_rate) for name, rate in rates.items()}
    speed = CHANGE / STEPS * lora_rate / rates["lora"]
    return Calibration(of.get("conv", 0.0), of.get("linear", 0.0), lora_rate, rounded(speed))


def adam_moves(
    base: Base,
    groups: Groups,
    pictures: Tensor,
    embeds: PromptEmbeds,
    resolution: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[nn.Parameter, Tensor]:
    """u for every parameter: what k steps of Adam at rate 1 would add up to, with gradients that are all
    taken where the parameters are, in the limit of small rates."""
    trained = [parameter for parameters in groups.values() for parameter in parameters]
    moments = [AdamMove(parameter) for parameter in trained]
    for step in range(STEPS):
        progress(step, STEPS)
        _loss(base, pictures[[step % len(pictures)]], embeds, resolution, step).backward()
        for move, parameter in zip(moments, trained, strict=True):
            move.step(parameter.grad)
            parameter.grad = None
    progress(STEPS, STEPS)
    return {parameter: move.total for move, parameter in zip(moments, trained, strict=True)}


class AdamMove:
    """Adam (Kingma & Ba 2015, algorithm 1) for a parameter that stays where it is: its moves, summed."""

    def __init__(self, parameter: Tensor) -> None:
        self.beta1, self.beta2, self.steps = 0.9, 0.999, 0
        self.mean, self.square, self.total = (torch.zeros_like(parameter.detach()) for _ in range(3))

    def step(self, gradient: Tensor | None) -> None:
        gradient = torch.zeros_like(self.mean) if gradient is None else gradient.detach()
        self.steps += 1
        self.mean.lerp_(gradient, 1 - self.beta1)
        self.square.lerp_(gradient.square(), 1 - self.beta2)
        mean = self.mean / (1 - self.beta1**self.steps)
        self.total -= mean / ((self.square / (1 - self.beta2**self.steps)).sqrt() + 1e-8)


def matched_rates(
    base: Base, groups: Groups, moves: Mapping[nn.Parameter, Tensor], probes: Probes, before: Tensor
) -> dict[str, float]:
    """η for each group such that `lora` alone, and all others together, each with an even share, change the
    noise prediction by CHANGE."""

    def change(rates: Mapping[str, float]) -> float:
        with moved(groups, moves, rates):
            return relative_change(noise_prediction(base, probes), before)

    alone = {name: solve(lambda rate, name=name: change({name: rate}), START[name]) for name in groups}  # type: ignore[misc]
    others = {name: rate for name, rate in alone.items() if name != "lora"}
    if len(others) > 1:
        scale = solve(
            lambda s: change({name: s * rate for name, rate in others.items()}), len(others) ** -0.5
        )
        others = {name: scale * rate for name, rate in others.items()}
    return {"lora": alone["lora"], **others}


START = {"conv": 5e-3, "linear": 1e-2, "lora": 2e-3}  # first guesses of η


def solve(change: Callable[[float], float], rate: float) -> float:
    """The rate at which `change`, about proportional to it, is CHANGE."""
    for _ in range(8):
        found = change(rate)
        if not math.isfinite(found):
            rate /= 10
            continue
        if found and abs(found / CHANGE - 1) <= NEAR:
            return rate * CHANGE / found
        rate *= min(30.0, max(1 / 30, CHANGE / found)) if found else 30.0
    return rate


@contextlib.contextmanager
def moved(groups: Groups, moves: Mapping[nn.Parameter, Tensor], rates: Mapping[str, float]) -> Iterator[None]:
    """Within: each group is where its moves at its rate lead; the others stay."""
    chosen = {parameter: rate for name, rate in rates.items() for parameter in groups[name]}
    kept = {parameter: parameter.detach().clone() for parameter in chosen}
    with torch.no_grad():
        for parameter, rate in chosen.items():
            parameter.add_(moves[parameter], alpha=rate)
        try:
            yield
        finally:
            for parameter, values in kept.items():
                parameter.copy_(values)


def word_rate(base: Base) -> float:
    """The rate of a trained word: textual inversion's, in proportion to the size of the base's embeddings
    (the root mean square of their entries, over its text encoders)."""
    encoders = (getattr(base.pipe, name, None) for name in ("text_encoder", "text_encoder_2"))
    tables = [encoder.get_input_embeddings().weight for encoder in encoders if encoder is not None]
    sizes = [float(table.detach().float().square().mean().sqrt()) for table in tables]
    return rounded(WORD_RATE * sum(sizes) / len(sizes) / WORD_SIZE)


def rounded(rate: float) -> float:
    """To three digits, which is more than is known, and the same on every machine but rarely."""
    return float(f"{rate:.3g}")


@contextlib.contextmanager
def _own_forward(unet: nn.Module) -> Iterator[None]:
    """Within: the UNet computes by itself, where its calls are otherwise answered elsewhere (see `together`),
    by layers that know nothing of the probe's hooks."""
    answered = vars(unet).pop("forward", None)
    try:
        yield
    finally:
        if answered is not None:
            unet.forward = answered


def _loss(base: Base, pictures: Tensor, embeds: PromptEmbeds, resolution: int, step: int) -> Tensor:
    generator = Generator().manual_seed(step)
    count, total = len(pictures), int(base.scheduler.config.num_train_timesteps)
    rows = repeated(embeds, count)
    # Every step sees another stretch of the timesteps, so that few of them stand for all.
    times = ((step + torch.rand(count, generator=generator)) / STEPS * total).long().clamp(max=total - 1)
    return diffusion_loss(
        base.unet,
        base.scheduler,
        pictures,
        rows.hidden,
        added_conditions(base, rows, resolution),
        torch.randn(pictures.shape, generator=generator).to(pictures.device),
        times.to(pictures.device),
        instances=count,
    ).total
