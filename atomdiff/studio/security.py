"""Which requests reach Gradio at all, and what they may cause.

Gradio serves more than this page uses, and trusts what it is sent more than a server on a network should. So
- a path that the page has no use for is not there (among them: fetching a foreign address, writing code);
- with `--auth`, nothing but the page to log in on is answered to a stranger, and that page tells nothing;
- a request has a bound, in bytes;
- what a caller got wrong is answered as the caller's (4xx), never as a breakdown of the server (5xx).
"""

from __future__ import annotations

import logging
import re
from typing import Any

from atomdiff.serving.security import Bounded, answer

API = "/gradio_api/"
ASSETS = ("/assets/", "/static/", "/svelte/", f"{API}theme.css", "/theme.css", "/favicon.ico", "/robots.txt")
OPEN = (*ASSETS, "/login", "/logout", f"{API}startup-events", f"{API}login_check")
"""What a stranger may ask for, beside the page to log in on."""
ROUTES = ("info", "openapi.json", "user", "app_id", "token", "run/", "api/", "call/", "queue/", "cancel",
          "reset", "heartbeat/", "upload", "file=")  # fmt: skip
KNOWN = (*OPEN, "/config", *(f"{API}{route}" for route in ROUTES))
MAX_REQUEST = 16_000_000  # bytes; the largest concept as text is a third of it
MAX_UPLOADS = 1_000_000_000  # bytes of all files that are uploaded at once
TOO_LARGE = "That is more than the studio takes in one request."

log = logging.getLogger(__name__)


class RequestFilter:
    """ASGI middleware that lets requests through, or answers them itself."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, stranger = scope["path"], _is_stranger(scope)
        if not _known(path):
            await answer(send, 404, "There is nothing here.")
        elif stranger and path != "/" and not path.startswith(OPEN):
            await answer(send, 401, "Log in first.")
        else:
            bound = MAX_UPLOADS if path.startswith(f"{API}upload") else MAX_REQUEST
            await self._pass(scope, Bounded(receive, bound, scope), send, stranger and path == "/")

    async def _pass(self, scope: dict[str, Any], receive: Bounded, send: Any, hide: bool) -> None:
        """Lets a request through; `hide` blanks what the page to log in on tells of the endpoints."""
        begun = False

        async def told(message: dict[str, Any]) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message = message | {"status": _callers(message["status"], receive.exceeded)}
                if hide:
                    headers = [pair for pair in message["headers"] if pair[0] != b"content-length"]
                    message |= {"headers": headers}
            elif hide:
                message = message | {"body": _blanked(message.get("body", b""))}
            await send(message)

        if receive.exceeded:
            await answer(send, 413, TOO_LARGE)
            return
        try:
            await self.app(scope, receive, told)
        except Exception as error:
            if begun:
                raise
            if receive.exceeded:
                await answer(send, 413, TOO_LARGE)
                return
            log.warning("a request to %r was not understood", scope["path"][:80], exc_info=error)
            await answer(send, 400, "The request is not understood; /?view=api shows what is.")


def _known(path: str) -> bool:
    return path == "/" or path.startswith(KNOWN)


def _is_stranger(scope: dict[str, Any]) -> bool:
    """Whether the studio has a user, and this request does not come from them."""
    from starlette.requests import Request

    app = scope["app"]
    if app.auth is None:
        return False
    cookies = Request(scope).cookies
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return not any(app.tokens.get(cookies.get(name)) for name in names)


def _callers(status: int, exceeded: bool) -> int:
    """The status that blames the caller: every defect of ours is in the log of the job queue, not here."""
    if exceeded:
        return 413
    return {503: 429}.get(status, 400) if status >= 500 else status


def _blanked(body: bytes) -> bytes:
    return re.sub(rb"(window\.gradio_api_info = ).*?(;</script>)", rb"\1{}\2", body, flags=re.DOTALL)
