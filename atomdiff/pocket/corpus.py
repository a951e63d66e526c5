"""The pictures that the pocket recipe learns from, rendered once, in parallel, into chunks that survive a
kill.

Two sets: `pretraining` (scenes that may be shown, with captions) for the base model, and `acquaintances`
(several views each of many subjects, held-out patterns and styles included) for the judge, which must
recognise what the base model has never seen. Benchmark subjects are in neither.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from . import captions, world

HEADS: dict[str, tuple[str, ...]] = {
    "class": world.CLASSES,
    "context": tuple(world.CONTEXTS),
    "colour": tuple(world.COLOURS),
    "second": tuple(world.COLOURS),
    "pattern": world.PATTERNS + world.HELD_OUT_PATTERNS,
    "accessory": tuple(world.ACCESSORIES),
    "style": (*world.STYLES, *world.HELD_OUT_STYLES),
    "other": ("none", *world.CLASSES),  # of the second subject, on the right of the first
    "other colour": tuple(world.COLOURS),
}
"""What can be asked of a picture, and the possible answers in the order of their labels."""

CHUNK = 480
VARIANTS = 3  # captions written for each picture


@dataclass(frozen=True)
class Mix:
    """What pictures a corpus has: their size in pixels, and the shares of two subjects and of individuals
    with a word of their own. The default is what the model is made with."""

    size: int = world.SIDE
    pairs: float = 0.15
    named: float = 0.3

    @property
    def folder(self) -> str:
        return f"{self.size}-{100 * self.pairs:.0f}-{100 * self.named:.0f}"


MIX = Mix()


@dataclass(frozen=True)
class Corpus:
    """pictures uint8 (n, h, w, 3); labels[head] int64 (n,), -1 where there is no answer; subject int64 (n,);
    captions n x VARIANTS (or none)."""

    pictures: np.ndarray
    labels: dict[str, np.ndarray]
    subject: np.ndarray
    captions: list[list[str]]


def answers(scene: world.Scene) -> dict[str, int]:
    """The true label of every head for a scene."""
    s = scene.subject
    facts = {
        "class": s.kind,
        "context": scene.context,
        "colour": s.colour,
        "second": s.second,
        "pattern": s.pattern,
        "accessory": scene.accessory,
        "style": scene.style,
        "other": scene.other.kind if scene.other else "none",
    }
    labels = {head: HEADS[head].index(value) for head, value in facts.items()}
    return labels | {"other colour": HEADS["other colour"].index(scene.other.colour) if scene.other else -1}


def pretraining(folder: Path, count: int, seed: int, mix: Mix = MIX, seen: bool = True) -> Corpus:
    """`count` pictures with captions; of `seen` = False the captions and labels alone."""
    make = partial(_pretraining_chunk, mix=mix)
    return _collect(folder / f"pretraining-{mix.folder}", make, count, seed, seen)


def acquaintances(folder: Path, count: int, seed: int, views: int = 4, mix: Mix = MIX) -> Corpus:
    make = partial(_acquaintance_chunk, views=views, mix=mix)
    return _collect(folder / f"acquaintances{views}-{mix.folder}", make, count, seed)


def _collect(folder: Path, make, count: int, seed: int, seen: bool = True) -> Corpus:
    folder.mkdir(parents=True, exist_ok=True)
    chunks = -(-count // CHUNK)
    paths = [folder / f"{seed}-{i:04d}.npz" for i in range(chunks)]
    missing = [(i, p) for i, p in enumerate(paths) if not p.exists()]
    if len(missing) == 1:
        make(seed, *missing[0])
    elif missing:
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
            work = pool.map(make, [seed] * len(missing), *zip(*missing, strict=True))
            for _ in track(work, f"rendering {folder.name}", total=len(missing)):
                pass
    parts = [np.load(p) for p in paths]
    stride = max(int(part["subject"].max()) for part in parts) + 1
    return Corpus(
        _joined(parts, count if seen else 0),
        {h: np.concatenate([p[h] for p in parts])[:count] for h in HEADS},
        np.concatenate([p["subject"] + i * stride for i, p in enumerate(parts)])[:count],
        [row.tolist() for p in parts for row in p["captions"]][:count],
    )


def _joined(parts: list[Any], count: int) -> np.ndarray:
    """The pictures of all parts; a concatenation would need the memory of twice as many."""
    first = parts[0]["pictures"]
    pictures = np.empty((count, *first.shape[1:]), first.dtype)
    for start in range(0, count, CHUNK):
        rows = pictures[start : start + CHUNK]
        rows[:] = parts[start // CHUNK]["pictures"][: len(rows)]
    return pictures


def _pretraining_chunk(seed: int, index: int, path: Path, mix: Mix) -> None:
    rng = np.random.default_rng((seed, index))
    names = list(captions.individuals().items())
    scenes, said = [], []
    for _ in range(CHUNK):
        name, subject = names[rng.integers(len(names))] if rng.random() < mix.named else ("", None)
        make = world.random_pair if rng.random() < mix.pairs else world.random_scene
        scene = make(rng, subject)
        scenes.append(scene)
        said.append([captions.caption(scene, rng, name) for _ in range(VARIANTS)])
    _write(path, scenes, np.arange(CHUNK), said, mix.size)


def _acquaintance_chunk(seed: int, index: int, path: Path, views: int, mix: Mix) -> None:
    rng = np.random.default_rng((seed, index, views))
    scenes = []
    for _ in range(CHUNK // views):
        subject = world.random_subject(rng, held_out=bool(rng.random() < 0.5))
        for _ in range(views):
            make = world.random_pair if mix.pairs and rng.random() < mix.pairs else world.random_scene
            style = {"style": next(iter(world.HELD_OUT_STYLES))} if rng.random() < 0.1 else {}
            scenes.append(make(rng, subject, **style))
    _write(path, scenes, np.arange(len(scenes)) // views, [], mix.size)


def _write(
    path: Path, scenes: list[world.Scene], subject: np.ndarray, said: list[list[str]], size: int
) -> None:
    part = path.with_suffix(".part")
    facts = [answers(scene) for scene in scenes]
    arrays: dict[str, Any] = {head: np.array([fact[head] for fact in facts]) for head in HEADS}
    arrays["pictures"] = np.stack([np.asarray(world.render(scene, size)) for scene in scenes])
    arrays["subject"] = subject
    arrays["captions"] = np.array(said or [[]] * len(scenes))
    with part.open("wb") as f:
        np.savez(f, **arrays)
    part.replace(path)
