"""The request filter on its own, before an app that answers as it is told."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from atomdiff.studio import security

PAGE = b'<script>window.gradio_api_info = {"a": {}};</script>\n<script>1</script>'


def asked(
    app: Any, path: str, auth: Any = None, cookie: str = "", body: list[bytes] | None = None, **headers: str
):
    """(status, body) of a request through the filter to `app`."""
    pieces = [{"type": "http.request", "body": piece, "more_body": True} for piece in body or [b""]]
    known = SimpleNamespace(auth=auth, cookie_id="1", tokens={"good": "ann"})
    lines = {"cookie": cookie, **{name.replace("_", "-"): text for name, text in headers.items()}}
    pairs = [(name.encode(), text.encode()) for name, text in lines.items()]
    scope = {"type": "http", "path": path, "headers": pairs, "app": known}
    sent: list[dict[str, Any]] = []

    async def receive():
        return pieces.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(security.RequestFilter(app)(scope, receive, send))
    return sent[0]["status"], b"".join(message["body"] for message in sent[1:])


def answers(status: int, body: bytes = b"yes"):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"9")]})
        await send({"type": "http.response.body", "body": body})

    return app


async def reads(scope, receive, send):
    while True:
        await receive()


async def breaks(scope, receive, send):
    raise KeyError("no such endpoint")


@pytest.mark.parametrize(
    "path", ["/", "/config", "/gradio_api/run/draw", "/assets/a.js", "/gradio_api/file=/a"]
)
def test_what_the_page_uses_is_let_through(path):
    assert asked(answers(200), path) == (200, b"yes")


@pytest.mark.parametrize(
    "path", ["/gradio_api/proxy=http://a", "/gradio_api/vibe-code", "/docs", "/pwa_icon/9", ""]
)
def test_what_it_does_not_use_is_not_there(path):
    assert asked(answers(200), path)[0] == 404


def test_a_stranger_may_log_in_and_no_more():
    auth = {"ann": "x"}
    assert asked(answers(200), "/config", auth)[0] == 401
    assert asked(answers(200), "/config", auth, "access-token-1=bad")[0] == 401
    assert asked(answers(200), "/config", auth, "access-token-unsecure-1=good")[0] == 200
    assert asked(answers(200), "/login", auth)[0] == 200
    assert asked(answers(200, PAGE), "/", auth) == (
        200,
        PAGE.replace(b'{"a": {}}', b"{}"),
    )
    assert asked(answers(200, PAGE), "/", auth, "access-token-1=good") == (200, PAGE)


def test_the_callers_mistake_is_not_the_servers_breakdown():
    assert asked(answers(500), "/config") == (400, b"yes")
    assert asked(answers(503), "/config") == (429, b"yes")
    status, body = asked(breaks, "/gradio_api/call/v2/x")
    assert status == 400
    assert "not understood" in json.loads(body)["error"]


def test_a_body_has_a_bound_whatever_its_header_says():
    piece = bytes(security.MAX_REQUEST // 2)
    assert asked(answers(200), "/config", content_length=str(security.MAX_REQUEST + 1))[0] == 413
    assert asked(answers(200), "/config", content_length="many")[0] == 413
    assert asked(answers(200), "/gradio_api/upload", content_length=str(security.MAX_REQUEST + 1))[0] == 200
    assert asked(reads, "/config", body=[piece, piece, b"a"])[0] == 413
