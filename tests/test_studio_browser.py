"""The studio as people meet it: a real process on the pocket model, a real browser, real files."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ROOT = Path(__file__).parent.parent
PATIENCE = 60_000  # milliseconds

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
    pytest.mark.filterwarnings("default"),  # what a browser's or a client's library warns of is not ours
]
sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright here: pip install playwright")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A studio's folder with one concept in its library: random small atoms, called Rex."""
    import torch

    from atomdiff.concepts.concept import Concept
    from atomdiff.core import inject
    from atomdiff.core.inject import AtomSpec
    from atomdiff.models.base import load_base

    base, generator = load_base("pocket"), torch.Generator().manual_seed(0)
    spec = AtomSpec(linear_atoms="none")
    atoms = {
        layer: 0.1 * torch.randn(9, 9, generator=generator) for layer in inject.select(base.unet, spec).conv
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("studio")
    concept = Concept.of(base.unet, spec, atoms, base.passport, trigger="sks", class_word="dog", name="Rex")
    concept.save(folder / "concepts" / "rex.safetensors")
    return folder


@pytest.fixture(scope="module")
def url(folder):
    """The address of a studio that runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "app.py",
        "--port",
        port,
        "--out",
        folder / "out",
        "--concepts",
        folder / "concepts",
    ]
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        stdout=log,
        stderr=log,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    try:
        end = time.monotonic() + 240
        while "is open at" not in (folder / "log").read_text():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end, "the studio did not open"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/"
        log.flush()
        assert "Traceback" not in (folder / "log").read_text()
    finally:
        process.terminate()
        process.wait(30)
        log.close()


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
    page.locator("#count input[type=number]").fill(str(count))
    if not page.locator("#steps").is_visible():
        page.locator("#more button").first.click()
    page.locator("#steps input[type=number]").fill(str(steps))
    page.keyboard.press("Tab")


def draw(page, text: str = "", steps: int = 2, count: int = 1) -> None:
    if text:
        page.locator("#prompt textarea").fill(text)
    set_up(page, steps, count)
    page.locator("#go").click()
    page.locator("#gallery img").first.wait_for()
    page.locator("#halt").wait_for(state="hidden")


def test_first_start_an_example_two_clicks_pictures(page):
    assert "Nothing drawn yet" in page.locator("#status").inner_text()
    page.get_by_text("a teal dog on the beach").click()
    page.wait_for_function("document.querySelector('#prompt textarea').value.includes('teal')")
    draw(page, count=2)
    assert page.locator("#gallery .grid-container img").count() == 2
    assert not page.locator("#status .error").count()


def test_control_enter_draws_and_the_download_keeps_its_settings(page, folder, tmp_path):
    set_up(page, 2)
    page.locator("#prompt textarea").fill("a red cat in space")
    page.locator("#prompt textarea").press("Control+Enter")
    page.locator("#gallery img").first.click()
    with page.expect_download() as download:
        page.locator("#gallery [aria-label='Download'], #gallery [title='Download']").first.click()
    download.value.save_as(tmp_path / "cat.png")
    with Image.open(tmp_path / "cat.png") as picture:
        assert picture.size == (64, 64)
        assert picture.info["parameters"].startswith("a red cat in space\nSteps: 2, Sampler: DPM++ 2M")


def choose(page, title: str) -> None:
    """Chooses a concept, once the list is the library's of now (the page asks for it when it is opened)."""
    page.wait_for_timeout(1500)
    page.locator("#concepts input").click()
    page.get_by_role("option", name=title, exact=True).click()
    page.wait_for_function("document.querySelector('#prompt textarea').value")


def test_a_concept_put_into_the_folder_meanwhile_is_there(page, folder):
    from dataclasses import replace

    from atomdiff.concepts.concept import Concept

    rex = Concept.load(folder / "concepts" / "rex.safetensors")
    replace(rex, name="Mia", trigger="zwx", class_word="cat").save(folder / "concepts" / "mia.safetensors")
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
    page.reload()
    page.get_by_role("tab", name="Picture info").click()
    newest = max((folder / "out" / "pictures").rglob("*.png"), key=lambda file: file.stat().st_mtime)
    page.locator("#picture-file input[type=file]").set_input_files(newest)
    page.locator("#picture-told dt").first.wait_for()
    page.locator("#use-settings").click()
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
    page.locator("#status .error").wait_for()
    assert page.locator("#status .error").inner_text() == "There is no prompt: write what to draw."


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
    for tab in ("Draw", "Compare", "History"):
        if page.get_by_role("tab", name=tab).is_visible():
            page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_the_example_for_programs_in_the_docs_runs(url, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "studio.md").read_text("utf-8"), re.DOTALL)[1]
    names: dict = {}
    exec(code.replace("http://127.0.0.1:7860", url), names)
    assert [picture["seed"] for picture in names["drawn"]] == [7, 8]
    with Image.open(names["drawn"][0]["file"]) as picture:
        assert picture.info["parameters"] == names["told"]["text"]
    assert len(names["grid"]) == 5


def test_programs_are_told_sentences_and_kept_apart(url):
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    one, other = (Client(url, verbose=False) for _ in range(2))
    drawn = one.predict("a dog", steps=1, concepts=[["Rex", 0.5]], api_name="/draw")
    assert "Rex:0.5:" in drawn[0]["text"]
    assert other.predict(api_name="/history") == []
    assert other.predict([drawn[0]["id"]], api_name="/delete") == 0
    for wrong, message in (
        ({"prompt": ""}, "no prompt"),
        ({"prompt": "a dog", "concepts": [["Nobody", 1]]}, "no concept called 'Nobody'"),
        ({"prompt": "a dog", "concepts": [["Rex"]]}, "wrong kind"),
        ({"prompt": "a dog", "base": "/etc"}, "not started with the base"),
    ):
        with pytest.raises(AppError, match=message):
            one.predict(**wrong, api_name="/draw")


def test_no_file_outside_the_pictures_is_served(url, folder):
    import httpx

    private = [folder / "out" / "secret", folder / "out" / "history.sqlite", "/etc/passwd", ROOT / "app.py",
               f"{folder}/out/pictures/../secret", folder / "concepts" / "rex.safetensors"]  # fmt: skip
    for path in private:
        answer = httpx.get(f"{url}gradio_api/file={path}")
        assert answer.status_code in (403, 404), path
    assert httpx.get(f"{url}config").json()["analytics_enabled"] is False
