"""The library over HTTP: `/concepts`."""
# No `from __future__ import annotations` here: FastAPI reads the types of these functions.

from typing import Any

from fastapi import APIRouter, Body, File, Response, UploadFile
from fastapi.concurrency import run_in_threadpool

from atomdiff.errors import ConceptError
from atomdiff.library import Entry
from atomdiff.serving.service import Service

MAX_FILES = 8  # of one concept: pictures that show its codes together


def router(service: Service) -> APIRouter:
    """The endpoints."""
    routes = APIRouter(prefix="/concepts")

    @routes.post("", status_code=201)
    async def add(file: list[UploadFile] = File(max_length=MAX_FILES)) -> dict[str, Any]:  # noqa: B008
        """Takes a concept in: its file, card, or pictures that show its codes."""
        sources = [await one.read() for one in file]
        return _told(await run_in_threadpool(service.library.add, *sources))

    @routes.post("/text", status_code=201)
    def add_text(text: str = Body(embed=True)) -> dict[str, Any]:
        """Takes in the line of text that a concept travels as."""
        return _told(service.library.add(text))

    @routes.get("")
    def find(q: str = "", limit: int = 1000, start: int = 0) -> list[dict[str, Any]]:
        """The concepts that have every word of `q`."""
        start, limit = max(0, start), max(0, min(limit, 10_000))
        return [_told(entry) for entry in service.library.find(q)[start : start + limit]]

    @routes.get("/{name}")
    def get(name: str) -> dict[str, Any]:
        return _told(_found(service, name))

    @routes.get("/{name}/file")
    def file(name: str) -> Response:
        """The concept's file, to the byte."""
        stored = service.stored(_found(service, name).id)
        headers = {"content-disposition": f'attachment; filename="{stored.sha256[:12]}.safetensors"'}
        return Response(stored.data, media_type="application/octet-stream", headers=headers)

    @routes.delete("/{name}")
    def remove(name: str) -> dict[str, Any]:
        """Moves a concept to the library's trash, from which `atomdiff library restore` brings it back."""
        entry = _found(service, name)
        service.library.remove(entry.id)
        return _told(entry)

    return routes


class NotThere(ConceptError):
    """What was asked for by its name is not there."""


def _found(service: Service, name: str) -> Entry:
    try:
        return service.entry(name)
    except ConceptError as error:
        raise NotThere(str(error)) from None


def _told(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id, "name": entry.title, "trigger": entry.trigger, "class_word": entry.class_word,
        "base": entry.base, "bytes": entry.size, "tags": list(entry.tags),
    }  # fmt: skip
