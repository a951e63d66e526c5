"""Who may ask, and how much at once: the token, and the bound of a request's body."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

from atomdiff.serving.limits import Limits
from atomdiff.serving.security import Bounded, answer

OPEN = ("/healthz",)
"""What is answered without a token."""
WITH_FILES = ("/sdapi/v1/img2img", "/concepts", "/train")
SMALL = 1 << 20  # bytes of a request without files
UPLOAD_SECONDS = 120.0  # in which a request must have come whole
EVERYONE = "everyone"


class TokenCheck:
    """ASGI middleware that lets in who has one of the tokens, as `Authorization: Bearer TOKEN`, or as the
    password of `Basic`, which is all that clients of A1111 can send; everyone, if there are none.

    `scope["owner"]` says from then on whose the request is."""

    def __init__(self, app: Any, tokens: Sequence[str] = ()) -> None:
        self.app = app
        self._tokens = tuple(token.encode() for token in tokens)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN and self._tokens:
            given = _token(dict(scope["headers"]).get(b"authorization", b""))
            same = [token for token in self._tokens if hmac.compare_digest(token, given)]
            if not same:
                how = (b"www-authenticate", b"Bearer")
                sentence = "Send the token of this server: Authorization: Bearer TOKEN."
                await answer(send, 401, sentence, how, path=scope["path"])
                return
            scope["owner"] = hashlib.sha256(same[0]).hexdigest()[:16]
        await self.app(scope, receive, send)


def owner_of(scope: Any) -> str:
    """Whose a request is."""
    return str(scope.get("owner", EVERYONE))


def _token(header: bytes) -> bytes:
    kind, _, given = header.strip().partition(b" ")
    if kind.lower() == b"bearer":
        return given.strip()
    if kind.lower() == b"basic":
        try:
            return base64.b64decode(given.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


class BodyLimit:
    """ASGI middleware: a request has a bound, in bytes, and must come in time."""

    def __init__(self, app: Any, limits: Limits) -> None:
        self.app, self._limits = app, limits

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        files = scope["path"].startswith(WITH_FILES)
        bound = self._limits.upload if files else min(SMALL, self._limits.upload)
        body = Bounded(receive, bound, scope, UPLOAD_SECONDS)
        sentence = f"A request like this has at most {bound:,} bytes."
        begun = False

        async def told(message: dict[str, Any]) -> None:
            nonlocal begun
            if body.late or body.exceeded:
                return  # what the app makes of a body that was cut is not told
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        if body.exceeded:
            await answer(send, 413, sentence, path=scope["path"])
            return
        try:
            await self.app(scope, body, told)
        except ValueError:
            if not (body.late or body.exceeded):
                raise
        if (body.late or body.exceeded) and not begun:
            late = f"The request did not come whole within {UPLOAD_SECONDS:g} seconds."
            status, why = (408, late) if body.late else (413, sentence)
            await answer(send, status, why, path=scope["path"])
