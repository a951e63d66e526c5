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

from . import world

HEADS: dict[str, tuple[str, ...]] = {
    "class": world.CLASSES,
    "context": tuple(world.CONTEXTS),
    "colour": tuple(world.COLOURS),
    "second": tuple(world.COLOURS),
    "pattern": world.PATTERNS + world.HELD_OUT_PATTERNS,
    "accessory": tuple(world.ACCESSORIES),
    "style": (*world.STYLES, *world.HELD_OUT_STYLES),
}
"""What can be asked of a picture, and the possible answers in the order of their labels."""

CHUNK = 480
VARIANTS = 3  # captions written for each picture


@dataclass(frozen=True)
class Corpus:
    """pictures uint8 (n, 64, 64, 3); labels[head] int64 (n,); subject int64 (n,); captions n x VARIANTS
    (or none)."""

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
    }
    return {head: HEADS[head].index(value) for head, value in facts.items()}


def pretraining(folder: Path, count: int, seed: int) -> Corpus:
    return _collect(folder / "pretraining", _pretraining_chunk, count, seed)


def acquaintances(folder: Path, count: int, seed: int, views: int = 4) -> Corpus:
    return _collect(folder / f"acquaintances{views}", partial(_acquaintance_chunk, views=views), count, seed)


def _collect(folder: Path, make, count: int, seed: int) -> Corpus:
    folder.mkdir(parents=True, exist_ok=True)
    chunks = -(-count // CHUNK)
    paths = [folder / f"{seed}-{i:04d}.npz" for i in range(chunks)]
    missing = [(i, p) for i, p in enumerate(paths) if not p.exists()]
    if missing:
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
            work = pool.map(make, [seed] * len(missing), *zip(*missing, strict=True))
            for _ in track(work, f"rendering {folder.name}", total=len(missing)):
                pass
    parts = [np.load(p) for p in paths]
    stride = max(int(part["subject"].max()) for part in parts) + 1
    return Corpus(
        np.concatenate([p["pictures"] for p in parts])[:count],
        {h: np.concatenate([p[h] for p in parts])[:count] for h in HEADS},
        np.concatenate([p["subject"] + i * stride for i, p in enumerate(parts)])[:count],
        [row.tolist() for p in parts for row in p["captions"]][:count],
    )


def _pretraining_chunk(seed: int, index: int, path: Path) -> None:
    rng = np.random.default_rng((seed, index))
    scenes = [world.random_scene(rng) for _ in range(CHUNK)]
    captions = [[world.caption(scene, rng) for _ in range(VARIANTS)] for scene in scenes]
    _write(path, scenes, np.arange(CHUNK), captions)


def _acquaintance_chunk(seed: int, index: int, path: Path, views: int) -> None:
    rng = np.random.default_rng((seed, index, views))
    scenes = []
    for _ in range(CHUNK // views):
        subject = world.random_subject(rng, held_out=bool(rng.random() < 0.5))
        for _ in range(views):
            style = {"style": next(iter(world.HELD_OUT_STYLES))} if rng.random() < 0.1 else {}
            scenes.append(world.random_scene(rng, subject, **style))
    _write(path, scenes, np.arange(len(scenes)) // views, [])


def _write(path: Path, scenes: list[world.Scene], subject: np.ndarray, captions: list[list[str]]) -> None:
    part = path.with_suffix(".part")
    facts = [answers(scene) for scene in scenes]
    arrays: dict[str, Any] = {head: np.array([fact[head] for fact in facts]) for head in HEADS}
    arrays["pictures"] = np.stack([np.asarray(world.render(scene, 64)) for scene in scenes])
    arrays["subject"] = subject
    arrays["captions"] = np.array(captions or [[]] * len(scenes))
    with part.open("wb") as f:
        np.savez(f, **arrays)
    part.replace(path)
