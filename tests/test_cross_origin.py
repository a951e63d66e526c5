"""What a page of another site, open in the same browser, can do to the studio, or the service: nothing."""

from __future__ import annotations

import base64
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from test_studio_browser import CHROMIUM, sync_api
from tiny_concepts import concept

from atomdiff.files.safetensors_file import to_bytes
from benchmarks.serving import SERVICE, served

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
    pytest.mark.filterwarnings("default"),  # what a browser's library warns of is not ours
]

# What a page can send anywhere without asking: simple requests, of which only the answer is kept from it.
ATTACK = """async (url) => {
  const form = new FormData();
  form.append('files', new Blob(['x'.repeat(9)]), 'planted.png');
  const json = JSON.stringify({ data: [], session_hash: 'x' });
  const tries = [
    ['upload', { method: 'POST', mode: 'no-cors', body: form, credentials: 'include' }],
    ['run/cancel', { method: 'POST', mode: 'no-cors', body: json, credentials: 'include' }],
    ['info', { mode: 'cors' }],
    ['info', { mode: 'cors', credentials: 'include' }],
  ];
  const read = [];
  for (const [path, options] of tries) {
    try { const answer = await fetch(`${url}gradio_api/${path}`, options); read.push(await answer.text()); }
    catch (error) { read.push(''); }
  }
  return read;
}"""


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Iterator:
    with served(tmp_path_factory.mktemp("studio")) as studio:
        yield studio


# To the service: takes a concept in, and throws one away.
SERVICE_ATTACK = """async ([url, file]) => {
  const form = new FormData();
  form.append('file', await (await fetch(`data:application/octet-stream;base64,${file}`)).blob(), 'planted');
  const read = [];
  for (const [path, options] of [
    ['concepts', { method: 'POST', mode: 'no-cors', body: form, credentials: 'include' }],
    ['sdapi/v1/interrupt', { method: 'POST', mode: 'no-cors', credentials: 'include' }],
    ['concepts/dog', { method: 'DELETE' }],
    ['concepts', { mode: 'cors' }],
  ]) {
    try { const answer = await fetch(`${url}${path}`, options); read.push(await answer.text()); }
    catch (error) { read.push(''); }
  }
  return read;
}"""


@pytest.fixture(scope="module")
def service(tmp_path_factory, tiny_folder) -> Iterator:
    """Without a token, as for oneself; it has the concept `dog`."""
    with served(tmp_path_factory.mktemp("service"), "--base", str(tiny_folder()), command=SERVICE) as service:
        yield service


@pytest.fixture(scope="module")
def files(tiny_base) -> dict[str, bytes]:
    """Concepts' files by their names."""
    names = ("dog", "planted")
    return {name: to_bytes(concept(tiny_base(), seed=i, name=name), "int8") for i, name in enumerate(names)}


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """To it, evil.example is this machine, as after DNS rebinding."""
    with sync_api.sync_playwright() as playwright:
        rebound = "--host-resolver-rules=MAP evil.example 127.0.0.1"
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", rebound])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Iterator[int]:
    """The port of another site on this machine."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "index.html").write_text("<title>another site</title>")

    class Site(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_a_name_that_was_made_to_mean_this_machine_is_refused(studio, browser):
    page = browser.new_page()
    answer = page.goto(f"http://evil.example:{studio.port}/")
    assert answer.status == 421
    assert "This server is not" in page.content()
    assert "gradio" not in page.content()
    page.close()


@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1"])
def test_a_page_of_another_origin_reads_and_changes_nothing(studio, browser, elsewhere, name, tmp_path):
    page = browser.new_page()
    answers: list[tuple[str, int]] = []
    page.on("response", lambda answer: answers.append((answer.url, answer.status)))
    page.goto(f"http://{name}:{elsewhere}/index.html")
    refusal = '{"error": "Requests from pages of another site are refused."}'
    assert set(page.evaluate(ATTACK, studio.url)) <= {"", refusal}
    asked = [status for url, status in answers if url.startswith(studio.url)]
    assert len(asked) >= 2  # the browser itself keeps some from a private address
    assert set(asked) == {403}
    cache = Path(studio.log).parent / "out" / "cache"
    assert not list(cache.rglob("planted.png"))
    page.close()


def test_the_same_requests_of_its_own_page_are_answered(studio, browser):
    page = browser.new_page()
    page.goto(studio.url)
    read = page.evaluate(ATTACK, studio.url)
    assert "planted.png" in read[0]
    assert "named_endpoints" in read[2]
    page.close()


def test_a_page_of_another_origin_takes_nothing_from_the_service_and_adds_nothing(
    service, browser, elsewhere, files
):
    def there() -> set[str]:
        return {entry["name"] for entry in httpx.get(f"{service.url}concepts").json()}

    httpx.post(f"{service.url}concepts", files={"file": ("dog", files["dog"])}).raise_for_status()
    attack = [service.url, base64.b64encode(files["planted"]).decode()]
    page = browser.new_page()
    for name in ("evil.example", "127.0.0.1"):
        page.goto(f"http://{name}:{elsewhere}/index.html")
        read = page.evaluate(SERVICE_ATTACK, attack)
        assert not any("dog" in text or "planted" in text for text in read) and there() == {"dog"}
    rebound = page.goto(f"http://evil.example:{service.port}/concepts")
    assert rebound.status == 421 and "This server is not" in rebound.text()
    page.goto(f"{service.url}healthz")
    read = page.evaluate(SERVICE_ATTACK, attack)
    assert "planted" in read[0] and there() == {"planted"}  # its own page may
    page.close()
