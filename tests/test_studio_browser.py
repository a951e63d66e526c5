"""The studio as people meet it: a real process on the pocket model, a real browser, real files."""

# ruff: noqa: F811 - fixtures that another module has too
from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest
from foreign_files import save_embedding, save_lora
from PIL import Image
from screenshots import TABS, open_tab
from test_studio_api import folder, url  # noqa: F401 - fixtures

from atomdiff.base.stable_diffusion import load_base
from atomdiff.files.safetensors_file import load_concept, save_concept
from benchmarks.serving import served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 240_000  # milliseconds

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
    pytest.mark.filterwarnings("default"),  # what a browser's or a client's library warns of is not ours
]
sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright here: pip install playwright")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def visitor(browser):
    """One person, whose history lasts from test to test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context
    context.close()


def opened(context, url: str):
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(url)
    page.locator("#go").wait_for()
    return page


@pytest.fixture
def page(visitor, url):
    page = opened(visitor, url)
    yield page
    page.close()


def prompt(page) -> str:
    return page.locator("#prompt textarea").input_value()


def set_up(page, steps: int, count: int = 1) -> None:
    """Few steps and pictures."""
    _slide(page, "count", count)
    if not page.locator("#steps").is_visible():
        page.locator("#more button").first.click()
    _slide(page, "steps", steps)


def _slide(page, ident: str, value: int) -> None:
    """Sets a slider's number, again until the slider follows: one that has just appeared may yet be given its
    default."""
    number, slider = (page.locator(f"#{ident} input[type={kind}]") for kind in ("number", "range"))
    for _ in range(50):
        number.fill(str(value))
        number.press("Tab")
        page.wait_for_timeout(100)
        if number.input_value() == slider.input_value() == str(value):
            return
    raise AssertionError(f"{ident} does not take {value}")


def draw(page, text: str = "", steps: int = 2, count: int = 1) -> None:
    if text:
        page.locator("#prompt textarea").fill(text)
    set_up(page, steps, count)
    page.locator("#go").click()
    page.locator("#gallery img").first.wait_for()
    page.locator("#halt").wait_for(state="hidden")


def test_first_start_the_example_then_pictures_that_carry_it(browser, tmp_path):
    from atomdiff.files.card import concept_bytes
    from atomdiff.studio.library_view import EXAMPLE

    with served(tmp_path) as studio:
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page = opened(context, studio.url)
        assert "Nothing drawn yet" in page.locator("#status").inner_text()
        page.locator("#draw-example").click()
        page.wait_for_function("document.querySelector('#prompt textarea').value === 'a sks dog'")
        page.locator("#draw-example").wait_for(state="hidden")
        page.locator("#carry input").check()
        draw(page, count=2)
        assert page.locator("#gallery .grid-container img").count() == 2
        assert not page.locator("#status .error").count()
        downloaded(page, tmp_path / "dog.png")
        page.get_by_role("tab", name="Concepts").click()
        page.locator("#cards img").wait_for()
        context.close()
    assert concept_bytes(tmp_path / "dog.png") == EXAMPLE.read_bytes()
    with Image.open(tmp_path / "dog.png") as picture:
        assert picture.info["parameters"].startswith("a sks dog\nSteps: 2")


def use_settings_of_newest(page, folder: Path) -> None:
    """Gives the picture that was drawn last to Picture info, and takes its settings over into Draw."""
    page.reload()
    page.get_by_role("tab", name="Picture info").click()
    newest = max((folder / "out" / "pictures").rglob("*.png"), key=lambda file: file.stat().st_mtime)
    page.locator("#picture-file input[type=file]").set_input_files(newest)
    page.locator("#picture-told dt").first.wait_for()
    page.locator("#use-settings").click()


def downloaded(page, target: Path) -> None:
    """Looks at the first picture and downloads it."""
    page.locator("#gallery img").first.click()
    with page.expect_download() as download:
        page.locator("#gallery [aria-label='Download'], #gallery [title='Download']").first.click()
    download.value.save_as(target)


def test_an_example_two_clicks_pictures(page):
    page.get_by_text("a teal dog on the beach").click()
    page.wait_for_function("document.querySelector('#prompt textarea').value.includes('teal')")
    draw(page, count=2)
    assert page.locator("#gallery .grid-container img").count() == 2
    assert not page.locator("#status .error").count()


def test_control_enter_draws_and_the_download_keeps_its_settings(page, folder, tmp_path):
    set_up(page, 2)
    page.locator("#prompt textarea").fill("a red cat in space")
    page.locator("#prompt textarea").press("Control+Enter")
    downloaded(page, tmp_path / "cat.png")
    with Image.open(tmp_path / "cat.png") as picture:
        assert picture.size == (128, 128)
        assert picture.info["parameters"].startswith("a red cat in space\nSteps: 2, Sampler: DPM++ 2M")


def choose(page, title: str) -> None:
    """Chooses a concept, once the list is the library's of now (the page asks for it when it is opened)."""
    page.wait_for_timeout(1500)
    page.locator("#concepts input").click()
    page.get_by_role("option", name=title, exact=True).click()
    page.wait_for_function("document.querySelector('#prompt textarea').value")


def test_a_concept_put_into_the_folder_meanwhile_is_there(page, folder):
    from dataclasses import replace

    rex = load_concept(folder / "concepts" / "rex.safetensors")
    save_concept(
        replace(rex, name="Mia", trigger="zwx", class_word="cat"), folder / "concepts" / "mia.safetensors"
    )
    page.reload()
    choose(page, "Mia")
    assert prompt(page) == "a zwx cat"
    draw(page)
    assert not page.locator("#status .error").count()


def test_a_concept_fills_in_its_word_and_is_compared_with_none(page):
    choose(page, "Rex")
    assert prompt(page) == "a sks dog"
    assert page.locator("#strength-0").is_visible()
    draw(page)
    page.locator("#without").click()
    page.locator("#before-after img").nth(1).wait_for()
    sources = [page.locator("#before-after img").nth(i).get_attribute("src") for i in range(2)]
    assert sources[0] != sources[1]


def test_settings_come_back_from_a_picture(page, folder):
    choose(page, "Rex")
    draw(page)
    page.locator("#to-picture").click()
    page.locator("#picture-told dt").first.wait_for()
    tabs = page.get_by_role("tab").all_inner_texts()
    assert len(tabs) == len(set(tabs))
    told = page.locator("#picture-told").inner_text()
    assert "Rex:1:" in told
    seed = re.search(r"Seed\s+(\d+)", told)[1]
    use_settings_of_newest(page, folder)
    page.wait_for_function("document.querySelector('#prompt textarea').value === 'a sks dog'")
    assert page.locator("#seed input, #seed textarea").first.input_value() == seed
    assert page.locator("#strength-0").is_visible()


def test_a_wrong_file_is_told_in_a_sentence(page, tmp_path):
    page.get_by_role("tab", name="Picture info").click()
    (tmp_path / "wrong.png").write_bytes(b"<script>")
    page.locator("#picture-file input[type=file]").set_input_files(tmp_path / "wrong.png")
    page.locator("#picture-told .error").wait_for()
    assert "is no picture that can be read" in page.locator("#picture-told .error").inner_text()


def test_an_empty_prompt_is_told_in_a_sentence(page):
    page.locator("#go").click()
    page.locator(".toast-message-text").wait_for()
    assert page.locator(".toast-message-text").inner_text() == "There is no prompt: write what to draw."


def test_cancel_and_reload_while_drawing(page):
    page.locator("#prompt textarea").fill("a dog")
    set_up(page, 200, 8)
    page.locator("#go").click()
    page.locator("#status .bar").wait_for()
    page.reload()
    page.locator("#status .bar").wait_for()  # the page finds its drawing again
    page.locator("#status .previews img").first.wait_for()
    page.locator("#halt").click()
    page.get_by_text("Stopped.").wait_for()
    page.locator("#go").wait_for()


def test_a_grid_is_one_picture_and_files(page):
    page.locator("#prompt textarea").fill("a dog on the beach")
    set_up(page, 1)
    page.get_by_role("tab", name="Compare").click()
    page.locator("#axis-across input").click()
    page.get_by_role("option", name="Part of the prompt").click()
    page.locator("#values-across input, #values-across textarea").first.fill("beach, city")
    page.locator("#values-down input, #values-down textarea").first.fill("1, 2")
    page.locator("#grid-go").click()
    page.locator("#grid-sheet img").wait_for()
    assert page.locator("#grid-files").is_visible()
    assert "seed 2" in page.locator("#grid-table").inner_text()


def test_history_outlives_the_page_is_searched_and_forgets(page, browser, url):
    page.get_by_role("tab", name="History").click()
    pictures = page.locator("#history-gallery .grid-container img")
    pictures.first.wait_for()
    before = pictures.count()
    page.locator("#history-words input, #history-words textarea").first.fill("red cat")
    page.wait_for_function("document.querySelectorAll('#history-gallery .grid-container img').length === 1")
    page.locator("#history-gallery button").first.click()
    page.locator("#history-delete").click()
    page.get_by_text("Nothing found").wait_for()
    page.locator("#history-words input, #history-words textarea").first.fill("")
    page.wait_for_function(
        f"document.querySelectorAll('#history-gallery .grid-container img').length === {before - 1}"
    )
    stranger = browser.new_context()
    other = opened(stranger, url)
    other.get_by_role("tab", name="History").click()
    other.get_by_text("No pictures yet").wait_for()
    stranger.close()


def test_a_phone_shows_it_all_without_scrolling_sideways(browser, url):
    context = browser.new_context(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page = opened(context, url)
    for tab in TABS:
        open_tab(page, tab)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    open_tab(page, "Draw")
    choose(page, "Rex")
    page.locator("#where button").first.click()
    page.locator("#where-canvas canvas").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def pictures(folder: Path) -> list[Path]:
    """Those of the history, the newest last."""
    return sorted((folder / "out" / "pictures").rglob("*.png"), key=lambda file: file.stat().st_mtime)


def newest(folder: Path) -> str:
    """The settings inside the newest picture of the history."""
    with Image.open(pictures(folder)[-1]) as picture:
        return picture.info["parameters"]


def test_a_picture_is_varied_painted_over_and_put_on_a_sheet(page, folder):
    draw(page, "a teal dog on the beach")
    page.locator("#variations").click()
    page.wait_for_function("document.querySelectorAll('#gallery .grid-container img').length === 4")
    page.locator("#halt").wait_for(state="hidden")
    assert "Denoising strength: 0.55" in newest(folder)
    page.locator("#sheet").click()
    page.wait_for_function("document.querySelectorAll('#gallery .grid-container img').length === 1")
    page.locator("#to-start").click()
    canvas = page.locator("#start-image canvas").first
    canvas.wait_for()
    page.wait_for_timeout(1500)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 15, box["y"] + box["height"] / 2 + 5, steps=4)
    page.mouse.up()
    page.wait_for_timeout(1000)
    draw(page, "a red cat")
    for _ in range(PATIENCE // 200):  # the sheet of before is still there until then
        if newest(folder).startswith("a red cat"):
            break
        page.wait_for_timeout(200)
    assert newest(folder).startswith("a red cat\nSteps: 2,")
    assert "Denoising strength: 0.6" in newest(folder)


def until_drawn(folder: Path, beginning: str) -> str:
    """The settings of the newest picture, once its prompt begins so."""
    for _ in range(PATIENCE // 200):
        if pictures(folder) and newest(folder).startswith(beginning):
            return newest(folder)
        time.sleep(0.2)
    raise AssertionError(f"no picture of {beginning!r} was drawn")


def test_a_style_words_and_a_second_pass_then_a_sticker_and_a_larger_one(page, folder):
    (folder / "out" / "words").mkdir(exist_ok=True)
    (folder / "out" / "words" / "animal.txt").write_text("dog\n")
    set_up(page, 2)
    for part, option in (("style", "Clay"), ("hires", "1.5 times")):
        page.locator(f"#{part} input").click()
        page.get_by_role("option", name=option, exact=True).click()
    page.locator("#prompt textarea").fill("a {green|green} __animal__")
    page.locator("#go").click()
    text = until_drawn(folder, "a green dog, clay figure")
    assert "Hires upscale: 1.5" in text
    page.locator("#sticker").wait_for()
    page.locator("#halt").wait_for(state="hidden")
    for button, mode in (("enlarge", "RGB"), ("sticker", "RGBA")):
        before = pictures(folder)
        page.locator(f"#{button}").click()
        for _ in range(PATIENCE // 200):
            if len(after := pictures(folder)) > len(before):
                break
            time.sleep(0.2)
        with Image.open(after[-1]) as picture:
            assert picture.mode == mode
            assert picture.size == (384, 384) or mode == "RGBA"
        page.locator("#halt").wait_for(state="hidden")


def test_other_peoples_files_are_dropped_drawn_and_told(page, folder, tmp_path):
    base = load_base("pocket")
    lora = save_lora(base, tmp_path / "paint.safetensors")
    word = save_embedding(base, tmp_path / "easy-word.safetensors")
    page.locator("#others button").first.click()
    page.locator("#other-files input[type=file]").set_input_files([lora, word])
    page.locator("#others-told", has_text="2 taken in").wait_for()
    page.locator("#lora-0 input[type=number]").fill("0.5")
    draw(page, "a dog, easy-word")
    assert not page.locator("#status .error").count()
    page.locator("#to-picture").click()
    page.locator("#picture-told dt").first.wait_for()
    assert "<lora:paint:0.5>" in page.locator("#picture-told").inner_text()
    use_settings_of_newest(page, folder)
    page.wait_for_function("document.querySelector('#prompt textarea').value === 'a dog, easy-word'")
    page.locator("#others button").first.click()
    assert page.locator("#lora-0 input[type=number]").input_value() == "0.5"
