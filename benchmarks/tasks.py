"""What is learnt: held-out subjects and styles, five pictures each, and the latents and prompts of a run.

The contexts of the pictures trained on are none of those that are judged. Subjects to find learning rates on
are others than those of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from atomdiff.base.stable_diffusion import Base
from atomdiff.evaluation.pocket_figures import (
    CONTEXTS,
    KINDS,
    OTHERS,
    Drawing,
    Figures,
    StyleJudge,
    SubjectJudge,
    style_figures,
)
from atomdiff.pocket import world
from atomdiff.pocket.corpus import HEADS
from atomdiff.pocket.judge import Judge
from atomdiff.training.forward import TrainingData
from atomdiff.training.latents import PromptTable, encode_pictures, encode_table
from atomdiff.training.prior_preservation import ClassRequest, class_pictures, default_folder

from .peers import TRIGGER

PLACES = ("meadow", "room", "desert", "sunset", "blue")
INK, PAPER = (28, 20, 92), (255, 176, 128)
NEAR = 0.06  # root mean square distance from the duotone's line of colours, in [0, 1]
ALONE = SimpleNamespace(process_index=0, num_processes=1, wait_for_everyone=lambda: None)


@dataclass(frozen=True)
class Task:
    """One thing to learn: its pictures with their prompts, prompts of its class, and how it is asked for; of
    a style, what is judged of so many true pictures of it."""

    name: str
    pictures: tuple[Image.Image, ...]
    prompts: tuple[str, ...]
    class_prompts: tuple[str, ...]
    asked: str
    judge: Callable[[Base, Judge, Drawing], SubjectJudge | StyleJudge]
    ideal: Callable[[Judge, int], Figures] | None = None

    @property
    def is_style(self) -> bool:
        return self.ideal is not None


def subjects(count: int) -> list[Task]:
    """The first `count` held-out subjects of the world."""
    return [_subject(s, f"{i + 1} {s.kind}") for i, s in enumerate(world.benchmark_subjects(count))]


def tuning_subjects(count: int) -> list[Task]:
    """Held-out subjects that `subjects` never gives: their shapes are drawn from another seed."""
    rng = np.random.default_rng(41)
    drawn = [world.random_subject(rng, kind, held_out=True) for kind in ("rabbit", "car", "fish", "cat")]
    return [_subject(s, f"tuning {i + 1} {s.kind}") for i, s in enumerate(drawn[:count])]


def styles(count: int) -> list[Task]:
    """The held-out styles: those of the world, then duotone, which is judged by its two colours."""
    made = [_world_style(style) for style in world.HELD_OUT_STYLES]
    made.append(_style("duotone", "drawing", duotone, lambda judge: in_duotone))
    return made[:count]


def _subject(subject: world.Subject, name: str) -> Task:
    rng = np.random.default_rng([300, *name.encode()])
    scenes = [
        world.random_scene(rng, subject, context=c, accessory="none", style="drawing", flip=i % 2 == 1)
        for i, c in enumerate(PLACES)
    ]
    pictures = tuple(world.render(scene) for scene in scenes)

    def judge(base: Base, judge: Judge, drawing: Drawing) -> SubjectJudge:
        return SubjectJudge(base, judge, subject, drawing, pictures)

    asked = f"a {TRIGGER} {subject.kind}"
    return Task(name, pictures, (asked,) * len(pictures), (f"a {subject.kind}",), asked, judge)


# ------------------------------------------------------------------------------------------------ styles


def _various(style: str, kinds: Sequence[str], contexts: Sequence[str], seed: int) -> list[Image.Image]:
    """Pictures of different subjects, one of each kind in its context."""
    rng = np.random.default_rng(seed)
    return [
        world.render(world.random_scene(rng, world.random_subject(rng, kind), context=c, style=style))
        for kind, c in zip(kinds, contexts, strict=True)
    ]


def _world_style(style: str) -> Task:
    def judged(judge: Judge) -> Callable[[list[Image.Image]], Tensor]:
        return lambda pictures: judge(pictures).answers["style"] == HEADS["style"].index(style)

    return _style(style, style, lambda picture: picture, judged)


def _style(
    name: str,
    rendered: str,
    treated: Callable[[Image.Image], Image.Image],
    judged: Callable[[Judge], Callable[[list[Image.Image]], Tensor]],
) -> Task:
    """A style: pictures as the world renders them in one of its own, and treated."""

    def in_style(base: Base, judge: Judge, drawing: Drawing) -> StyleJudge:
        return StyleJudge(base, judge, judged(judge), drawing)

    def ideal(judge: Judge, each: int) -> Figures:
        kinds, contexts = ([name for name in names for _ in range(each)] for names in (KINDS, CONTEXTS))
        pictures = [treated(p) for p in _various(rendered, kinds, contexts, 78)]
        return style_figures(judge, judged(judge), pictures, each)

    pictures = tuple(treated(p) for p in _various(rendered, OTHERS, PLACES, 77))
    # As people do it: a caption says all that is in the picture but its style, or that is learnt too.
    kinds = zip(OTHERS, PLACES, strict=True)
    prompts = tuple(f"{TRIGGER} drawing of a {kind} {world.CONTEXTS[place]}" for kind, place in kinds)
    bare = tuple(f"a drawing of a {kind}" for kind in OTHERS)
    return Task(name, pictures, prompts, bare, f"{TRIGGER} drawing of a", in_style, ideal)


def duotone(picture: Image.Image) -> Image.Image:
    """The picture in two inks: its lightness on the line from one colour to another."""
    return ImageOps.colorize(picture.convert("L"), INK, PAPER)


def in_duotone(pictures: list[Image.Image]) -> Tensor:
    """Which pictures have no colour far from the line between the two inks."""
    ink, paper = (torch.tensor(colour) / 255 for colour in (INK, PAPER))
    along = (paper - ink) / (paper - ink).norm()
    values = torch.from_numpy(np.stack([np.asarray(p.convert("RGB")) for p in pictures])) / 255 - ink
    off = values - (values @ along)[..., None] * along
    return off.square().sum(-1).mean((1, 2)).sqrt() < NEAR


# ------------------------------------------------------------------------------------ what is trained on


def prepare(base: Base, task: Task, class_count: int, batch: int = 16) -> TrainingData:
    """Latents and embeddings of a task: its pictures, and `class_count` pictures of its class that the base
    drew, which are kept in the user's cache."""
    images: list[Image.Image] = []
    rows: list[int] = []
    table: PromptTable = encode_table(base, [*task.prompts, *task.class_prompts])
    share = -(-class_count // len(task.class_prompts))
    for prompt in task.class_prompts:
        request = ClassRequest(prompt, share, base.resolution)
        made, _ = class_pictures(base, request, _cache(prompt), ALONE, batch_size=batch)
        images += [picture.image for picture in made]
        rows += [table.prompts.index(prompt)] * len(made)
    encode = partial(encode_pictures, base, accelerator=ALONE)
    fitted = [ImageOps.fit(picture, (base.resolution,) * 2) for picture in task.pictures]
    instance = encode(fitted, [table.prompts.index(prompt) for prompt in task.prompts])
    return TrainingData(instance, encode(images, rows), table)


def _cache(prompt: str) -> Path:
    """A folder for each prompt, since pictures of others in one folder would be taken for the user's own."""
    return default_folder() / "benchmarks" / prompt.replace(" ", "-")
