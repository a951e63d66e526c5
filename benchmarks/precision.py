"""What a concept loses when its file gets smaller: bytes against output, pictures and judged likeness.

    python -m benchmarks.precision [--concept FILE] [--check]

One concept of the pocket model, trained on assets/dog and kept in fp32, in every precision, and in int8 cut
down by layers to the size of int4: each beside itself in fp32. The relative change of the UNet's output on
noised latents (and how much of what the concept itself changes that is), the mean difference of the pictures
at the same seeds, and how like the subject the judge finds those. Then the bytes of a concept of Stable
Diffusion 1.5's shape. With --check the exit status is 1 if a target is missed, and the last line names those.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import atomdiff
from atomdiff import pocket
from atomdiff.base.stable_diffusion import Base, encode_prompts, load_base
from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import BasePassport
from atomdiff.core import inject
from atomdiff.core.inject import AtomSpec
from atomdiff.errors import AtomdiffError, ConceptError
from atomdiff.files.quantization import PRECISIONS
from atomdiff.files.safetensors_file import from_bytes, load_concept, to_bytes
from atomdiff.files.trim import trim
from atomdiff.pocket import world
from atomdiff.pocket.judge import Judge
from atomdiff.sampling.draw import draw

from .report import Target, machine, one_sentence, show, verdict

LIMITS = {"fp16": 9_000, "int8": 5_200, "int4": 3_000}  # bytes of the whole file, SD 1.5, m = 9
OUT = Path("outputs/precision")
TIMES = (100, 300, 500, 700, 900)
CONTEXTS = ("beach", "night", "city", "snow", "space", "forest", "kitchen", "red")


def given(file: Path | None, base: Base) -> Concept:
    """The concept to look at: the file, else the one that was trained for this, now or before."""
    concept = made_for(base, [file or OUT / "dog.safetensors"])
    if file is None and (concept is None or concept.precision != "fp32"):
        print("training on assets/dog, some minutes; kept in", OUT)
        return atomdiff.train(
            "assets/dog", out=OUT, base=base, precision="fp32", timeline_steps=0, overwrite=True
        )
    if concept is None:
        raise ConceptError(f"{str(file)!r} is no concept of this pocket model: train it anew.")
    if concept.precision != "fp32":
        print(f"{str(file)!r} is {concept.precision} already: what it lost by that is not seen here")
    return concept


def made_for(base: Base, files: Iterable[Path]) -> Concept | None:
    """The first of the files that is there and was trained on these very weights."""
    found = (load_concept(file) for file in files if file.exists())
    return next((c for c in found if c.base.compare(base.passport).kind == "same"), None)


def smaller(concept: Concept) -> list[tuple[str, Concept, int]]:
    """Name, what is read back, and bytes, of the forms that are compared; the first is what to compare to."""
    forms = []
    for dtype in PRECISIONS:
        data = to_bytes(concept, dtype)
        forms.append((dtype, from_bytes(data), len(data)))
    smallest = forms[-1][2]
    data = to_bytes(trim(concept, smallest, "int8"), "int8")
    forms.append(("int8, layers trimmed", from_bytes(data), len(data)))
    return forms


@torch.no_grad()
def outputs(base: Base, concepts: list[Concept], prompt: str) -> Tensor:
    """What the UNet predicts for the same noised latents at five times: (times * b, c, h, w)."""
    generator = torch.Generator().manual_seed(5)
    side = base.resolution // base.vae_factor
    latents = torch.randn(4, base.unet.config["in_channels"], side, side, generator=generator)
    hidden = encode_prompts(base, [prompt] * len(latents)).hidden
    with inject.fold(base.unet, [(concept.deltas(base.unet), 1.0) for concept in concepts]):
        made = [base.unet(latents, t, encoder_hidden_states=hidden).sample for t in TIMES]
    return torch.cat(made).float()


def pictures_of(base: Base, concept: Concept | None, prompt: str, count: int) -> list[Image.Image]:
    """`count` pictures over the contexts, at the same seeds for every concept."""
    prompts = [f"{prompt} {world.CONTEXTS[CONTEXTS[i % len(CONTEXTS)]]}" for i in range(count)]
    return draw(base, prompts, concepts=[concept] if concept else [], seed=40, steps=20)


def difference(pictures: list[Image.Image], others: list[Image.Image]) -> float:
    """Mean absolute difference of the pixels, in 255ths."""
    a, b = (np.stack([np.asarray(p.convert("RGB"), np.float32) for p in row]) for row in (pictures, others))
    return float(np.abs(a - b).mean())


def judged(kind: str) -> Callable[[list[Image.Image]], float] | None:
    """Likeness to the benchmark subject of this class, as in benchmarks.likeness: the mean of first colour,
    second colour and pattern (shares judged right) and identity. None where there is no judge."""
    subjects = world.benchmark_subjects(1, [kind]) if kind in world.CLASSES else ()
    try:
        judge = Judge.load(pocket.path() / "judge.safetensors")
    except AtomdiffError:
        return None
    if not subjects:
        return None
    subject, rng = subjects[0], np.random.default_rng(17)
    scenes = [world.random_scene(rng, subject, accessory="none", style="drawing") for _ in range(32)]
    centre = torch.nn.functional.normalize(judge([world.render(s) for s in scenes]).identity.mean(0), dim=0)

    def likeness(pictures: list[Image.Image]) -> float:
        seen = judge(pictures)
        asked = (("colour", subject.colour), ("second", subject.second), ("pattern", subject.pattern))
        right = [seen.share(head, value) for head, value in asked]
        return (sum(right) + float((seen.identity @ centre).mean())) / 4

    return likeness


def stable_diffusion_bytes() -> dict[str, int]:
    """Bytes of a concept of SD 1.5's 52 convolutions with nine atoms each, and all that training writes."""
    atoms = torch.randn(52, 9, 9, generator=torch.Generator().manual_seed(0)) / 20
    concept = Concept(
        atoms={"conv": atoms},
        layers="0badcafe",
        spec=AtomSpec(linear_atoms="none"),
        base=BasePassport("sd1-1a2b3c4d", (0.1,) * 16, "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        trigger="sks",
        class_word="dog",
        name="dog",
        training={
            "steps": 300,
            "learning_rate": 0.0015,
            "pictures": 5,
            "class_pictures": 100,
            "resolution": 512,
            "seed": 0,
            "instance_prompt": "a sks dog",
            "class_prompt": "a dog",
        },
    )
    return {dtype: len(to_bytes(concept, dtype)) for dtype in PRECISIONS}


def rows_of(concept: Concept, base: Base, count: int) -> list[tuple[str, ...]]:
    prompt = f"a {concept.trigger} {concept.class_word}"
    likeness = judged(concept.class_word)
    forms = smaller(concept)
    bare, exact = outputs(base, [], prompt), outputs(base, [forms[0][1]], prompt)
    reference = pictures_of(base, forms[0][1], prompt, count)

    def row(name: str, size: str, output: Tensor, pictures: list[Image.Image]) -> tuple[str, ...]:
        missed = float((output - exact).norm())
        return (
            name,
            size,
            f"{missed / float(exact.norm()):.2%}",
            f"{missed / float((exact - bare).norm()):.1%}",
            f"{difference(pictures, reference):.2f}",
            f"{likeness(pictures):.3f}" if likeness else "no judge yet",
        )

    rows = [row("no concept", "0", bare, pictures_of(base, None, prompt, count))]
    for name, form, size in forms:
        pictures = pictures_of(base, form, prompt, count)
        rows.append(row(name, f"{size:,}", outputs(base, [form], prompt), pictures))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--concept", type=Path, help="a concept of the pocket model")
    parser.add_argument("--pictures", type=int, default=32, help="of each form")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    a = parser.parse_args()
    base = load_base("pocket")
    concept = given(a.concept, base)
    headers = ("form", "bytes", "UNet output", "of the effect", "pixels, of 255", "likeness")
    show(f"{concept.title!r} against itself in fp32", headers, rows_of(concept, base, a.pictures))
    sizes = stable_diffusion_bytes()
    show(
        "Stable Diffusion 1.5, 52 convolutions, m = 9",
        tuple(sizes),
        [tuple(map("{:,}".format, sizes.values()))],
    )
    print(machine())
    verdict(
        [
            Target(f"SD 1.5, {dtype}", sizes[dtype], high=limit, unit="bytes")
            for dtype, limit in LIMITS.items()
        ],
        a.check,
    )


if __name__ == "__main__":
    with one_sentence():
        main()
