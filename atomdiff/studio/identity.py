"""Who asks: a name that keeps people's pictures apart, without asking for one.

With `--auth` it is the user's name; in a browser a random cookie, which outlives restarts of the studio;
for a program that keeps no cookies the session of its client. Nobody is told another's name, so nobody
can take it.
"""

from __future__ import annotations

import re
import secrets
from typing import Any

COOKIE = "atomdiff_studio"
YEAR = 365 * 24 * 3600


def owner(request: Any) -> str:
    """The owner of what a Gradio request asks for."""
    if request.username:
        return f"user:{request.username}"
    cookie = dict(getattr(request, "cookies", None) or {}).get(COOKIE, "")
    if _sound(cookie):
        return f"browser:{cookie}"
    return f"session:{request.session_hash or secrets.token_hex(16)}"  # who has none is someone new each time


class VisitorCookie:
    """ASGI middleware that gives a browser its cookie with the page."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/" or _has_cookie(scope):
            await self.app(scope, receive, send)
            return
        cookie = f"{COOKIE}={secrets.token_hex(16)}; Max-Age={YEAR}; Path=/; HttpOnly; SameSite=Lax"

        async def with_cookie(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {
                    **message,
                    "headers": [*message.get("headers", []), (b"set-cookie", cookie.encode())],
                }
            await send(message)

        await self.app(scope, receive, with_cookie)


def _has_cookie(scope: dict[str, Any]) -> bool:
    sent = b"; ".join(value for name, value in scope["headers"] if name == b"cookie").decode("latin-1")
    found = re.search(rf"(?:^|;\s*){COOKIE}=([^;]*)", sent)
    return bool(found and _sound(found[1]))


def _sound(cookie: str) -> bool:
    return re.fullmatch("[0-9a-f]{32}", cookie) is not None
