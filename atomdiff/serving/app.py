"""The HTTP service: its endpoints, what they answer where something is wrong, and how it ends."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from atomdiff import __version__
from atomdiff.errors import AtomdiffError, SettingsError, sentence_of
from atomdiff.serving import a1111, concepts_api, openai_api, train_api
from atomdiff.serving.access import BodyLimit, TokenCheck
from atomdiff.serving.batcher import Busy
from atomdiff.serving.concepts_api import NotThere
from atomdiff.serving.job_queue import DEFECT
from atomdiff.serving.log_limits import limit_logs
from atomdiff.serving.metrics import Counted
from atomdiff.serving.security import HostCheck, told
from atomdiff.serving.service import Service
from atomdiff.serving.waiting import ClientLeft, TookTooLong

CONNECTIONS = 1000  # open at a time; more are answered 503

log = logging.getLogger(__name__)


def create_app(service: Service) -> Any:
    """The ASGI app of a service, which it closes when it is shut down."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close)

    app = FastAPI(title="atomdiff", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    for part in (a1111, openai_api, concepts_api, train_api):
        app.include_router(part.router(service))

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(service.measure(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.add_exception_handler(RequestValidationError, _not_valid)
    for kind in (HTTPException, AtomdiffError, ClientLeft, MemoryError, OSError, RuntimeError, Exception):
        app.add_exception_handler(kind, _failed)
    options = service.options
    guarded = TokenCheck(BodyLimit(app, options.limits), options.tokens)
    return Counted(HostCheck(guarded, options.host, options.allowed_hosts), service.metrics)


def listen(host: str, port: int) -> socket.socket:
    """Listens there; port 0 is any that is free. Raises SettingsError if it cannot."""
    if not 0 <= port <= 65535:
        raise SettingsError(f"A port is a number from 1 to 65535, not {port}.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingsError(
            f"{host}, port {port}, cannot be listened on ({reason}): choose another."
        ) from None


def server(service: Service) -> Any:
    """The uvicorn server of a service; `run(sockets=[...])` serves until it is told to end."""
    import uvicorn

    limit_logs()
    config = uvicorn.Config(
        create_app(service), log_level="warning", access_log=False, server_header=False, ws="none",
        limit_concurrency=CONNECTIONS, timeout_keep_alive=15, lifespan="on",
    )  # fmt: skip
    return uvicorn.Server(config)


def run(service: Service, listening: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
    """Serves until SIGTERM or Ctrl-C: then nothing new is taken, what was taken is drawn and answered, and
    trainings save their state. A second Ctrl-C ends at once."""
    before = {number: signal.signal(number, _ignored) for number in (signal.SIGINT, signal.SIGTERM)}
    serving = server(service)
    ready()
    try:
        serving.run(sockets=[listening])  # raises the signal once more at its end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignored(number: int, frame: Any) -> None: ...


async def _not_valid(request: Request, error: Any) -> Response:
    """What is wrong with the first field that is not right."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:] or first["loc"])
    wrong = " ".join(str(first["msg"]).split())
    return _sentence(request, 422, f"The field {where[:80]!r} is not right: {wrong[:160]}.")


async def _failed(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientLeft):
        return Response(status_code=499)
    if isinstance(error, HTTPException):
        sentences = {404: "There is nothing here.", 405: "This cannot be done here."}
        return _sentence(request, error.status_code, sentences.get(error.status_code, f"{error.detail}."))
    sentence = sentence_of(error)
    if sentence is None:
        log.error("a request to %r failed", request.url.path[:80], exc_info=error)
        return _sentence(request, 500, DEFECT)
    return _sentence(request, _status(error), sentence)


def _status(error: Exception) -> int:
    for kind, status in ((Busy, 429), (NotThere, 404), (TookTooLong, 503), (AtomdiffError, 400)):
        if isinstance(error, kind):
            return status
    return 507 if isinstance(error, OSError) else 503


def _sentence(request: Request, status: int, sentence: str) -> Response:
    retry = {"retry-after": "5"} if status in (429, 503) else None
    return JSONResponse(told(request.url.path, sentence), status, headers=retry)
