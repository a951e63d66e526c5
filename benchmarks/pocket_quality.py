"""`python -m benchmarks.pocket_quality`: does the pocket model draw what a prompt says?

512 prompts name the class, the context and one more attribute; 256 more name all of them at once, 128 a style
and 128 two subjects, and are reported apart. Every picture is judged by the model's own judge, which is
itself examined on unseen renders, as they are and as the autoencoder gives them back.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from atomdiff import pocket
from atomdiff.base.architectures import ARCHITECTURES
from atomdiff.base.stable_diffusion import Base, load_base
from atomdiff.pocket import corpus, world
from atomdiff.pocket.corpus import HEADS
from atomdiff.pocket.judge import Judge, Verdict, examine
from atomdiff.pocket.recipe import autoencoder
from atomdiff.sampling.draw import draw
from atomdiff.sampling.sheets import contact_sheet, save_picture

from .report import Target, command, machine, markdown, one_sentence, show, verdict, write_section, written
from .shapes import Clock

STEPS, GUIDANCE = 25, ARCHITECTURES["pocket"].guidance
LOWEST = {"class": 0.97, "context": 0.97, "colour": 0.97, "pattern": 0.92, "accessory": 0.92, "second": 0.85}
VIEWS = 4
PAGE = """{}.

![pictures of the pocket model](pocket.png)

From {!r} to {!r}: one picture each, not chosen.

{}
{}
What the judge takes for what, on unseen renders:

{}"""
SIDES = {"class": "other", "other": "class", "colour": "other colour", "other colour": "colour"}


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
    text = _a(text)
    if "pattern" in which:
        text += f" with {subject.second} {subject.pattern}"
        wanted |= {"pattern": subject.pattern, "second": subject.second}
    if "accessory" in which:
        text, wanted["accessory"] = f"{text} {world.ACCESSORIES[worn]}", worn
    return Request(f"{text} {world.CONTEXTS[context]}", wanted)


def styled_requests(count: int, seed: int) -> list[Request]:
    """Prompts that name a style, a class and a context."""
    rng = np.random.default_rng(seed)
    styles = [style for style in world.STYLES if style != "drawing"]
    made = []
    for i in range(count):
        style, kind = styles[i % len(styles)], world.CLASSES[i % len(world.CLASSES)]
        context = tuple(world.CONTEXTS)[rng.integers(len(world.CONTEXTS))]
        wanted = {"style": style, "class": kind, "context": context}
        made.append(Request(f"{world.STYLES[style]} {_a(kind)} {world.CONTEXTS[context]}", wanted))
    return made


def pair_requests(count: int, seed: int) -> list[Request]:
    """Prompts for two subjects, half of them with a colour each."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        scene = world.random_pair(rng, world.random_subject(rng, world.CLASSES[i % len(world.CLASSES)]))
        first, second = scene.subject, scene.other
        assert second
        wanted = {"class": first.kind, "other": second.kind, "context": scene.context}
        names = [first.kind, second.kind]
        if i % 2:
            wanted |= {"colour": first.colour, "other colour": second.colour}
            names = [f"{s.colour} {s.kind}" for s in (first, second)]
        made.append(Request(f"{_a(names[0])} and {_a(names[1])} {world.CONTEXTS[scene.context]}", wanted))
    return made


def all_requests(count: int) -> dict[str, list[Request]]:
    """Every kind of prompt."""
    return {
        "class + context + one": requests(count, False, seed=7),
        "everything at once": requests(count // 2, True, seed=8),
        "a style": styled_requests(count // 4, seed=9),
        "two subjects": pair_requests(count // 4, seed=10),
    }


def _a(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def score(asked: list[Request], judged: Verdict) -> dict[str, float]:
    """Share right per head, over the prompts that name it; "all" is everything right at once. Of two subjects
    either may stand on the left."""
    hits: dict[str, list[bool]] = {"all": []}
    for i, request in enumerate(asked):
        seen = {h: HEADS[h][int(judged.answers[h][i])] for h in judged.answers}
        if "other" in request.wanted and seen["class"] == request.wanted["other"]:
            seen |= {a: seen[b] for a, b in SIDES.items()}
        right = {h: seen[h] == value for h, value in request.wanted.items()}
        if "other" in right:
            hits.setdefault("both", []).append(right["class"] and right["other"])
        for head, hit in right.items():
            hits.setdefault(head, []).append(hit)
        hits["all"].append(all(right.values()))
    return {head: sum(h) / len(h) for head, h in hits.items()}


def confusions(judged: Verdict, truth: dict[str, np.ndarray], most: int = 3) -> list[tuple[str, str]]:
    """For every head what it takes most often for what, with the share of that answer's pictures."""
    rows = []
    for head, answers in judged.answers.items():
        known = truth[head] >= 0
        if head == "second":
            known &= truth["pattern"] != HEADS["pattern"].index("plain")
        pairs = Counter(zip(truth[head][known].tolist(), answers.numpy()[known].tolist(), strict=True))
        of = Counter(truth[head][known].tolist())
        wrong = sorted(((n / of[a], a, b) for (a, b), n in pairs.items() if a != b), reverse=True)[:most]
        told = ", ".join(f"{HEADS[head][a]} → {HEADS[head][b]} {100 * share:.1f} %" for share, a, b in wrong)
        rows.append((head, told or "none"))
    return rows


def drawn(base: Base, prompts: str | Sequence[str], seed: int, count: int = 1, batch: int = 16) -> list:
    """`count` pictures of each prompt."""
    return draw(base, prompts, count=count, seed=seed, steps=STEPS, guidance=GUIDANCE, batch_size=batch)


def seconds_a_picture(base: Base, rounds: int = 3) -> float:
    """On two threads, as most laptops have at least."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    clock = Clock("cpu", wall=True)
    times = [clock(partial(drawn, base, "a red dog on the beach", i, 4, 4)) / 4 for i in range(rounds)]
    torch.set_num_threads(threads)
    return median(times)


@dataclass(frozen=True)
class Examined:
    """What is known of the judge: shares right on renders and after the autoencoder, and its errors."""

    renders: dict[str, float]
    redrawn: dict[str, float]
    errors: list[tuple[str, str]]

    @classmethod
    def of(cls, base: Base, judge: Judge, folder: Path) -> Examined:
        unseen = corpus.acquaintances(folder, 2_400, seed=91, views=VIEWS)
        again = replace(
            unseen, pictures=autoencoder.redraw(base.vae, torch.from_numpy(unseen.pictures)).numpy()
        )
        exams = examine(judge, unseen, VIEWS), examine(judge, again, VIEWS)
        return cls(*exams, confusions(judge(torch.from_numpy(unseen.pictures)), unseen.labels))


def main() -> None:
    parser = command("pocket_quality", __doc__, docs="docs/pocket.md")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--base", type=Path, default=pocket.path(), help="another folder in its layout")
    parser.add_argument("--judge", type=Path, help="a judge's weights (default: the base's own)")
    parser.add_argument("--out", type=Path, default=Path("outputs/pocket_quality"))
    a = parser.parse_args()
    base, judge = load_base(str(a.base)), Judge.load(a.judge or a.base / "judge.safetensors")
    speed = seconds_a_picture(base)  # first, so that who runs this sees when the machine has to be quiet
    asked = all_requests(a.prompts)
    pictures = {
        name: drawn(base, [request.prompt for request in some], 1000 * (k + 1))
        for k, (name, some) in enumerate(asked.items())
    }
    results = {name: score(asked[name], judge(some)) for name, some in pictures.items()}
    known = Examined.of(base, judge, a.out / "renders")
    tables = table(results, known), (("of", "most often, of so many pictures of it"), known.errors)
    show(f"{sum(map(len, asked.values()))} prompts, {STEPS} steps, CFG {GUIDANCE:g}", *tables[0])
    show("What the judge takes for what, on unseen renders", *tables[1])
    simple = asked["class + context + one"]
    picked = range(0, len(simple), max(1, len(simple) // 48))
    chosen = [pictures["class + context + one"][i] for i in picked]
    rows = [("", chosen[k : k + 12]) for k in range(0, 48, 12)]
    sheet = save_picture(contact_sheet(rows), a.out / "pocket.png")
    renders = torch.from_numpy(corpus.pretraining(a.out / "renders", 512, seed=92).pictures)
    dogs = judge(drawn(base, "a dog", 5000, 64)).answers["colour"]
    megabytes = sum(file.stat().st_size for file in a.base.rglob("*.safetensors")) / 1e6
    wanted = [
        *targets(results, known),
        Target("autoencoder on unseen renders", autoencoder.psnr(base.vae, renders), low=32, unit="dB"),
        Target("colours of 'a dog' x 64", len(dogs.unique()), low=8),
        Target("a picture at batch 4", speed, high=1.0, unit="s"),
        Target("the whole", megabytes, high=40, unit="MB"),
    ]
    if a.docs:
        shutil.copyfile(sheet, Path("docs/pocket.png"))
        told = PAGE.format(
            written(), simple[0].prompt, simple[picked[-1]].prompt, markdown(*tables[0]),
            markdown(("target", "measured", "wanted", "met"), [target.row for target in wanted]),
            markdown(*tables[1]),
        )  # fmt: skip
        write_section(Path("docs/pocket.md"), "quality", told)
    print(machine())
    verdict(wanted, a.check)


def table(results: dict[str, dict[str, float]], known: Examined) -> tuple[tuple[str, ...], list[tuple]]:
    """(headers, rows): what was right of each head in each kind of prompts, and the judge's own figures."""
    examined = (known.renders, known.redrawn)
    headers = ("judged right", *results, "judge on unseen renders", "judge after the autoencoder")
    heads = list(dict.fromkeys([*(h for h in HEADS), *(h for r in results.values() for h in r)]))
    figures = [(h, *(r.get(h) for r in (*results.values(), *examined))) for h in heads]
    shown = [row for row in figures if any(value is not None for value in row[1:])]
    return headers, [(h, *("" if v is None else f"{100 * v:.1f} %" for v in row)) for h, *row in shown]


def targets(results: dict[str, dict[str, float]], known: Examined) -> list[Target]:
    """What was asked of the model and of its judge."""
    simple, pairs = results["class + context + one"], results.get("two subjects", {})
    made = [Target(f"{h} right", simple.get(h), low=low) for h, low in LOWEST.items()]
    made.append(Target("style right", results["a style"]["style"], low=0.95))
    made.append(Target("both of two subjects right", pairs.get("both"), low=0.60))
    for where, exam in (("unseen renders", known.renders), ("after the autoencoder", known.redrawn)):
        made += [Target(f"judge, {h}, {where}", exam[h], low=0.97) for h in HEADS if h in exam]
        made.append(Target(f"judge, subject first of 50, {where}", exam["identity"], low=0.97))
    return made


if __name__ == "__main__":
    with one_sentence():
        main()
