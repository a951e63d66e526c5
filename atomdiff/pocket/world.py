"""The pocket world: a small, exactly known picture world to train and judge the bundled base model on.

A `Scene` says everything that is in a picture; `render` draws it (`captions` describes it), so that the
attributes of generated pictures can be judged against the truth. Some combinations are *held out*: they never
occur in pretraining and are what concepts are trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from PIL import Image

from atomdiff.pocket.drawing import brush, scenery, wardrobe
from atomdiff.pocket.drawing.brush import Colour, Figure, luminance, mix
from atomdiff.pocket.drawing.characters import DRAW
from atomdiff.pocket.drawing.styles import FINISH, Actor, Job

SIDE = 128  # pixels of the model's pictures
CLASSES: tuple[str, ...] = tuple(DRAW)
COLOURS: dict[str, Colour] = {
    "red": (226, 48, 52), "orange": (255, 138, 30), "yellow": (255, 214, 50), "green": (76, 178, 62),
    "teal": (30, 182, 172), "blue": (54, 104, 224), "purple": (142, 76, 206), "pink": (255, 140, 190),
    "brown": (134, 82, 48), "black": (58, 54, 68), "white": (250, 248, 246), "grey": (150, 154, 162),
}  # fmt: skip
PATTERNS = ("plain", "spots", "stripes", "patches", "checks")
HELD_OUT_PATTERNS = ("zigzag", "stars", "rings")
FEATURES = ("none",)
HELD_OUT_FEATURES = ("wings", "antlers")
CONTEXTS: dict[str, str] = {
    "beach": "on the beach", "snow": "in the snow", "night": "at night", "city": "in the city",
    "water": "under water", "space": "in space", "room": "in a room", "kitchen": "in the kitchen",
    "forest": "in the forest", "desert": "in the desert", "rain": "in the rain", "meadow": "in a meadow",
    "sunset": "at sunset", "red": "on a red background", "blue": "on a blue background",
    "yellow": "on a yellow background",
}  # fmt: skip
ACCESSORIES: dict[str, str] = {
    "none": "", "hat": "wearing a red hat", "glasses": "wearing glasses", "scarf": "wearing a yellow scarf",
}  # fmt: skip
WEARERS = frozenset({"dog", "cat", "rabbit", "bird", "robot"})
STYLES: dict[str, str] = {"drawing": "", "sketch": "a pencil sketch of", "pixel": "pixel art of"}
HELD_OUT_STYLES: dict[str, str] = {"neon": "neon art of"}
FLYERS = frozenset({"butterfly"})
APART, WIDEST = (
    0.46,
    0.44,
)  # of two subjects: from centre to centre, and the most that each takes of the frame


@dataclass(frozen=True)
class Subject:
    """One individual: what it is, its colours, its pattern, and six shape numbers in [0, 1] (their meaning is
    the class's own)."""

    kind: str
    colour: str
    second: str
    pattern: str
    feature: str = "none"
    shape: tuple[float, ...] = (0.5,) * 6

    def __post_init__(self) -> None:
        _known("kind", self.kind, CLASSES)
        _known("colour", self.colour, tuple(COLOURS))
        _known("second", self.second, tuple(COLOURS))
        _known("pattern", self.pattern, PATTERNS + HELD_OUT_PATTERNS)
        _known("feature", self.feature, FEATURES + HELD_OUT_FEATURES)
        if len(self.shape) != 6 or not all(0 <= v <= 1 for v in self.shape):
            raise ValueError(f"shape must be six numbers in [0, 1], got {self.shape}")


@dataclass(frozen=True)
class Scene:
    """One picture: a subject, where it is, what it wears, the style, and its pose.

    other: a second subject of another class, to the right of the first.
    scale: side of the square with the subject's area, as a fraction of the frame; x: centre; y: in [0, 1]
    within the context's ground; tilt: degrees; light: in [0, 1]; seed: of the background's details.
    """

    subject: Subject
    context: str
    accessory: str = "none"
    style: str = "drawing"
    scale: float = 0.62
    x: float = 0.5
    y: float = 0.5
    tilt: float = 0.0
    flip: bool = False
    light: float = 0.5
    seed: int = 0
    other: Subject | None = None

    def __post_init__(self) -> None:
        _known("context", self.context, tuple(CONTEXTS))
        _known("accessory", self.accessory, tuple(ACCESSORIES))
        _known("style", self.style, (*STYLES, *HELD_OUT_STYLES))
        if self.accessory != "none" and self.subject.kind not in WEARERS:
            raise ValueError(
                f"a {self.subject.kind} cannot wear {self.accessory!r}; wearers: {sorted(WEARERS)}"
            )
        if self.other is not None and self.other.kind == self.subject.kind:
            raise ValueError(f"two subjects in one picture are of two classes, got {self.other.kind} twice")


def _known(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {what} {value!r}; known: {', '.join(allowed)}")


# ---------------------------------------------------------------- the held-out rule and the random worlds
def _distinct(a: str, b: str) -> bool:
    """Whether two colours can be told apart where they touch at 64 px."""
    return float(np.linalg.norm(np.subtract(COLOURS[a], COLOURS[b]))) > 100


PAIRS: tuple[tuple[str, str], ...] = tuple(
    (a, b) for a in COLOURS for b in COLOURS if a != b and _distinct(a, b)
)


def held_out(subject: Subject) -> bool:
    """True for a held-out pattern or feature, and for a fixed tenth of (kind, colour, second, pattern)."""
    if subject.pattern in HELD_OUT_PATTERNS or subject.feature in HELD_OUT_FEATURES:
        return True
    key = "|".join((subject.kind, subject.colour, subject.second, subject.pattern))
    return hashlib.blake2b(key.encode(), digest_size=2).digest()[0] < 26


_unseen = held_out  # `random_subject` has a parameter of that name


def is_pretraining(scene: Scene) -> bool:
    """Whether a scene may occur in pretraining."""
    shown = [s for s in (scene.subject, scene.other) if s is not None]
    return scene.style in STYLES and not any(map(held_out, shown))


def random_subject(rng: np.random.Generator, kind: str | None = None, held_out: bool = False) -> Subject:
    """A random individual: one that pretraining never shows if `held_out`, else one that it may show."""
    while True:
        colour, second = PAIRS[rng.integers(len(PAIRS))]
        patterns = PATTERNS + HELD_OUT_PATTERNS if held_out else PATTERNS
        subject = Subject(
            kind=kind or CLASSES[rng.integers(len(CLASSES))],
            colour=colour,
            second=second,
            pattern=patterns[rng.integers(len(patterns))],
            feature=str(rng.choice(HELD_OUT_FEATURES)) if held_out and rng.random() < 0.25 else "none",
            shape=tuple(round(float(v), 3) for v in rng.random(6)),
        )
        if _unseen(subject) == held_out:
            return subject


def random_scene(rng: np.random.Generator, subject: Subject | None = None, **fixed: Any) -> Scene:
    """A random picture of `subject` (default: a random pretraining subject); `fixed` sets fields of Scene.

    Raises TypeError for a field that Scene lacks.
    """
    unknown = set(fixed) - {f.name for f in fields(Scene)}
    if unknown:
        raise TypeError(f"Scene has no field {', '.join(sorted(unknown))}")
    subject = subject or random_subject(rng)
    worn = tuple(ACCESSORIES)[1 + rng.integers(3)] if rng.random() < 0.35 else "none"
    chosen: dict[str, Any] = {
        "context": tuple(CONTEXTS)[rng.integers(len(CONTEXTS))],
        "accessory": worn if subject.kind in WEARERS else "none",
        "style": ("drawing", "sketch", "pixel")[rng.choice(3, p=(0.8, 0.1, 0.1))],
        "scale": float(rng.uniform(0.52, 0.73)),
        "x": float(rng.uniform(0.40, 0.60)),
        "y": float(rng.random()),
        "tilt": float(rng.uniform(-5, 5)),
        "flip": bool(rng.random() < 0.5),
        "light": float(rng.random()),
        "seed": int(rng.integers(2**31)),
    }
    return Scene(subject=subject, **{**chosen, **fixed})


def random_pair(rng: np.random.Generator, subject: Subject | None = None, **fixed: Any) -> Scene:
    """A random picture of two subjects of different classes, `subject` (default: random) on the left."""
    subject = subject or random_subject(rng)
    kinds = [kind for kind in CLASSES if kind != subject.kind]
    pose = {
        "other": random_subject(rng, kinds[rng.integers(len(kinds))]),
        "accessory": "none",
        "scale": float(rng.uniform(0.40, 0.52)),
        "x": float(rng.uniform(0.25, 0.29)),
        "style": "sketch" if rng.random() < 0.1 else "drawing",  # two are too small for pixel art
    }
    return random_scene(rng, subject, **{**pose, **fixed})


# ---------------------------------------------------------------- pictures
def render(scene: Scene, size: int = SIDE) -> Image.Image:
    """The picture of a scene, RGB, size x size (16 to 512), always the same for the same scene."""
    if not 16 <= size <= 512:
        raise ValueError(f"size must be 16 to 512 pixels, got {size}")
    big = size * (4 if size <= 128 else 2)
    painter = scenery.BACKDROPS[scene.context][0]
    stage = scenery.Stage(big, np.random.default_rng(scene.seed), scene.light)
    painter(stage)
    first = _actor(scene, stage, scene.x, scene.flip)
    if scene.other is None:
        actors: tuple[Actor, ...] = (first,)
    else:
        beside = replace(scene, subject=scene.other, other=None, accessory="none")
        actors = first, _actor(beside, stage, scene.x + APART, scene.seed % 2 == 1, widest=WIDEST)
    return FINISH[scene.style](Job(stage.image, actors, size))


def _actor(scene: Scene, stage: scenery.Stage, x: float, flip: bool, widest: float = 0.82) -> Actor:
    """The subject of a scene put into its place on a painted backdrop, with its shadow on the ground."""
    _, ground, tone, dark = scenery.BACKDROPS[scene.context]
    figure, motif = _figure(scene)
    widest = WIDEST if scene.other else widest
    if ground is None:
        y = 0.47 + 0.08 * scene.y
        where, bounds = brush.place(
            figure, stage.size, scene.scale, x, y, scene.tilt * 1.6, flip, True, widest
        )
    else:
        y = ground[0] + scene.y * (ground[1] - ground[0])
        foot = y - 0.07 if scene.subject.kind in FLYERS else y
        where, bounds = brush.place(figure, stage.size, scene.scale, x, foot, scene.tilt, flip, False, widest)
        half = (bounds[2] - bounds[0]) / stage.size / 2
        scenery.shadow(stage, bounds[0] / stage.size + half, y, half, mix(tone, (30, 20, 50), 0.75))
    main = COLOURS[scene.subject.colour]
    near = float(np.linalg.norm(np.subtract(main, tone))) < 90
    halo = mix((255, 252, 244), tone, 0.15) if near or (dark and luminance(main) < 120) else None
    return Actor(figure, where, bounds, motif, halo)


def _figure(scene: Scene) -> tuple[Figure, list[brush.Points]]:
    """The subject with what it wears, and the polygons of its pattern, in figure units."""
    s = scene.subject
    figure = Figure(COLOURS[s.colour], COLOURS[s.second])
    DRAW[s.kind](figure, s.shape)
    coat = np.concatenate([p.points for p in figure.parts if p.coat])
    (x0, y0), (x1, y1) = coat.min(0), coat.max(0)
    motif = wardrobe.motif(s.pattern, (x0, y0, x1, y1), (s.shape[5], s.shape[4]))
    wardrobe.grow(figure, s.feature)
    wardrobe.wear(figure, scene.accessory)
    return figure, motif


# ---------------------------------------------------------------- fixed subjects and the command
_STARS = (
    Subject("dog", "teal", "orange", "stars", "none", (0.7, 0.35, 0.8, 0.35, 0.5, 0.3)),
    Subject("cat", "purple", "yellow", "zigzag", "none", (0.6, 0.5, 0.9, 0.4, 0.5, 0.4)),
    Subject("robot", "pink", "teal", "rings", "wings", (0.6, 0.6, 0.7, 0.4, 0.5, 0.2)),
)


def benchmark_subjects(n: int, kinds: Sequence[str] | None = None) -> tuple[Subject, ...]:
    """The first n of a fixed sequence of held-out subjects; it begins with the dog, cat and robot of assets/.

    kinds: only subjects of these classes (their order in the sequence is kept).
    """
    for kind in kinds or ():
        _known("kind", kind, CLASSES)
    rng = np.random.default_rng(20240229)
    wanted = CLASSES if kinds is None else tuple(kinds)
    chosen = [s for s in _STARS if s.kind in wanted][: max(0, n)]
    while len(chosen) < n:
        subject = random_subject(rng, CLASSES[rng.integers(len(CLASSES))], held_out=True)
        if subject.kind in wanted:
            chosen.append(subject)
    return tuple(chosen)
