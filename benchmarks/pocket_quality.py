"""`python -m benchmarks.pocket_quality`: does the pocket model draw what a prompt says?

512 prompts name the class, the context and one more attribute; 256 more name all of them at once, and are
reported apart. Every picture is judged by the pocket's judge, which is itself examined on unseen renders.
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from atomdiff import pocket
from atomdiff.base.stable_diffusion import Base, load_base
from atomdiff.pocket import corpus, world
from atomdiff.pocket.corpus import HEADS
from atomdiff.pocket.judge import Judge, Verdict, examine
from atomdiff.pocket.recipe import autoencoder
from atomdiff.sampling.draw import draw
from atomdiff.sampling.sheets import contact_sheet, save_picture

from .report import Target, machine, markdown, one_sentence, show, verdict

STEPS, GUIDANCE = 25, 4.0
LOWEST = {"class": 0.95, "context": 0.93, "colour": 0.90, "pattern": 0.80, "accessory": 0.85}


@dataclass(frozen=True)
class Request:
    """A prompt and what a picture of it must show."""

    prompt: str
    wanted: dict[str, str]


def requests(count: int, several: bool, seed: int) -> list[Request]:
    """Prompts over all classes and contexts in turn; with `several` every one names all that can be named."""
    rng = np.random.default_rng(seed)
    made: list[Request] = []
    contexts = tuple(world.CONTEXTS)
    while len(made) < count:
        i = len(made)
        kind = world.CLASSES[i % len(world.CLASSES)]
        subject = world.random_subject(rng, kind)
        worn = str(rng.choice([a for a in world.ACCESSORIES if a != "none"]))
        context = contexts[(i // len(world.CLASSES) + i) % len(contexts)]
        which = (
            {"colour", "pattern", "accessory"}
            if several
            else {("colour", "pattern", "accessory")[rng.integers(3)]}
        )
        if "accessory" in which and kind not in world.WEARERS:
            which = which - {"accessory"} or {"colour"}
        if subject.pattern == "plain" and "pattern" in which:
            continue
        made.append(_request(subject, context, worn, which))
    return made


def _request(subject: world.Subject, context: str, worn: str, which: set[str]) -> Request:
    wanted = {"class": subject.kind, "context": context}
    text = subject.kind
    if "colour" in which:
        text, wanted["colour"] = f"{subject.colour} {text}", subject.colour
    text = ("an " if text[0] in "aeiou" else "a ") + text
    if "pattern" in which:
        text += f" with {subject.second} {subject.pattern}"
        wanted |= {"pattern": subject.pattern, "second": subject.second}
    if "accessory" in which:
        text, wanted["accessory"] = f"{text} {world.ACCESSORIES[worn]}", worn
    return Request(f"{text} {world.CONTEXTS[context]}", wanted)


def score(asked: list[Request], judged: Verdict) -> dict[str, float]:
    """Share right per head, over the prompts that name it; "all" is everything right at once."""
    hits: dict[str, list[bool]] = {"all": []}
    for i, request in enumerate(asked):
        right = {h: HEADS[h][int(judged.answers[h][i])] == value for h, value in request.wanted.items()}
        for head, hit in right.items():
            hits.setdefault(head, []).append(hit)
        hits["all"].append(all(right.values()))
    return {head: sum(h) / len(h) for head, h in hits.items()}


def colours_of(base: Base, judge: Judge, prompt: str, count: int) -> int:
    """How many different main colours `count` pictures of one prompt show."""
    pictures = draw(base, prompt, count=count, seed=5000, steps=STEPS, guidance=GUIDANCE, batch_size=16)
    return len(set(judge(pictures).answers["colour"].tolist()))


def seconds_a_picture(base: Base, rounds: int = 3) -> float:
    times = []
    for i in range(rounds):
        start = time.perf_counter()
        draw(base, "a red dog on the beach", count=4, seed=i, steps=STEPS, guidance=GUIDANCE, batch_size=4)
        times.append((time.perf_counter() - start) / 4)
    return sorted(times)[rounds // 2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pocket_quality", description=__doc__)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--base", default="pocket", help="another folder in the pocket's layout")
    parser.add_argument("--docs", action="store_true", help="write docs/pocket.md and its picture")
    parser.add_argument("--out", type=Path, default=Path("outputs/pocket_quality"))
    a = parser.parse_args()
    base, judge = load_base(a.base), Judge.load(pocket.path() / "judge.safetensors")
    unseen = corpus.acquaintances(a.out / "renders", 2_400, seed=91, views=4)
    exam = examine(judge, unseen, views=4)
    renders = torch.from_numpy(corpus.pretraining(a.out / "renders", 512, seed=92).pictures)
    psnr = autoencoder.psnr(base.vae, renders)
    simple, several = requests(a.prompts, False, seed=7), requests(a.prompts // 2, True, seed=8)
    drawn = [draw_each(base, asked, 1000 * (k + 1)) for k, asked in enumerate((simple, several))]
    results = [
        score(asked, judge(pictures)) for asked, pictures in zip((simple, several), drawn, strict=True)
    ]
    heads = ["class", "context", "colour", "pattern", "second", "accessory", "all"]
    rows = [
        (h, *(f"{100 * r[h]:.1f} %" for r in results), f"{100 * exam[h]:.1f} %" if h in exam else "")
        for h in heads
    ]
    headers = ("judged right", "class + context + one", "everything at once", "judge on unseen renders")
    show(f"{len(simple)} and {len(several)} prompts, {STEPS} steps, CFG {GUIDANCE:g}", headers, rows)
    colours, seconds = colours_of(base, judge, "a dog", 64), seconds_a_picture(base)
    a.out.mkdir(parents=True, exist_ok=True)
    picked = range(0, len(simple), max(1, len(simple) // 48))
    sheet = contact_sheet([("", [drawn[0][i] for i in picked[k : k + 12]]) for k in range(0, 48, 12)])
    save_picture(sheet, a.out / "pocket.png")
    targets = [Target(f"{h} right", results[0][h], low=low) for h, low in LOWEST.items()]
    targets += [
        Target("autoencoder on unseen renders", psnr, low=30, unit="dB"),
        Target("colours of 'a dog' x 64", colours, low=8),
        Target("a picture at batch 4", seconds, high=1.0, unit="s"),
        *(Target(f"judge, {h}", exam[h], low=0.97) for h in HEADS),
        Target("judge, subject first of 50", exam["identity"], low=0.90),
    ]
    if a.docs:
        _write_docs(headers, rows, targets, a.out / "pocket.png", [simple[i].prompt for i in picked])
    print(machine())
    verdict(targets, a.check)


def _write_docs(
    headers: tuple, rows: list[tuple], targets: list[Target], sheet: Path, prompts: list[str]
) -> None:
    docs = Path("docs")
    shutil.copyfile(sheet, docs / "pocket.png")
    met = [
        (t.name, f"{t.value:.3g} {t.unit}", f"{t.wanted} {t.unit}", "yes" if t.met else "no") for t in targets
    ]
    (docs / "pocket.md").write_text(
        f"# The pocket model\n\nWritten by `python -m benchmarks.pocket_quality --docs` on {machine()}.\n\n"
        + "![pictures of the pocket model](pocket.png)\n\n"
        + f"From {prompts[0]!r} to {prompts[-1]!r}: one picture each, not chosen.\n\n"
        + markdown(headers, rows)
        + "\n"
        + markdown(("target", "measured", "wanted", "met"), met)
    )


def draw_each(base: Base, asked: list[Request], seed: int) -> list:
    """One picture for each request."""
    return draw(base, [r.prompt for r in asked], seed=seed, steps=STEPS, guidance=GUIDANCE, batch_size=16)


if __name__ == "__main__":
    with one_sentence():
        main()
