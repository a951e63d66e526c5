"""Under which names a server answers, and to pages of which origin."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from atomdiff.serving.security import HostCheck


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'{"error": ""}'})


def status(bound: str, host: str, method: str = "GET", allowed: tuple[str, ...] = (), **headers: str) -> int:
    """What a request is answered with; every refusal says why, in one sentence."""
    pairs = {"host": host, **{name.replace("_", "-"): text for name, text in headers.items()}}
    lines = [(name.encode(), text.encode("latin-1")) for name, text in pairs.items() if text]
    scope = {"type": "http", "method": method, "path": "/", "headers": lines}
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(HostCheck(app, bound, allowed)(scope, None, send))
    told = json.loads(sent[1]["body"])["error"]
    assert sent[0]["status"] == 200 or told.endswith((".", "--allowed-hosts."))
    return sent[0]["status"]


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:1", "localhost."])
def test_a_server_on_loopback_knows_its_names(host):
    assert status("127.0.0.1", host) == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "10.0.0.9:7860", "", "localhost:7860:1",
     "a@localhost", "localhost/x", "ünï.example", "x" * 5000],
)  # fmt: skip
def test_it_answers_to_no_other_name(host):
    assert status("127.0.0.1", host) == 421


def test_a_server_on_all_addresses_knows_addresses_this_machine_and_what_is_allowed():
    import socket

    for host in ("10.0.0.9:7860", "[fe80::1]:7860", "localhost", socket.gethostname()):
        assert status("0.0.0.0", host) == 200, host
    assert status("0.0.0.0", "draw.example.com") == 421
    assert status("0.0.0.0", "draw.example.com", allowed=("draw.example.com",)) == 200
    assert status("0.0.0.0", "a.b.example.com", allowed=("*.example.com",)) == 200
    assert status("0.0.0.0", "example.com", allowed=("*.example.com",)) == 421


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://127.0.0.1:8000",
        "http://localhost:7860",
        "null",
        "",
        "https://127.0.0.1",
    ],
)
def test_pages_of_another_origin_are_refused_whatever_they_ask(origin):
    for method in ("GET", "POST", "OPTIONS", "DELETE"):
        expected = 403 if origin else 200
        assert status("127.0.0.1", "127.0.0.1:7860", method, origin=origin) == expected


def test_its_own_page_and_programs_are_let_through():
    assert status("127.0.0.1", "127.0.0.1:7860", "POST", origin="http://127.0.0.1:7860") == 200
    assert status("127.0.0.1", "127.0.0.1:7860", "POST") == 200
    assert status("127.0.0.1", "127.0.0.1:7860", "POST", sec_fetch_site="same-origin") == 200
    for site in ("cross-site", "same-site"):
        assert status("127.0.0.1", "127.0.0.1:7860", "POST", sec_fetch_site=site) == 403
        assert status("127.0.0.1", "127.0.0.1:7860", "GET", sec_fetch_site=site) == 200  # a link


def test_a_proxy_may_rename_the_host_but_another_port_of_an_address_is_another_origin():
    allowed = ("draw.example.com",)
    there = "https://draw.example.com"
    assert status("127.0.0.1", "127.0.0.1:7860", "POST", allowed, origin=there) == 200
    assert status("127.0.0.1", "127.0.0.1:7860", "POST", origin=there) == 403
    assert status("0.0.0.0", "10.0.0.9:7860", "POST", origin="http://10.0.0.9:8000") == 403
