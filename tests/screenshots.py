"""The pictures of the studio in the docs: every tab by day and by night, at a desk and on a phone.

    PYTHONPATH=. python tests/screenshots.py [--out docs/screens] [--steps 25] [--train-steps 60]

Starts the real studio with an empty library, takes the example concept and walks through the tabs in a real
browser: draws, compares, trains a little. Writes OUT/TAB.png, and OUT/phone.png with every tab on it, as
small palette pictures: the left half by day, the right half by night. `--train-steps 0` leaves the training
out.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.serving import ROOT, served

SUBJECT = sorted((ROOT / "assets/dog").glob("*.png"))
DESK = {"width": 1180, "height": 800}
PHONE = {"width": 390, "height": 780}
TABS = ("Draw", "Concepts", "Train", "What was learned", "Compare", "History", "Picture info")
COLOURS = 128  # of a saved picture
PATIENCE = 600_000  # milliseconds
SETTLED = 900  # milliseconds until nothing moves any more


@dataclass(frozen=True)
class Walk:
    """A visit: the browser's page, where pictures of it go, and where the studio keeps its own."""

    page: Any
    out: Path
    work: Path
    steps: int
    kept: list[tuple[Image.Image, Image.Image]] = field(default_factory=list)
    """On a phone: what is to stand side by side, by day and by night."""

    def field(self, ident: str) -> Any:
        """The input of a component."""
        return self.page.locator(f"#{ident} textarea, #{ident} input").first

    def choose(self, ident: str, option: str) -> None:
        """Chooses from a list."""
        self.page.wait_for_timeout(SETTLED)
        self.page.locator(f"#{ident} input").click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def draw(self, prompt: str, count: int) -> None:
        """Draws, and waits for the pictures."""
        self.field("prompt").fill(prompt)
        self.field("seed").fill("0")
        self.page.locator("#count input[type=number]").fill(str(count))
        if not self.page.locator("#steps").is_visible():
            self.page.locator("#more button").first.click()
        self.page.locator("#steps input[type=number]").fill(str(self.steps))
        self.page.keyboard.press("Tab")
        self.page.locator("#more button").first.click()
        self.page.locator("#go").click()
        self.page.locator("#halt").wait_for()  # pictures of before are still there until then
        self.page.locator("#gallery img").nth(count - 1).wait_for()
        self.page.locator("#halt").wait_for(state="hidden")

    def seen(self) -> tuple[Image.Image, Image.Image]:
        """What the window shows, by day and by night."""
        self.page.evaluate("document.activeElement.blur()")
        self.page.mouse.move(0, 0)
        shots = []
        for _ in range(2):
            self.page.wait_for_timeout(SETTLED)
            with Image.open(io.BytesIO(self.page.screenshot())) as picture:
                shots.append(picture.convert("RGB"))
            self.page.evaluate("document.querySelector('#theme-switch').click()")
        return shots[0], shots[1]

    def shoot(self, name: str) -> None:
        """Writes what the window shows as NAME.png."""
        saved(halved(*self.seen()), self.out / f"{name}.png")

    def keep(self) -> None:
        """Keeps what the window shows."""
        self.kept.append(self.seen())


def open_tab(page: Any, tab: str) -> None:
    """Goes to a tab, which may be in the menu of those that a small screen has no room for."""
    seen = page.get_by_role("tab", name=tab, exact=True)
    if seen.count() and seen.first.is_visible():
        seen.first.click()
    else:
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text=tab).click()


def halved(day: Image.Image, night: Image.Image) -> Image.Image:
    """The left half of one, the right half of the other."""
    both, middle = day.copy(), day.width // 2
    both.paste(night.crop((middle, 0, *night.size)), (middle, 0))
    return both


def saved(picture: Image.Image, file: Path) -> None:
    """Writes a small palette picture."""
    picture.quantize(COLOURS, kmeans=2, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file}: {picture.width} × {picture.height}, {file.stat().st_size / 1000:.0f} KB")


def draw(walk: Walk) -> None:
    """First what a visitor finds, then the example and four pictures."""
    walk.page.locator("#draw-example").wait_for()
    walk.shoot("first")
    walk.page.locator("#draw-example").click()
    walk.page.wait_for_function("document.querySelector('#prompt textarea').value")
    walk.page.locator("#draw-example").wait_for(state="hidden")
    walk.draw(f"{walk.field('prompt').input_value()} on the beach", 4)
    walk.page.evaluate("scrollTo(0, 0)")
    walk.shoot("draw")


def start(walk: Walk) -> None:
    """A picture to draw from, painted over in part, and what comes of it."""
    open_tab(walk.page, "Draw")
    walk.page.locator("#to-start").click()
    canvas = walk.page.locator("#start-image canvas").first
    canvas.wait_for()
    walk.page.wait_for_timeout(3 * SETTLED)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    walk.page.mouse.move(x - 25, y)
    walk.page.mouse.down()
    walk.page.mouse.move(x + 25, y + 10, steps=5)
    walk.page.mouse.up()
    walk.draw("a red cat on the beach", 2)
    walk.page.evaluate("scrollTo(0, 420)")
    walk.shoot("start")
    walk.page.evaluate("scrollTo(0, 0)")


def where(walk: Walk) -> None:
    """A concept that is to be on the left, and what comes of it."""
    open_tab(walk.page, "Draw")
    if not walk.page.locator("#where").is_visible():
        walk.choose("concepts", "dog")
    walk.page.locator("#where button").first.click()
    walk.page.wait_for_timeout(3 * SETTLED)
    canvas = walk.page.locator("#where-canvas canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for down in (0.3, 0.45, 0.6, 0.75):
        walk.page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + down * box["height"])
        walk.page.mouse.down()
        walk.page.mouse.move(box["x"] + 0.42 * box["width"], box["y"] + down * box["height"], steps=5)
        walk.page.mouse.up()
    walk.draw("a sks dog in the snow", 2)
    walk.page.evaluate("scrollTo(0, 640)")
    walk.shoot("where")
    walk.page.locator("#where-clear").click()
    walk.page.locator("#where button").first.click()
    walk.page.evaluate("scrollTo(0, 0)")


def concepts(walk: Walk) -> None:
    """The library, with a concept chosen."""
    open_tab(walk.page, "Concepts")
    walk.page.locator("#cards button[data-id]").first.click()
    walk.page.locator("#one-concept").wait_for()
    walk.shoot("concepts")


def train(walk: Walk, steps: int) -> None:
    """Five pictures dropped, and with `steps` what becomes of them."""
    open_tab(walk.page, "Train")
    walk.page.locator("#train-files input[type=file]").set_input_files(SUBJECT[:5])
    walk.page.locator("#train-tiles img").nth(4).wait_for()
    walk.field("train-class").fill("dog")
    walk.field("train-name").fill("Bello")
    if steps:
        walk.page.locator("#train-more button").first.click()
        walk.page.locator("#train-max_train_steps input").first.fill(str(steps))
        walk.choose("train-with_prior_preservation", "no")
        walk.page.locator("#train-more button").first.click()
        walk.page.locator("#train-go").click()
        walk.page.get_by_text("Choose the state you like best").wait_for()
        walk.page.locator("#frame img").first.wait_for()
    walk.page.evaluate("scrollTo(0, 0)")
    walk.shoot("train")


def learned(walk: Walk) -> None:
    """The maps of the concept."""
    open_tab(walk.page, "What was learned")
    walk.choose("learned-which", "dog")
    walk.page.locator("#learned-maps img").wait_for()
    walk.shoot("learned")


def compare(walk: Walk) -> None:
    """A small grid."""
    open_tab(walk.page, "Compare")
    walk.field("values-across").fill("0, 0.5, 1")
    walk.field("values-down").fill("1, 2")
    walk.page.locator("#grid-go").click()
    walk.page.locator("#grid-sheet img").wait_for()
    walk.shoot("compare")


def history(walk: Walk) -> None:
    """What was drawn, with one picture chosen."""
    open_tab(walk.page, "History")
    pictures = walk.page.locator("#history-gallery .grid-container img")
    pictures.first.wait_for()
    pictures.first.click()
    walk.page.locator("#history-about dt").first.wait_for()
    walk.shoot("history")


def picture(walk: Walk) -> None:
    """What a picture says of itself."""
    open_tab(walk.page, "Picture info")
    found = (walk.work / "out" / "pictures").rglob("a-*.png")
    first = min(found, key=lambda file: file.stat().st_mtime)
    walk.page.locator("#picture-file input[type=file]").set_input_files(first)
    walk.page.locator("#picture-told dt").first.wait_for()
    walk.shoot("picture-info")


def on_a_phone(walk: Walk) -> None:
    """Every tab on one picture, Draw with its settings and with its pictures."""
    walk.page.wait_for_timeout(3 * SETTLED)  # until the library is known
    walk.keep()
    walk.draw("a teal dog on the beach", 2)
    walk.page.wait_for_timeout(SETTLED)
    walk.keep()
    for tab in TABS[1:]:
        walk.page.evaluate("scrollTo(0, 0)")
        open_tab(walk.page, tab)
        walk.keep()
    day, night = zip(*walk.kept, strict=True)
    saved(halved(beside(day), beside(night)), walk.out / "phone.png")


def beside(pictures: Sequence[Image.Image], across: int = 4, side: int = 290, gap: int = 14) -> Image.Image:
    """Pictures in rows, reduced to the same width."""
    up = round(side * pictures[0].height / pictures[0].width)
    rows = -(-len(pictures) // across)
    sheet = Image.new("RGB", (across * (side + gap) - gap, rows * (up + gap) - gap), "#8d8780")
    for i, one in enumerate(pictures):
        place = (i % across * (side + gap), i // across * (up + gap))
        sheet.paste(one.resize((side, up), Image.Resampling.LANCZOS), place)
    return sheet


@contextmanager
def visit(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """A page of a visitor nobody knows yet, unless the options say who it is."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(url)
    page.locator("#go").wait_for()
    yield page
    context.close()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "screens")
    parser.add_argument("--steps", type=int, default=25, help="of each drawing")
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
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        work = Path(folder)
        with served(work) as studio:
            browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            with visit(browser, studio.url, viewport=DESK) as page:
                walk = Walk(page, options.out, work, options.steps)
                for act in (draw, where, history, picture, compare, concepts, learned, start):
                    act(walk)
                train(walk, options.train_steps)
                known = page.context.storage_state()
            with visit(
                browser, studio.url, viewport=PHONE, is_mobile=True, has_touch=True, storage_state=known
            ) as page:
                on_a_phone(Walk(page, options.out, work, options.steps))
            browser.close()


if __name__ == "__main__":
    main()
