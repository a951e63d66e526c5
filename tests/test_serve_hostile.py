"""The service as a hostile program meets it: nothing breaks it down, and nothing else is reached."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import threading
import time
import zlib
from pathlib import Path

import httpx
import pytest
from PIL import Image
from serving_here import TOKEN, service_of, serving

from atomdiff.serving import access

MARK = b"only for the one who runs the service"
HEADERS = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "private.txt").write_bytes(MARK)
    return folder


@pytest.fixture(scope="module")
def service(tiny_base, folder):
    return service_of(tiny_base(), folder, (TOKEN,), waiting=4, seconds=30, upload=3 << 20, window=0)


@pytest.fixture(scope="module")
def url(service):
    with serving(service) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    with httpx.Client(base_url=url, headers=HEADERS, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def routes(client) -> list[tuple[str, str]]:
    """(method, path) of every endpoint."""
    paths = client.get("/openapi.json").json()["paths"]
    found = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert len(found) > 20 and ("POST", "/sdapi/v1/txt2img") in found
    return found


def told(answer: httpx.Response) -> str:
    """The one sentence of an answer that refuses."""
    error = answer.json()["error"]
    sentence = error["message"] if isinstance(error, dict) else error
    assert "Traceback" not in sentence and "\n" not in sentence and len(sentence) < 600
    return sentence


# ------------------------------------------------------------------------------------------- who is let in


def test_without_the_token_no_route_answers(url, routes):
    wrong = (
        None,
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        "Bearer",
        "Basic !",
        f"Basic {TOKEN}",
        "x" * 9000,
        "Bearer ü",
    )
    with httpx.Client(base_url=url) as stranger:
        for method, path in [*routes, ("GET", "/openapi.json"), ("GET", "/nothing"), ("GET", "//healthz")]:
            for given in wrong if path == "/concepts" else wrong[:2]:
                headers = {} if given is None else {"authorization": given.encode()}
                answer = stranger.request(method, path, headers=headers)
                if path != "/healthz":
                    assert answer.status_code == 401 and "token" in told(answer), (method, path, given)


def test_it_answers_to_its_own_names_and_pages_only(client):
    assert client.get("/concepts", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 421
    for method, path in (
        ("POST", "/train"),
        ("POST", "/concepts"),
        ("GET", "/concepts"),
        ("OPTIONS", "/train"),
    ):
        assert client.request(method, path, headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post("/concepts", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert "access-control-allow-origin" not in client.get("/concepts").headers


# --------------------------------------------------------------------------------------------- what is sent

WRONG = (None, True, -1, 1e308, 10**30, 0.5, "", "\0", "\ud800", "x" * 50_000, "../../private.txt", [], [[]],
         ["a", {}], {}, {"prompt": {}})  # fmt: skip
FIELDS = {
    "/sdapi/v1/txt2img": ("prompt", "negative_prompt", "seed", "steps", "cfg_scale", "width", "batch_size",
                          "n_iter", "sampler_name", "scheduler", "override_settings", "styles"),
    "/sdapi/v1/img2img": ("init_images", "mask", "denoising_strength", "alwayson_scripts"),
    "/v1/images/generations": ("prompt", "n", "size", "model", "guidance", "response_format", "sampler"),
}  # fmt: skip


def test_no_endpoint_breaks_down_on_wrong_values(client, routes):
    kind = {"content-type": "application/json"}
    bodies = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1",
        b'{"a":NaN}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"prompt":"\\ud800"}',
    ]
    for method, path in routes:
        if method == "GET":
            continue
        at = path.replace("{name}", "nothing").replace("{ident}", "nothing")
        for body in bodies:
            answer = client.request(method, at, content=body, headers=kind)
            assert answer.status_code < 500, (path, body[:20], answer.text)
    usual = {"prompt": "a", "steps": 1, "width": 8, "height": 8, "init_images": [png()]}
    for path, fields in FIELDS.items():
        for name in fields:
            for wrong in WRONG:
                body = json.dumps(usual | {name: wrong}).encode()
                answer = client.post(path, content=body, headers=kind)
                assert answer.status_code < 500, (path, name, wrong, answer.text)
                assert answer.status_code == 200 or told(answer)
    assert client.post("/sdapi/v1/options", json={"x" * 5000: 1}).status_code == 400


def png(side: int = 16) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "teal").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def bomb() -> bytes:
    """A PNG of 60,000² pixels in a few KB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    head = (60_000).to_bytes(4) * 2 + b"\x08\x02\0\0\0"
    pixels = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_pictures_that_are_none_are_refused(client):
    texts = ["", "!", "AAAA", "data:image/png;base64,AAAA", "data:" * 1000, "file:///etc/passwd", png()[:50],
             base64.b64encode(bomb()).decode(), "http://127.0.0.1/x.png"]  # fmt: skip
    for text in texts:
        for body in ({"init_images": [text]}, {"init_images": [png()], "mask": text or "!"}):
            answer = client.post("/sdapi/v1/img2img", json={"prompt": "a", "steps": 1, **body})
            assert answer.status_code in (400, 422) and told(answer), (text[:30], answer.text)


def test_what_is_uploaded_is_a_concept_or_refused_and_stays_in_its_folder(client, folder, service):
    before = set(folder.rglob("*.safetensors"))
    names = ("../../../evil.safetensors", "/etc/evil", "..", "\0.png", "a" * 500 + ".png", "")
    contents = (
        b"",
        b"x",
        bomb(),
        b"\xff" * 8 + b"{",
        (2**40).to_bytes(8, "little") + b"{}",
        b"atomdiff:AAAA",
        b"{}",
    )
    for name in names:
        for data in contents:
            answer = client.post("/concepts", files={"file": (name, data)})
            assert answer.status_code in (400, 422), (name, data[:10], answer.text)
            assert told(answer)
    assert set(folder.rglob("*.safetensors")) == before
    for broken in (b"", b"--x\r\n", b"--x\r\nContent-Disposition: form-data; name=\r\n\r\n\xff"):
        kind = {"content-type": "multipart/form-data; boundary=x"}
        for path in ("/concepts", "/train"):
            assert 400 <= client.post(path, content=broken, headers=kind).status_code < 500
    many = [("file", ("a.png", b"x"))] * 2000
    assert client.post("/concepts", files=many).status_code in (400, 422)
    assert client.post("/concepts/text", json={"text": "atomdiff:" + "A" * 900_000}).status_code == 400


def test_no_other_file_is_reached(client, folder):
    for name in (
        "../private.txt",
        "..%2f..%2fprivate.txt",
        str(folder / "private.txt"),
        "%00",
        "x" * 5000,
        "*",
        "%",
    ):
        for path in (f"/concepts/{name}", f"/concepts/{name}/file", f"/train/{name}", f"/v1/models/{name}"):
            answer = client.get(path)
            assert answer.status_code in (400, 404), (path[:80], answer.status_code)
            assert MARK not in answer.content
        body = {"prompt": f"<atom:{name}>", "steps": 1}
        assert client.post("/sdapi/v1/txt2img", json=body).status_code in (200, 400, 422)
    pictures = {"pictures": ("../../../evil.png", base64.b64decode(png()))}
    for more in (
        {"output_dir": "/tmp/x"},
        {"instance_data_dir": "/"},
        {"base": "/etc"},
        {"trigger": 1},
        {"seed": "x"},
    ):
        said = {"class_word": "dog", "settings": json.dumps(more)}
        answer = client.post("/train", data=said, files=pictures)
        assert answer.status_code == 400 and told(answer), (more, answer.text)
    assert client.get("/train").json() == []


def test_a_request_has_a_bound(client, url):
    body = {"prompt": "a" * access.SMALL}
    assert client.post("/sdapi/v1/txt2img", json=body).status_code == 413
    assert client.post("/concepts", files={"file": ("x", bytes(4 << 20))}).status_code == 413
    pieces = (bytes(100_000) for _ in range(40))
    kind = {"content-type": "application/json"}
    assert client.post("/sdapi/v1/img2img", content=pieces, headers=kind).status_code == 413
    port = int(url.rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest("POST", "/concepts")
    connection.putheader("Authorization", HEADERS["authorization"])
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()
    assert connection.getresponse().status == 413  # before anything was sent
    connection.close()


def test_a_request_must_come_in_time(url, monkeypatch):
    monkeypatch.setattr(access, "UPLOAD_SECONDS", 0.3)
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        head += (
            f"Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{{"
        )
        line.sendall(head.encode())
        assert b" 408 " in line.recv(1000)


def test_a_full_queue_is_told_and_the_rest_is_drawn(client, url):
    statuses: list[int] = []

    def ask() -> None:
        body = {"prompt": "a <atom:dog>", "steps": 40, "batch_size": 2}
        answer = httpx.post(f"{url}/sdapi/v1/txt2img", json=body, headers=HEADERS, timeout=60)
        statuses.append(answer.status_code)
        if answer.status_code == 429:
            assert "wait already" in told(answer) and answer.headers["retry-after"]

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 429}


def test_what_takes_too_long_is_told(client, service, monkeypatch):
    monkeypatch.setattr("atomdiff.serving.waiting.SECONDS", 0.2, raising=False)
    object.__setattr__(service.limits, "seconds", 0.2)
    try:
        answer = client.post("/sdapi/v1/txt2img", json={"prompt": "a", "steps": 100})
    finally:
        object.__setattr__(service.limits, "seconds", 30)
    assert answer.status_code == 503 and "within 0.2 seconds" in told(answer)


def test_a_concept_that_breaks_a_picture_breaks_no_others(client, url):
    """Both share a batch, and one turns into NaN."""
    answers: dict[str, httpx.Response] = {}

    def ask(prompt: str) -> None:
        body = {"prompt": prompt, "steps": 2, "seed": 1}
        answers[prompt] = httpx.post(f"{url}/sdapi/v1/txt2img", json=body, headers=HEADERS, timeout=60)

    blocker = threading.Thread(target=ask, args=("a <atom:dog:0.1>",))  # while it is drawn, the others wait
    blocker.start()
    time.sleep(0.02)
    prompts = ("a <atom:dog:1e30>", "a <atom:dog:0.5>", "a <atom:cat:0.5>")
    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in [*threads]:
        thread.start()
    for thread in [*threads, blocker]:
        thread.join()
    assert [answers[prompt].status_code for prompt in prompts] == [400, 200, 200]
    assert "NaN" in told(answers[prompts[0]])


def test_junk_on_the_line_is_no_breakdown(client, url):
    port = int(url.rpartition(":")[2])
    for junk in (b"junk\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01" * 100, b"GET " + b"x" * 100_000):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
            line.sendall(junk)
    assert client.get("/healthz").status_code == 200
