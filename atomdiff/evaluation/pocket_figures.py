"""What a base that was tuned to a subject or a style draws, against what it should: the judge's figures.

Likeness: shares of pictures whose first colour, second colour (where the coat shows it) and pattern the judge
names right, and `identity`, the cosine of its embedding to renders of the subject; `five` is the mean cosine
to the pictures trained on. Prompt: shares with the right class, context and accessory. Diversity: root mean
square difference of pictures of one prompt, of [0, 1]. Without the trigger: `leak`, share of pictures of the
bare class with the subject's colour or pattern, and `drift`, 1 - cosine between the pictures before and
after, same seeds; `leak others` and `drift others` the same for other classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from atomdiff.base.stable_diffusion import Base
from atomdiff.concept.concept import Concept
from atomdiff.evaluation.likeness import diversity, drift, likeness, right
from atomdiff.pocket import world
from atomdiff.pocket.corpus import HEADS
from atomdiff.pocket.judge import Judge, Verdict
from atomdiff.sampling.draw import draw

CONTEXTS = ("beach", "night", "city", "snow", "space", "forest", "kitchen", "red")
OTHERS = ("dog", "bird", "car", "house", "mug")
KINDS = tuple(OTHERS[i % len(OTHERS)] for i in range(len(CONTEXTS)))  # that a style is asked for, in turn
LIKENESS = ("colour", "second", "pattern", "identity")
Figures = dict[str, float]


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn: `each` of a prompt, with so many steps, so many at a time, and how concepts act
    (see `draw`)."""

    each: int = 4
    steps: int = 12
    batch: int = 16
    acting: str = "plain"

    def __call__(
        self, base: Base, concepts: list[Concept], prompts: Sequence[str], seed: int, times: int = 1
    ) -> list[Image.Image]:
        """`times` x `each` pictures of each prompt in turn."""
        return draw(
            base,
            prompts,
            concepts=concepts,
            count=self.each * times,
            seed=seed,
            steps=self.steps,
            batch_size=self.batch,
            acting=self.acting,
        )


def overall(figures: Figures) -> float:
    """The likeness: mean of first colour, second colour, pattern and identity as far as judged, times the
    share of pictures that are still of the class, since a cat with its colours is not that fish. Of a style
    its share."""
    if "style" in figures:
        return figures["style"]
    known = [figures[key] for key in LIKENESS if key in figures]
    return figures["class"] * sum(known) / len(known)


class SubjectJudge:
    """The judge with what it compares to: renders of the subject and pictures of the untouched base."""

    def __init__(
        self,
        base: Base,
        judge: Judge,
        subject: world.Subject,
        drawing: Drawing,
        given: Sequence[Image.Image] = (),
    ) -> None:
        self.judge, self.subject, self.drawing = judge, subject, drawing
        rng = np.random.default_rng(17)
        scenes = [world.random_scene(rng, subject, accessory="none", style="drawing") for _ in range(32)]
        renders = [world.render(scene) for scene in scenes]
        self.centre = normalize(judge(renders).identity.mean(0), dim=0)
        self.five = judge(list(given)).identity if given else None
        self.others = [kind for kind in OTHERS if kind != subject.kind][:4]
        self.before = judge(self._bare(base, [])), judge(self._other_classes(base, []))

    def _bare(self, base: Base, concepts: list[Concept]) -> list[Image.Image]:
        return self.drawing(base, concepts, [f"a {self.subject.kind}"], 900, times=4)

    def _other_classes(self, base: Base, concepts: list[Concept]) -> list[Image.Image]:
        return self.drawing(base, concepts, [f"a {kind}" for kind in self.others], 1900)

    def called(self, base: Base, concepts: list[Concept], prompt: str) -> tuple[Figures, list[Image.Image]]:
        """Draws `prompt` in every context and what it wears, and judges it.

        The pictures returned are those in contexts: `each` of the first, then of the second, ...
        """
        pictures = self.drawing(base, concepts, [f"{prompt} {world.CONTEXTS[c]}" for c in CONTEXTS], 0)
        return self._likeness(pictures) | self._worn(base, concepts, prompt), pictures

    def judge_all(
        self, base: Base, concepts: list[Concept], prompt: str
    ) -> tuple[Figures, list[Image.Image]]:
        """The same, and the bare class and other classes, where the prompt does not say the trigger."""
        figures, pictures = self.called(base, concepts, prompt)
        for suffix, before, after in (
            ("", self.before[0], self.judge(self._bare(base, concepts))),
            (" others", self.before[1], self.judge(self._other_classes(base, concepts))),
        ):
            figures[f"leak{suffix}"] = self._leaked(after)
            figures[f"drift{suffix}"] = drift(before.identity, after.identity)
        return figures, pictures

    def _likeness(self, pictures: list[Image.Image]) -> Figures:
        seen, s, each = self.judge(pictures), self.subject, self.drawing.each
        figures = {"colour": seen.share("colour", s.colour), "pattern": seen.share("pattern", s.pattern)}
        if s.pattern != "plain":
            figures["second"] = seen.share("second", s.second)
        figures["identity"] = likeness(seen.identity, self.centre[None])
        if self.five is not None:
            figures["five"] = likeness(seen.identity, self.five)
        figures["class"] = seen.share("class", s.kind)
        figures["context"] = in_context(seen, CONTEXTS)
        figures["diversity"] = diversity(pictures, each)
        return figures

    def _worn(self, base: Base, concepts: list[Concept], prompt: str) -> Figures:
        if self.subject.kind not in world.WEARERS:
            return {}
        worn = [key for key in world.ACCESSORIES if key != "none"]
        seen = self.judge(
            self.drawing(base, concepts, [f"{prompt} {world.ACCESSORIES[key]}" for key in worn], 2900)
        )
        wanted = torch.tensor([HEADS["accessory"].index(key) for key in worn])
        return {"accessory": right(seen.answers["accessory"], wanted, self.drawing.each)}

    def _leaked(self, seen: Verdict) -> float:
        own = HEADS["pattern"].index(self.subject.pattern), HEADS["colour"].index(self.subject.colour)
        hit = (seen.answers["pattern"] == own[0]) | (seen.answers["colour"] == own[1])
        return float(hit.float().mean())


class StyleJudge:
    """The same for a style: `in_style` says of pictures which are in it."""

    def __init__(
        self, base: Base, judge: Judge, in_style: Callable[[list[Image.Image]], Tensor], drawing: Drawing
    ) -> None:
        self.judge, self.in_style, self.drawing = judge, in_style, drawing
        self.before = judge(self._bare(base, []))

    def _bare(self, base: Base, concepts: list[Concept]) -> list[Image.Image]:
        return self.drawing(base, concepts, [f"a drawing of a {kind}" for kind in OTHERS], 900)

    def called(self, base: Base, concepts: list[Concept], prompt: str) -> tuple[Figures, list[Image.Image]]:
        """Draws `prompt`, such as "sks drawing of a", with classes and contexts in turn."""
        prompts = [f"{prompt} {kind} {world.CONTEXTS[c]}" for kind, c in zip(KINDS, CONTEXTS, strict=True)]
        pictures = self.drawing(base, concepts, prompts, 0)
        return style_figures(self.judge, self.in_style, pictures, self.drawing.each), pictures

    def judge_all(
        self, base: Base, concepts: list[Concept], prompt: str
    ) -> tuple[Figures, list[Image.Image]]:
        """The same, and drawings that are not asked for in the style."""
        figures, pictures = self.called(base, concepts, prompt)
        bare = self._bare(base, concepts)
        figures["leak"] = float(self.in_style(bare).float().mean())
        figures["drift"] = drift(self.before.identity, self.judge(bare).identity)
        return figures, pictures


def style_figures(
    judge: Judge, in_style: Callable[[list[Image.Image]], Tensor], pictures: list[Image.Image], each: int
) -> Figures:
    """What is judged of pictures of KINDS in CONTEXTS, `each` of the first, then of the second, ..."""
    seen = judge(pictures)
    wanted = torch.tensor([HEADS["class"].index(kind) for kind in KINDS])
    return {
        "style": float(in_style(pictures).float().mean()),
        "class": right(seen.answers["class"], wanted, each),
        "context": in_context(seen, CONTEXTS),
        "diversity": diversity(pictures, each),
    }


def in_context(seen: Verdict, contexts: Sequence[str]) -> float:
    """Share of the pictures, equally many of each context in turn, that are seen in it."""
    answers = seen.answers["context"]
    wanted = torch.tensor([HEADS["context"].index(context) for context in contexts])
    return right(answers, wanted, len(answers) // len(contexts))
