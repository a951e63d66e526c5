"""The pictures of the studio in the docs: every tab, as a visitor sees it after a few minutes.

    python -m benchmarks.screenshots [--out docs] [--train-steps 60]

Starts the real studio on a folder of its own with the bundled concept in its library, walks through the tabs
in a real browser, draws, compares and trains a little, and writes OUT/studio-*.png as small palette pictures.
`--train-steps 0` leaves the training out.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.serving import ROOT, served

CONCEPTS = (ROOT / "assets/concepts/dog.safetensors", ROOT / "outputs/dog/dog.safetensors")
SUBJECT = sorted((ROOT / "assets/dog").glob("*.png"))
DESK = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}
TOUCH = {"is_mobile": True, "has_touch": True, "device_scale_factor": 2}
PATIENCE = 600_000  # milliseconds
SETTLED = 900  # milliseconds until nothing moves any more


@dataclass(frozen=True)
class Walk:
    """A visit: the browser's page, where pictures of it go, where the studio's own are, and the concept that
    is there ("" for none)."""

    page: Any
    out: Path
    work: Path
    concept: str

    def open(self, tab: str) -> None:
        """Goes to a tab."""
        self.page.get_by_role("tab", name=tab, exact=True).click()

    def field(self, ident: str) -> Any:
        """The input of a component."""
        return self.page.locator(f"#{ident} textarea, #{ident} input").first

    def choose(self, ident: str, option: str) -> None:
        """Chooses from a list."""
        self.page.wait_for_timeout(SETTLED)
        self.page.locator(f"#{ident} input").click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def shoot(self, name: str) -> None:
        """Writes what the window shows as studio-NAME.png."""
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(SETTLED)
        with Image.open(io.BytesIO(self.page.screenshot())) as picture:
            small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        file = self.out / f"studio-{name}.png"
        small.save(file, optimize=True)
        print(f"{file}: {small.width} × {small.height}, {file.stat().st_size / 1000:.0f} KB")


def draw(walk: Walk) -> None:
    """First what a visitor finds, then four pictures, by day and by night."""
    walk.shoot("first")
    if walk.concept:
        walk.choose("concepts", walk.concept)
        walk.page.wait_for_function("document.querySelector('#prompt textarea').value")
        walk.field("prompt").fill(f"{walk.field('prompt').input_value()} on the beach")
    else:
        walk.field("prompt").fill("a teal dog on the beach")
    walk.field("seed").fill("7")
    walk.page.locator("#go").click()
    walk.page.locator("#gallery img").nth(3).wait_for()
    walk.page.locator("#halt").wait_for(state="hidden")
    walk.shoot("draw")
    walk.page.locator("#theme-switch").click()
    walk.shoot("draw-dark")
    walk.page.locator("#theme-switch").click()


def concepts(walk: Walk) -> None:
    """The library, with a concept chosen if there is one."""
    walk.open("Concepts")
    if walk.concept:
        walk.page.locator("#cards button[data-id]").first.click()
        walk.page.locator("#one-concept").wait_for()
    walk.shoot("concepts")


def learned(walk: Walk) -> None:
    """The maps of the concept, if there is one."""
    walk.open("What was learned")
    if walk.concept:
        walk.choose("learned-which", walk.concept)
        walk.page.locator(".sheet img:visible").first.wait_for()
    walk.shoot("learned")


def compare(walk: Walk) -> None:
    """A small grid."""
    walk.open("Compare")
    walk.choose("axis-across", "Strength" if walk.concept else "Part of the prompt")
    walk.field("values-across").fill("0, 0.5, 1" if walk.concept else "beach, city, forest")
    walk.choose("axis-down", "Seed")
    walk.field("values-down").fill("1, 2")
    walk.page.locator("#grid-go").click()
    walk.page.locator("#grid-sheet img").wait_for()
    walk.shoot("compare")


def history(walk: Walk) -> None:
    """What was drawn, with one picture chosen."""
    walk.open("History")
    walk.page.locator("#history-gallery .grid-container img").first.wait_for()
    walk.shoot("history")


def picture(walk: Walk) -> None:
    """What a picture says of itself."""
    walk.open("Picture info")
    found = (walk.work / "out" / "pictures").rglob("a-*.png")
    newest = max(found, key=lambda file: file.stat().st_mtime)
    walk.page.locator("#picture-file input[type=file]").set_input_files(newest)
    walk.page.locator("#picture-told dt").first.wait_for()
    walk.shoot("picture-info")


def train(walk: Walk, steps: int) -> None:
    """Five pictures dropped, and with `steps` what becomes of them."""
    walk.open("Train")
    walk.page.locator("#train-files input[type=file]").set_input_files(SUBJECT[:5])
    walk.page.locator("#train-tiles img").nth(4).wait_for()
    walk.field("train-class").fill("dog")
    walk.field("train-name").fill("Bello")
    if steps:
        walk.page.locator("#train-more button").first.click()
        walk.page.locator("#train-max_train_steps input").first.fill(str(steps))
        walk.page.locator("#train-with_prior_preservation input").uncheck()
        walk.page.locator("#train-more button").first.click()
        walk.page.locator("#train-go").click()
        walk.page.get_by_text("Choose the state you like best").wait_for()
        walk.page.locator("#frame img").first.wait_for()
    walk.page.evaluate("scrollTo(0, 0)")
    walk.shoot("train")


def at_a_desk(walk: Walk, steps: int) -> None:
    """Every tab."""
    for act in (draw, compare, history, picture, concepts, learned):
        act(walk)
    train(walk, steps)


def on_a_phone(walk: Walk) -> None:
    """Draw: its top, and the pictures below."""
    walk.shoot("phone")
    walk.field("prompt").fill("a teal dog on the beach")
    walk.page.locator("#go").click()
    walk.page.locator("#gallery img").nth(3).wait_for()
    walk.page.locator("#halt").wait_for(state="hidden")
    walk.shoot("phone-drawn")


@contextmanager
def visit(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """A page of a visitor nobody knows yet."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(url)
    page.locator("#go").wait_for()
    yield page
    context.close()


def concept_in(library: Path) -> str:
    """Puts the first of CONCEPTS that there is into a library; its name, or "" if there is none."""
    from atomdiff.concepts.concept import Concept

    file = next((file for file in CONCEPTS if file.is_file()), None)
    if file is None:
        return ""
    library.mkdir(parents=True)
    shutil.copy(file, library / file.name)
    return Concept.load(file).title


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--train-steps", type=int, default=60)
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("error: there is no Playwright here: pip install playwright.")
    if chromium is None:
        sys.exit("error: there is no Chromium here: apt-get install chromium.")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        concept = concept_in(work / "concepts")
        with served(work) as studio, sync_playwright() as play:
            browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            with visit(browser, studio.url, viewport=DESK) as page:
                at_a_desk(Walk(page, options.out, work, concept), options.train_steps)
            with visit(browser, studio.url, viewport=PHONE, **TOUCH) as page:
                on_a_phone(Walk(page, options.out, work, concept))
            browser.close()


if __name__ == "__main__":
    main()
