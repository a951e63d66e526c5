"""The studio as a hostile program meets it: a real process, raw requests, no client and no browser."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest

from atomdiff.studio import identity, security
from benchmarks.serving import ROOT, served

USER, OTHER = ("ann", "open sesame"), ("bob", "his own word")
DOORS = ("gradio_api/file=", "gradio_api/file/", "file=", "static/", "assets/", "svelte/", "theme.css/",
         "gradio_api/proxy=", "gradio_api/custom_component/1/client/1/")  # fmt: skip
MARK = b"only for the one who runs the studio"

pytestmark = pytest.mark.filterwarnings("default")  # what Gradio warns of at import is not ours


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("studio")
    (folder / "private.txt").write_bytes(MARK)
    (folder / "out").mkdir()
    (folder / "out" / "private.png").write_bytes(MARK)
    return folder


@pytest.fixture(scope="module")
def studio(folder):
    with served(folder, "--auth", ":".join(USER), "--auth", ":".join(OTHER)) as studio:
        yield studio


@pytest.fixture(scope="module")
def stranger(studio) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=studio.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def ann(studio) -> Iterator[httpx.Client]:
    """Someone who logged in."""
    with httpx.Client(base_url=studio.url, timeout=120) as client:
        logged_in(client, USER)
        yield client


def logged_in(client: httpx.Client, user: tuple[str, str]) -> None:
    client.get("/")
    assert client.post("/login", data=dict(zip(("username", "password"), user, strict=True))).json()


def called(client: httpx.Client, name: str, *data: Any) -> httpx.Response:
    return client.post(f"gradio_api/run/{name}", json={"data": list(data), "session_hash": "raw"})


def drawn(client: httpx.Client, prompt: str, concepts: list, steps: int = 1) -> httpx.Response:
    return called(
        client, "draw", prompt, concepts, "", 7, steps, -1, "", "dpm++", 1, "", False, "", "", 1, []
    )


@pytest.fixture(scope="module")
def picture(ann) -> str:
    """The path of a picture that was drawn."""
    answer = drawn(ann, "a dog", [])
    assert answer.status_code == 200, answer.text
    return answer.json()["data"][0][0]["file"]["path"]


def raw(studio, client: httpx.Client, method: str, path: str) -> tuple[int, bytes]:
    """A request whose path goes out as it is written."""
    connection = http.client.HTTPConnection("127.0.0.1", studio.port, timeout=60)
    cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    connection.putrequest(method, path, skip_accept_encoding=True)
    connection.putheader("Cookie", cookie)
    connection.putheader("Content-Length", "0")
    connection.endheaders()
    answer = connection.getresponse()
    streams = "text/event-stream" in (answer.getheader("content-type") or "")
    body = b"" if streams else answer.read()
    connection.close()
    return answer.status, body


# ------------------------------------------------------------------------------------------- who is let in


def routes() -> list[tuple[str, str]]:
    """(method, path) of every route of a Gradio app, with something in the place of each parameter."""
    import gradio as gr
    from gradio.routes import App

    async def made() -> Any:
        """Within a loop: where none runs, Gradio leaves loops of its own open."""
        with gr.Blocks(analytics_enabled=False) as blocks:
            gr.Textbox()
        return App.create_app(blocks)

    found: list[tuple[str, str]] = []
    for route in _flat(asyncio.run(made()).routes):
        for method in getattr(route, "methods", None) or ["GET"]:
            found.append((method, re.sub(r"\{[^}]*\}", "1", route.path)))
    return found


def _flat(routes: Any) -> Iterator[Any]:
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from _flat(inner.routes)
        elif getattr(route, "path", ""):
            yield route


def test_with_auth_no_route_answers_a_stranger(studio, stranger):
    found = routes()
    assert len(found) > 50
    assert ("POST", "/gradio_api/queue/join") in found
    for method, path in found:
        if path == "/" or path.startswith(security.OPEN):
            continue
        status, body = raw(studio, stranger, method, path)
        assert status in (401, 404), (method, path, status)
        assert body == b"" or set(json.loads(body)) == {"error"}


def test_the_page_to_log_in_on_tells_nothing(stranger):
    page = stranger.get("/").text
    assert "window.gradio_api_info = {};" in page
    assert '"auth_required":true' in page.replace(" ", "")
    assert "a sks dog" not in page
    assert "named_endpoints" not in page
    wrong = stranger.post("/login", data={"username": USER[0], "password": "x"})
    assert wrong.status_code == 400
    assert stranger.get("/config", headers={"cookie": "access-token-x=1"}).status_code == 401


def test_users_have_histories_of_their_own(studio, ann, picture):
    assert called(ann, "history", "", 9, 0).json()["data"][0]
    with httpx.Client(base_url=studio.url, timeout=60) as bob:
        logged_in(bob, OTHER)
        assert called(bob, "history", "", 9, 0).json()["data"] == [[]]


def test_it_listens_on_this_machine_alone_and_reports_to_nobody(studio, ann):
    listening = [c for c in psutil.Process(studio.process.pid).net_connections() if c.status == "LISTEN"]
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}
    assert ann.get("/config").json()["analytics_enabled"] is False


def test_a_program_that_gives_no_session_is_someone_new_each_time():
    request = SimpleNamespace(username=None, cookies={}, session_hash=None)
    assert identity.owner(request) != identity.owner(request)


# ---------------------------------------------------------------------------------------------------- files


def test_pictures_are_served_to_their_owner_and_no_other_file(studio, ann, stranger, folder, picture):
    path = f"/gradio_api/file={picture}"
    assert raw(studio, ann, "GET", path)[1] == Path(picture).read_bytes()
    assert raw(studio, stranger, "GET", path)[0] == 401
    pictures = folder / "out" / "pictures"
    wanted = [
        "/etc/passwd",
        ROOT / "app.py",
        folder / "private.txt",
        folder / "out" / "private.png",
        folder / "out" / "history.sqlite",
        folder / "out" / "secret",
        f"{pictures}/../private.png",
        f"{pictures}/..%2fprivate.png",
        quote(quote(f"{pictures}/../private.png", safe=""), safe=""),
        f"{pictures}/%2e%2e/%2e%2e/private.txt",
        f"{picture}%00.png",
        f"{picture}/../../../private.png",
        f"file://{folder}/private.txt",
        "x" * 5000,
        "%ff%fe",
        "../" * 12 + "etc/passwd",
    ]
    for door in DOORS:
        for path in wanted:
            status, body = raw(studio, ann, "GET", f"/{door}{path}")
            assert 400 <= status < 500, (door, path, status)
            assert MARK not in body
            assert b"root:" not in body


def test_a_file_that_was_not_uploaded_is_not_read(ann, folder, picture):
    for path in ("/etc/passwd", str(folder / "private.txt"), "../private.txt", "", "\0", picture + "/.."):
        for more in ({}, {"is_stream": True}, {"url": f"file://{path}"}):
            file = {"path": path, "meta": {"_type": "gradio.FileData"}, **more}
            answer = called(ann, "picture_info", file)
            assert answer.status_code < 500
            assert MARK not in answer.content
            assert b"root:" not in answer.content


def test_nothing_is_fetched_for_a_visitor(ann, studio):
    reached = []
    with socket.create_server(("127.0.0.1", 0)) as inside:
        inside.settimeout(0.2)
        address = f"http://127.0.0.1:{inside.getsockname()[1]}/secret.png"

        def listen() -> None:
            while not done.is_set():
                try:
                    reached.append(inside.accept())
                except OSError:
                    continue

        done = threading.Event()
        listener = threading.Thread(target=listen)
        listener.start()
        try:
            for door in ("proxy=", "file=", "file/"):
                assert raw(studio, ann, "GET", f"/gradio_api/{door}{address}")[0] in (400, 403, 404)
            for url in (address, "https://example.com/a.png"):
                for more in ({}, {"url": url}, {"is_stream": True}):
                    file = {"path": url, "meta": {"_type": "gradio.FileData"}, **more}
                    assert 400 <= called(ann, "picture_info", file).status_code < 500
            file = {"path": url, "meta": {"_type": "gradio.FileData"}}
            assert "uploaded" in called(ann, "picture_info", file).text
        finally:
            done.set()
            listener.join()
    assert reached == []


def test_uploads_stay_in_their_folder_and_within_their_bound(ann, folder, tmp_path):
    before = {file for file in folder.rglob("*") if "cache" not in file.parts}
    names = ("../../../evil.png", "/etc/evil.png", "..", "\0.png", "a" * 500 + ".png", "<script>.html", "")
    for name in names:
        answer = ann.post("gradio_api/upload?upload_id=../../evil", files={"files": (name, b"x")})
        assert answer.status_code < 500, name
        for path in answer.json() if answer.status_code == 200 else []:
            assert Path(path).resolve().is_relative_to(folder / "out" / "cache")
    assert ann.get("gradio_api/upload_progress?upload_id=../../etc/passwd").status_code in (200, 404)
    with (tmp_path / "big.png").open("w+b") as big:
        big.truncate(430_000_000)
        assert ann.post("gradio_api/upload", files={"files": ("big.png", big)}).status_code == 413
    for broken in (b"", b"--x\r\n", b"--x\r\nContent-Disposition: form-data; name=\r\n\r\n\xff"):
        kind = {"content-type": "multipart/form-data; boundary=x"}
        assert ann.post("gradio_api/upload", content=broken, headers=kind).status_code < 500
    assert {file for file in folder.rglob("*") if "cache" not in file.parts} <= before | {folder / "log"}


# --------------------------------------------------------------------------------------------- what is sent


def test_a_request_has_a_bound(studio, ann):
    connection = http.client.HTTPConnection("127.0.0.1", studio.port, timeout=30)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Cookie", "; ".join(f"{name}={value}" for name, value in ann.cookies.items()))
    connection.putheader("Content-Length", str(2 * security.MAX_UPLOADS))
    connection.endheaders()
    assert connection.getresponse().status == 413  # before anything was sent
    connection.close()
    huge = json.dumps({"data": ["a" * security.MAX_REQUEST]}).encode()
    assert ann.post("gradio_api/run/draw", content=huge).status_code == 413
    pieces = (huge[i : i + 1_000_000] for i in range(0, len(huge), 1_000_000))
    kind = {"content-type": "application/json"}
    assert ann.post("gradio_api/run/draw", content=pieces, headers=kind).status_code == 413
    deep = b"[" * 200_000
    assert 400 <= ann.post("gradio_api/run/draw", content=deep, headers=kind).status_code < 500


WRONG = (None, True, -1, 1e308, 10**30, "", "\0", "x" * 50_000, "../../private.txt", [], [[]], [["a", {}]],
         {}, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}})  # fmt: skip


def test_no_endpoint_breaks_down_on_wrong_types_or_missing_fields(ann, folder):
    info = ann.get("gradio_api/info").json()["named_endpoints"]
    assert {"/draw", "/cancel", "/history", "/picture_info"} <= set(info)
    for name, endpoint in info.items():
        wanted = len(endpoint["parameters"])
        for wrong in WRONG:
            answer = called(ann, name[1:], *[wrong] * wanted)
            assert answer.status_code < 500, (name, wrong, answer.text)
            assert "Traceback" not in answer.text
        for data in ([], [None] * (wanted + 3)):
            assert called(ann, name[1:], *data).status_code < 500
        for body in (b"", b"{", b"[]", b'{"data": 1}', b'{"data": {}}', b'{"fn_index": "x", "data": []}'):
            for door in ("run", "api", "call", "call/v2"):
                kind = {"content-type": "application/json"}
                answer = ann.post(f"gradio_api/{door}{name}", content=body, headers=kind)
                assert answer.status_code < 500, (door, name, body)
    cached = [file for file in (folder / "out" / "cache").rglob("*") if file.is_file()]
    assert not any(file.name == "passwd" or file.read_bytes() == MARK for file in cached)


def test_what_is_wrong_is_told_in_a_sentence(ann):
    assert "There is no prompt" in drawn(ann, "", []).text
    assert "wrong kind" in drawn(ann, "a dog", [["x"]]).text
    assert "no concept called" in drawn(ann, "a dog", [["x", 1]]).text


def test_unknown_names_and_numbers_are_the_callers_mistake(ann):
    for body in (
        {"data": [], "fn_index": 10**6},
        {"data": [], "fn_index": -1},
        {"data": [], "session_hash": "../.."},
        {"data": [], "session_hash": {"a": 1}},
        {"data": [], "event_id": "x", "trigger_id": 10**9},
    ):
        for door in ("run/nothing", "call/nothing", "call/v2/nothing", "queue/join", "cancel", "reset"):
            answer = ann.post(f"gradio_api/{door}", json=body)
            assert answer.status_code < 500, (door, body)
    for path in ("queue/data", "queue/status", "call/draw/none", "heartbeat", "info?all_endpoints=x"):
        with ann.stream("GET", f"gradio_api/{path}") as answer:
            assert answer.status_code < 500, path


def test_the_functions_of_the_page_itself_take_junk_too(ann):
    functions = ann.get("/config").json()["dependencies"]
    assert len(functions) > 20
    for function in functions:
        for wrong in ([["a", {}]], {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}):
            data = [wrong] * len(function["inputs"])
            body = {"fn_index": function["id"], "data": data, "session_hash": "junk"}
            answer = ann.post("gradio_api/run/predict", json=body)
            assert answer.status_code < 500, (function["id"], wrong)
            assert b"root:" not in answer.content
    assert called(ann, "cancel").json()["data"][0] >= 0


def test_junk_does_not_fill_the_terminal(studio, ann):
    functions = [function["id"] for function in ann.get("/config").json()["dependencies"]][:20]

    def junk() -> int:
        for number in functions:
            body = {"fn_index": number, "data": ["x" * 20_000], "session_hash": "junk"}
            assert ann.post("gradio_api/run/predict", json=body).status_code < 500
        for _ in range(10):
            ann.post("gradio_api/call/v2/nothing", json={})
            with socket.create_connection(("127.0.0.1", studio.port)) as line:
                line.sendall(b"junk\r\n\r\n")
                line.recv(1000)
        return studio.log.stat().st_size

    first = junk()
    assert max(junk() for _ in range(3)) - first < 30_000
    assert junk() == junk()  # everything was told by now
