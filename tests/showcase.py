"""README's pictures, drawn with the concept that `make demo` has trained.

    PYTHONPATH=. python tests/showcase.py

docs/showcase.webp: the photos, the file, and one picture of each scene, none chosen (seeds 0, 1, 2, ...).
docs/learning.webp: one seed after more and more steps of the training, as its timeline keeps them.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from atomdiff.base.stable_diffusion import load_base
from atomdiff.files import atomic
from atomdiff.files.fonts import font_for
from atomdiff.files.safetensors_file import load_concept
from atomdiff.files.timeline_file import load_timeline
from atomdiff.sampling.draw import draw
from atomdiff.sampling.sheets import INK, PAPER
from benchmarks.report import one_sentence

SCENES = (
    "{} on the beach",
    "{} wearing a red hat in the snow",
    "{} in space",
    "a pencil sketch of {} in the city",
    "{} in the forest",
    "{} wearing glasses in the kitchen",
    "pixel art of {} in a meadow",
    "{} at sunset",
)
COLUMNS, CELL, GAP, LETTERS = 4, 304, 12, 20
FRAMES, LOOP_MS, LAST_MS = 24, 2000, 1000  # of the loop, which stays on its last frame


def showcase(
    photos: Sequence[Image.Image], line: str, drawn: Sequence[tuple[str, Image.Image]]
) -> Image.Image:
    """Photos in a row, a line of text, and the pictures that were drawn, each under its prompt."""
    width = COLUMNS * (CELL + GAP) + GAP
    small = (width - GAP) // len(photos) - GAP
    rows = -(-len(drawn) // COLUMNS)
    below = small + 2 * GAP + 3 * LETTERS
    sheet = Image.new("RGB", (width, below + rows * (CELL + GAP + 2 * LETTERS)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, photo in enumerate(photos):
        sheet.paste(_square(photo, small), (GAP + i * (small + GAP), GAP))
    pen.text((width // 2, small + 2 * GAP + LETTERS), line, INK, font_for(line, 1.3 * LETTERS), "mm")
    for i, (prompt, picture) in enumerate(drawn):
        left, top = GAP + i % COLUMNS * (CELL + GAP), below + i // COLUMNS * (CELL + GAP + 2 * LETTERS)
        pen.text((left, top), prompt, INK, font_for(prompt, 0.8 * LETTERS))
        sheet.paste(_square(picture, CELL), (left, top + int(1.3 * LETTERS)))
    return sheet


def loop(frames: Sequence[Image.Image], side: int = 256) -> bytes:
    """An animated WebP that begins anew after its last frame has stayed for a while."""
    shown = [_square(frame, side) for frame in frames]
    pause = [LOOP_MS // len(shown)] * (len(shown) - 1) + [LAST_MS]
    buffer = io.BytesIO()
    shown[0].save(buffer, "WEBP", save_all=True, append_images=shown[1:], duration=pause, loop=0, quality=85)
    return buffer.getvalue()


def _square(picture: Image.Image, side: int) -> Image.Image:
    return picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tests/showcase.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--photos", type=Path, default=Path("assets/dog"))
    add("--concept", type=Path, default=Path("outputs/dog/dog.safetensors"), help="of make demo")
    add("--base", default="pocket")
    add("--steps", type=int, default=25)
    add("--out", type=Path, default=Path("docs"))
    a = parser.parse_args(arguments)
    concept, base = load_concept(a.concept), load_base(a.base)
    timeline = load_timeline(a.concept.with_suffix(".timeline.safetensors"))
    subject = f"a {concept.trigger} {concept.class_word}"
    photos = [Image.open(path) for path in sorted(a.photos.glob("*.png"))]
    line = (
        f"{len(photos)} pictures  →  {a.concept.name}, {a.concept.stat().st_size / 1000:.1f} KB  →  anywhere"
    )
    drawn = []
    for seed, scene in enumerate(SCENES):
        prompt = scene.format(subject)
        drawn += [(prompt, *draw(base, prompt, concepts=[concept], seed=seed, steps=a.steps))]
    buffer = io.BytesIO()
    showcase(photos, line, drawn).save(buffer, "WEBP", quality=90, method=6)
    prompt = SCENES[0].format(subject)
    frames = draw(base, prompt, seed=0, steps=a.steps)
    for step in timeline.spread(FRAMES - 1):
        frames += draw(base, prompt, concepts=[timeline.at(step)], seed=0, steps=a.steps)
    for name, data in (("showcase.webp", buffer.getvalue()), ("learning.webp", loop(frames))):
        path = atomic.write(a.out / name, data, "The picture")
        print(f"{path}: {len(data) / 1000:,.0f} KB")


if __name__ == "__main__":
    with one_sentence():
        main()
