"""Concepts, Train and What was learned as people meet them: a real process, a real browser."""

# ruff: noqa: F811 - fixtures that another module has too
from __future__ import annotations

import re

import pytest
from test_studio_api import folder, url  # noqa: F401 - fixtures
from test_studio_browser import CHROMIUM, browser, draw, opened, page, visitor  # noqa: F401 - fixtures

from atomdiff.files.safetensors_file import load_concept
from benchmarks.serving import ROOT

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
    pytest.mark.filterwarnings("default"),  # what a browser's or a client's library warns of is not ours
]

PASTE = """(text) => {
  const data = new DataTransfer();
  data.setData('text', text);
  document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true }));
}"""
DROP = """([bytes, name]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name));
  document.body.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true }));
}"""


@pytest.fixture(scope="module")
def sent(folder, tmp_path_factory) -> dict[str, bytes]:
    """What others send: a card called Mia, and the text of a concept called Otto."""
    from dataclasses import replace

    from atomdiff.files import card_image
    from atomdiff.files.safetensors_file import to_bytes
    from atomdiff.files.text import to_text

    rex = load_concept(folder / "concepts" / "rex.safetensors")
    mia = replace(rex, name="Mia", trigger="zwx", class_word="cat")
    otto = replace(rex, name="Otto", trigger="otto", base=replace(rex.base, name="sd15"))
    return {"card": card_image.make(to_bytes(mia)), "text": to_text(to_bytes(otto)).encode()}


def field(page, ident: str):
    return page.locator(f"#{ident} input, #{ident} textarea").first


def card_of(page, name: str):
    return page.locator(f"#cards [aria-label='{name}']")


def test_a_card_dropped_anywhere_is_in_the_library_and_is_drawn_with(page, sent):
    page.evaluate(DROP, [list(sent["card"]), "mia.png"])
    page.get_by_text("Mia is in the library.").wait_for()
    assert "zwx cat" in card_of(page, "Mia").inner_text()
    page.locator("#draw-with").click()
    page.wait_for_function("document.querySelector('#prompt textarea').value === 'a zwx cat'")
    draw(page)
    assert not page.locator("#status .error").count()


def test_a_pasted_text_is_in_the_library_and_says_its_base(page, sent):
    page.evaluate(PASTE, f"look: {sent['text'].decode()}")  # not a text form alone: nothing happens
    page.evaluate(PASTE, sent["text"].decode())
    page.get_by_text("Otto is in the library.").wait_for()
    assert page.get_by_text("for sd15", exact=True).is_visible()
    assert "It was trained on sd15" in page.locator("#concept-about").inner_text()


def test_a_wrong_file_is_told_in_a_sentence(page):
    page.evaluate(DROP, [list(b"<script>"), "wrong.safetensors"])
    page.locator("#concept-status .error").wait_for()
    told = page.locator("#concept-status").inner_text()
    assert told.startswith("'wrong.safetensors': This is no safetensors file")


def test_a_concept_is_searched_noted_shared_removed_and_brought_back(page, tmp_path, folder):
    page.get_by_role("tab", name="Concepts").click()
    card_of(page, "Rex").click()
    page.locator("#concept-notes button").first.click()
    name = "document.querySelector('#concept-name input, #concept-name textarea')"
    page.wait_for_function(f"{name}?.value === 'Rex'")
    field(page, "concept-tags").fill("pets, best")
    field(page, "concept-words").fill("no such words")
    page.get_by_text("Nothing found").wait_for()
    assert field(page, "concept-tags").input_value() == "pets, best"  # an answer takes nothing typed away
    field(page, "concept-words").fill("")
    card_of(page, "Rex").wait_for()
    page.locator("#concept-note").click()
    page.locator("#cards [data-tag=best]").click()
    page.wait_for_function("document.querySelectorAll('#cards [data-id]').length === 1")
    with page.expect_download() as download:
        page.locator("#share-file").click()
    download.value.save_as(tmp_path / "rex.safetensors")
    original = (folder / "concepts" / "rex.safetensors").read_bytes()
    assert (tmp_path / "rex.safetensors").read_bytes() == original
    page.locator("#share-text").click()
    page.locator("#share-line").wait_for()
    assert field(page, "share-line").input_value().startswith("atomdiff:v1:")
    page.locator("#share-card").click()
    page.locator("#share-picture img").wait_for()
    with page.expect_download() as download:
        page.locator("#share-get").click()
    download.value.save_as(tmp_path / "card.png")
    from atomdiff.files.card import concept_bytes

    assert concept_bytes(tmp_path / "card.png") == original
    page.locator("#concept-remove").click()
    page.get_by_text("Nothing found").wait_for()
    page.locator("#removed button").first.click()
    page.locator("#restore").click()
    card_of(page, "Rex").wait_for()


def test_what_was_learned_and_a_strength_for_each_block(page):
    page.get_by_role("tab", name="Concepts").click()
    field(page, "concept-words").fill("")
    card_of(page, "Rex").click()
    page.locator("#look-into").click()
    page.locator("#learned-maps img").wait_for()
    assert "Weights moved, up" in page.locator("#learned-facts").inner_text()
    page.locator("#learned-down input[type=number]").fill("0.5")
    page.keyboard.press("Tab")
    page.locator("#learned-draw").click()
    page.locator("#blocks").wait_for()
    assert field(page, "blocks").input_value() == "down=0.5 mid=1 up=1"
    draw(page)
    assert not page.locator("#status .error").count()


def inks(page) -> list[str]:
    """The page's colour of text, and those of the texts in the plot of the drift."""
    return page.evaluate(
        """() => {
        const probe = document.body.appendChild(document.createElement("i"));
        probe.style.color = "var(--body-text-color)";
        const page = getComputedStyle(probe).color;
        probe.remove();
        const texts = [...document.querySelectorAll("#train-drift svg text")];
        return [page, ...new Set(texts.map((text) => getComputedStyle(text).fill))];
      }"""
    )


def test_five_pictures_become_a_concept(page, tmp_path):
    page.get_by_role("tab", name="Train").click()
    page.get_by_role("heading", name="Teach it your subject").wait_for()
    page.locator("#train-go").click()
    page.get_by_text("There are no pictures").wait_for()
    page.locator("#train-more button").first.click()
    page.locator("#train-max_train_steps input").fill("3")
    page.locator("#train-with_prior_preservation input").click()
    page.get_by_role("option", name="no", exact=True).click()
    pictures = sorted((ROOT / "assets/dog").glob("*.png"))
    caption = tmp_path / f"{pictures[2].stem}.txt"
    caption.write_text("a sks dog in a room")
    page.locator("#train-files input[type=file]").set_input_files([*pictures, caption])
    page.locator("#train-tiles img").nth(4).wait_for()
    assert page.locator("#train-tiles .caption-label").inner_text() == "a sks dog in a room"
    page.locator("#train-tiles .grid-container button").first.click()
    page.locator("#train-keep").wait_for()
    field(page, "train-caption").fill("a sks dog in a meadow")
    page.locator("#train-keep").click()
    page.locator("#train-tiles .caption-label", has_text="a sks dog in a meadow").wait_for()
    page.get_by_text(
        re.compile(r"3 steps, about .* on this machine; the concept will have about \d+ KB")
    ).wait_for()
    field(page, "train-class").fill("dog")
    field(page, "train-name").fill("Bello")
    page.locator("#train-go").click()
    page.locator("#train-film img").first.wait_for()
    page.reload()
    page.get_by_role("tab", name="Train").click()
    page.get_by_text("Bello a sks dog").wait_for()
    page.get_by_text("Choose the state you like best").wait_for()
    page.locator("#frame img").first.wait_for()
    page.locator("#train-drift svg text").first.wait_for()
    by_day = inks(page)
    page.locator("#theme-switch").click()
    assert inks(page)[0] != by_day[0]
    for page_and_plot in (by_day, inks(page)):
        assert len(page_and_plot) == 2 and page_and_plot[0] == page_and_plot[1]
    page.locator("#theme-switch").click()
    assert "After step 3 of 3" in page.locator("#timeline").inner_text()
    page.locator("#timeline input[type=range]").focus()
    page.keyboard.press("Home")
    page.get_by_text("After step 1 of 3").wait_for()
    page.locator("#keep-state").click()
    page.get_by_text("Bello after step 1 is in the library").wait_for()
    page.locator("#draw-state").click()
    page.wait_for_function("document.querySelector('#prompt textarea').value === 'a sks dog'")
    assert page.locator("#concepts").get_by_text("Bello").is_visible()
    draw(page)
    assert not page.locator("#status .error").count()
