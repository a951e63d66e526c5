"""Who may come in: requests under a server's own names only, and from its own pages only.

A server on this machine is reached by every page that a browser here shows. Without the first check a page of
evil.example, whose name is made to mean 127.0.0.1 (DNS rebinding), reads whatever the server tells; without
the second a page of any origin posts to it. Programs, which send neither `Origin` nor `Sec-Fetch-Site`,
pass."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import socket
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")
SAFE = ("GET", "HEAD", "OPTIONS")


class HostCheck:
    """ASGI middleware for a server bound to `bound`, an address or name; `allowed` are more names under
    which it is reached, through a proxy say: `draw.example.com`, or `*.example.com` for all below one.

    A server bound to one address is known by that address and the names of loopback or of this machine. One
    that listens on all addresses is known by any address (which no DNS can make another's), and by this
    machine's name."""

    def __init__(self, app: Any, bound: str = "127.0.0.1", allowed: Iterable[str] = ()) -> None:
        self.app = app
        self._everywhere = bound in ("0.0.0.0", "::", "")
        machine = socket.gethostname().lower()
        names = {bound, *LOOPBACK} if bound in LOOPBACK else {bound, *LOOPBACK, machine, f"{machine}.local"}
        self._allowed = frozenset(name.lower().strip("[]") for name in allowed)
        self._names = self._allowed | {name.lower().strip("[]") for name in names if name}

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if not self.knows(host):
            await _refuse(
                scope, send, 421, f"This server is not {host[:80]!r}: name it with --allowed-hosts."
            )
        elif not self._own_page(scope, headers):
            await _refuse(scope, send, 403, "Requests from pages of another site are refused.")
        else:
            await self.app(scope, receive, send)

    def knows(self, host: str) -> bool:
        """Whether `NAME` or `NAME:PORT` is one of the server's names."""
        name = _name(host)
        return (self._everywhere and _is_address(name)) or _is_among(name, self._names)

    def _own_page(self, scope: dict[str, Any], headers: dict[str, str]) -> bool:
        """Whether no page of another origin caused the request, as far as a browser tells."""
        origin = headers.get("origin")
        if origin is not None:
            there = urlsplit(origin).netloc.lower()
            proxied = _is_among(_name(there), self._allowed)  # which may have renamed the host
            return bool(there) and (there == headers["host"].lower() or proxied)
        safe = scope.get("method") in SAFE
        return safe or headers.get("sec-fetch-site", "none") in ("none", "same-origin")


def _name(host: str) -> str:
    """The name in `NAME:PORT` or `[ADDRESS]:PORT`, in small letters; "" for what is none."""
    found = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([^\s:/@\[\]]+))(?::\d{1,5})?", host.lower())
    return (found[1] or found[2]).rstrip(".") if found else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_among(name: str, names: frozenset[str]) -> bool:
    """Whether a name, or the `*.` above it, is one of the names."""
    parts = name.split(".")
    above = ("*." + ".".join(parts[i:]) for i in range(1, len(parts)))
    return bool(name) and (name in names or any(one in names for one in above))


async def _refuse(scope: dict[str, Any], send: Any, status: int, sentence: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    await answer(send, status, sentence)


class Bounded:
    """The body of a request, as ASGI hands it over, up to a number of bytes and within some seconds.

    `exceeded` and `late` say that it was too long, or slow; then reading it raises ValueError."""

    def __init__(self, receive: Any, bound: int, scope: dict[str, Any], seconds: float | None = None) -> None:
        self._receive, self._left = receive, bound
        self._end = None if seconds is None else time.monotonic() + seconds
        length = dict(scope["headers"]).get(b"content-length", b"0")
        self.exceeded, self.late, self._whole = not length.isdigit() or int(length) > bound, False, False

    async def __call__(self) -> dict[str, Any]:
        message = await self._next()
        self._whole = self._whole or not message.get("more_body", False)
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self.exceeded = True
            raise ValueError("The body is longer than it may be.")
        return message

    async def _next(self) -> dict[str, Any]:
        if self._end is None or self._whole:  # what comes after the body is only that the client left
            return await self._receive()
        try:
            return await asyncio.wait_for(self._receive(), self._end - time.monotonic())
        except asyncio.TimeoutError:
            self.late = True
            raise ValueError("The body did not come in time.") from None


def told(path: str, sentence: str) -> dict[str, Any]:
    """How a sentence is told there: as OpenAI's clients expect it where they ask."""
    if path.startswith("/v1/"):
        kind = "invalid_request_error"
        return {"error": {"message": sentence, "type": kind, "param": None, "code": None}}
    return {"error": sentence}


async def answer(
    send: Any, status: int, sentence: str, *headers: tuple[bytes, bytes], path: str = ""
) -> None:
    """Answers a request with one sentence, as JSON."""
    body = json.dumps(told(path, sentence)).encode()
    length = (b"content-length", str(len(body)).encode())
    headers = ((b"content-type", b"application/json"), length, *headers)
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})
