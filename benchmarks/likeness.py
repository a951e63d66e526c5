"""`python -m benchmarks.likeness`: how like the subject, and how true to the prompt, are the pictures of a
concept?

Three held-out subjects, 8 contexts x 8 pictures each, judged by the pocket's judge: the base, the default
concept, and full fine-tuning of the UNet on the very same pictures and steps as the ceiling.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import atomdiff
from atomdiff import pocket
from atomdiff.base.stable_diffusion import Base, load_base
from atomdiff.concept.concept import Concept
from atomdiff.pocket import world
from atomdiff.pocket.judge import Judge
from atomdiff.sampling.sheets import contact_sheet, save_picture
from atomdiff.training.defaults import POCKET

from .court import CONTEXTS, Court, Drawing, likeness
from .method.fitting import train
from .method.handmade import FULL
from .method.protocol import Handle
from .method.tasks import Task, prepare
from .report import Target, machine, markdown, one_sentence, option, show, verdict, written

COLUMNS = ("colour", "second", "pattern", "identity", "class", "context", "leak", "drift")
LEGEND = """Likeness is the mean of first colour, second colour and pattern (shares judged right) and of
identity (cosine of the judge's embedding to renders of the subject). Leak: share of pictures of the bare
class, without the trigger, that have the subject's colour or pattern. Drift: 1 - cosine between pictures of
the bare class before and after, same seeds; of a concept, which acts where its word is said, it is none."""


@dataclass(frozen=True)
class Result:
    """Shares and mean similarities in [0, 1] of one method on one subject, and what it took."""

    figures: dict[str, float]
    seconds: float
    size: int
    pictures: list[Image.Image]

    @property
    def likeness(self) -> float:
        """Mean of first colour, second colour and pattern right, and of the identity similarity."""
        return likeness(self.figures)


def full_fine_tuning(base: Base, task: Task) -> Handle:
    """Trains every weight of `base.unet` on the pictures, noise and steps of the concept, and on class
    pictures, as DreamBooth does, until the handle is detached."""
    handle = FULL.attach(base)
    data = prepare(base, task, POCKET.num_class_images)
    train(handle, data, POCKET.max_train_steps, POCKET.train_batch_size, seed=0, rate=FULL.rate)
    return handle


def task_of(kind: str) -> Task:
    """The held-out subject of this kind, as its five pictures in assets/ show it."""
    subject = next(s for s in world.benchmark_subjects(3) if s.kind == kind)
    pictures = tuple(Image.open(path).convert("RGB") for path in sorted(Path(f"assets/{kind}").glob("*.png")))
    asked = f"a sks {kind}"

    def court(base: Base, judge: Judge, drawing: Drawing) -> Court:
        return Court(base, judge, subject, drawing)

    return Task(kind, pictures, (asked,) * len(pictures), (f"a {kind}",), asked, court)


def run_subject(kind: str, each: int, out: Path, options: dict, ceiling: bool) -> dict[str, Result]:
    base, judge = load_base("pocket"), Judge.load(pocket.path() / "judge.safetensors")
    task = task_of(kind)
    court = task.court(base, judge, Drawing(each))
    results = {}

    def case(name: str, make: Callable[[], tuple[list[Concept], int]]) -> None:
        start = time.perf_counter()
        concepts, size = make()
        seconds = time.perf_counter() - start
        figures, pictures = court.try_case(base, concepts, task.asked)
        results[name] = Result(figures, seconds, size, pictures)

    def trained() -> tuple[list[Concept], int]:
        concept = atomdiff.train(f"assets/{kind}", out=out / kind, base=base, **options)
        return [concept], (out / kind / f"{kind}.safetensors").stat().st_size

    case("base", lambda: ([], 0))
    case("concept", trained)
    if ceiling:
        with contextlib.ExitStack() as stack:

            def tuned() -> tuple[list[Concept], int]:
                handle = full_fine_tuning(base, task)
                stack.callback(handle.detach)
                return [], 2 * handle.numbers()

            case("full fine-tuning", tuned)
    return results


def rows_of(results: dict[str, dict[str, Result]]) -> list[tuple]:
    rows = []
    for method in next(iter(results.values())):
        for kind in [*results, "mean"]:
            cases = [results[k][method] for k in results] if kind == "mean" else [results[kind][method]]
            mean = lambda f, cases=cases: sum(map(f, cases)) / len(cases)  # noqa: E731
            rows.append(
                (
                    f"{method}, {kind}",
                    f"{mean(lambda r: r.size) / 1000:,.1f}",
                    f"{mean(lambda r: r.seconds):.0f}",
                    f"{mean(lambda r: r.likeness):.2f}",
                    *(f"{mean(lambda r, c=c: r.figures[c]):.2f}" for c in COLUMNS),
                )
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.likeness", description=__doc__)
    parser.add_argument("--subjects", nargs="+", default=["dog", "cat", "robot"])
    parser.add_argument("--each", type=int, default=8, help="pictures in each of the 8 contexts")
    parser.add_argument("--no-ceiling", action="store_true", help="skip full fine-tuning")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="training settings to try")
    parser.add_argument("--out", type=Path, default=Path("outputs/likeness"))
    parser.add_argument("--docs", action="store_true", help="write docs/likeness.md and its picture")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    a = parser.parse_args()
    results = {
        k: run_subject(k, a.each, a.out, dict(map(option, a.set)), not a.no_ceiling) for k in a.subjects
    }
    headers = ("method, subject", "KB", "training s", "likeness", *COLUMNS)
    rows = rows_of(results)
    show(f"{len(CONTEXTS)} contexts x {a.each} pictures", headers, rows)
    _sheets(results, a.out, a.each)
    if a.docs:
        _write_docs(headers, rows, a.out, a.each)
    mean = lambda method, f: sum(f(r[method]) for r in results.values()) / len(results)  # noqa: E731
    gained = mean("concept", lambda r: r.likeness) - mean("base", lambda r: r.likeness)
    lost = mean("base", lambda r: r.figures["context"]) - mean("concept", lambda r: r.figures["context"])
    print(machine())
    verdict(
        [Target("likeness above the base", gained, low=0.25), Target("context lost", lost, high=0.05)],
        a.check,
    )


def _sheets(results: dict[str, dict[str, Result]], out: Path, each: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for kind, methods in results.items():
        picked = [
            (f"{name}: a sks {kind} ...", [r.pictures[i * each] for i in range(len(CONTEXTS))])
            for name, r in methods.items()
        ]
        given = [Image.open(p).convert("RGB") for p in sorted(Path(f"assets/{kind}").glob("*.png"))]
        save_picture(contact_sheet([("the five pictures", given), *picked]), out / f"{kind}.png")


def _write_docs(headers: tuple, rows: list[tuple], out: Path, each: int) -> None:
    docs, sheets = Path("docs"), sorted(out.glob("*.png"))
    for path in sheets:
        Image.open(path).convert("RGB").reduce(2).save(docs / f"likeness-{path.stem}.jpg", quality=88)
    (docs / "likeness.md").write_text(
        f"# Likeness\n\n{written()}.\n"
        f"8 contexts x {each} pictures of each subject and method. Full fine-tuning trains every weight,\n"
        f"at a rate of {FULL.rate:g}, on the same pictures, noise and steps, and on pictures of the class\n"
        "besides.\n\n"
        + markdown(headers, rows)
        + "\n"
        + LEGEND
        + "\n\n"
        + "\n".join(f"![{p.stem}](likeness-{p.stem}.jpg)" for p in sheets)
        + "\n"
    )


if __name__ == "__main__":
    with one_sentence():
        main()
