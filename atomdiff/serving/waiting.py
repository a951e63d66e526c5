"""Waiting for pictures on behalf of a client, who may leave."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from atomdiff.errors import AtomdiffError
from atomdiff.serving.access import owner_of
from atomdiff.serving.batcher import Ticket
from atomdiff.serving.service import Asked, Service

if TYPE_CHECKING:
    from PIL.Image import Image


class TookTooLong(AtomdiffError):
    """The pictures were not drawn in time."""


class ClientLeft(Exception):
    """There is nobody to answer to."""


async def drawn(request: Request, service: Service, asked: Asked) -> tuple[Ticket, list[Image]]:
    """What was asked for, and its pictures. Raises AtomdiffError for what cannot be drawn, TookTooLong, and
    ClientLeft, whose pictures are drawn no further."""
    ticket: Any = await run_in_threadpool(service.submit, owner_of(request.scope), asked)
    pictures = asyncio.wrap_future(ticket.future)
    left = asyncio.ensure_future(_left(request))
    try:
        limit = service.limits.seconds
        done, _ = await asyncio.wait({pictures, left}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if pictures in done:
            return ticket, pictures.result()
        if left in done:
            raise ClientLeft
        raise TookTooLong(f"The pictures were not drawn within {limit:g} seconds: ask again later.")
    finally:
        left.cancel()
        if not pictures.done():
            service.cancel(ticket)
            pictures.add_done_callback(lambda future: future.cancelled() or future.exception())


async def _left(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
