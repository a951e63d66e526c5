"""Trainings over HTTP: `/train`."""
# No `from __future__ import annotations` here: FastAPI reads the types of these functions.

import json
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.concurrency import run_in_threadpool

from atomdiff.errors import SettingsError
from atomdiff.files.plain_text import decode
from atomdiff.serving.access import owner_of
from atomdiff.serving.concepts_api import NotThere
from atomdiff.serving.service import Service
from atomdiff.serving.training_session import CAPTION, TrainingRequest, TrainingSession, told


def router(service: Service) -> APIRouter:
    """The endpoints."""
    routes = APIRouter(prefix="/train")

    @routes.post("", status_code=202)
    async def start(
        request: Request,
        pictures: list[UploadFile] = File(),  # noqa: B008
        class_word: str = Form(""),
        name: str = Form(""),
        quality: str = Form("good"),
        settings: str = Form("{}"),
        model: str = Form(""),
    ) -> dict[str, Any]:
        """Begins a training on pictures, or on all files of a folder: text files named like pictures are
        their captions. `settings` is JSON: {"max_train_steps": 100, "trigger": "sks"}; `model` is the
        base."""
        files = [(one.filename or "", await one.read()) for one in pictures]
        owner = owner_of(request.scope)
        said = class_word, name, quality, settings, model
        begun = await run_in_threadpool(_begin, service, owner, files, *said)
        return _told(service, begun)

    @routes.get("")
    def trainings(request: Request) -> list[dict[str, Any]]:
        """Those of the same token, the latest first."""
        return [_told(service, one) for one in service.trainings.of(owner_of(request.scope))]

    @routes.get("/{ident}")
    def training(request: Request, ident: str) -> dict[str, Any]:
        return _told(service, _found(service, request, ident))

    @routes.delete("/{ident}")
    def drop(request: Request, ident: str) -> dict[str, Any]:
        """Stops a training, and forgets it with its pictures; a concept in the library stays."""
        session = _found(service, request, ident)
        service.trainings.drop(owner_of(request.scope), ident)
        return {"id": session.ident}

    return routes


def _begin(
    service: Service,
    owner: str,
    files: list[tuple[str, bytes]],
    class_word: str,
    name: str,
    quality: str,
    settings: str,
    model: str,
) -> TrainingSession:
    """Raises SettingsError for what cannot be trained."""
    try:
        more = json.loads(settings or "{}")
    except (ValueError, RecursionError):
        more = None
    if not isinstance(more, dict):
        raise SettingsError('The settings are JSON: {"max_train_steps": 100}.')
    captions = {}
    with tempfile.TemporaryDirectory(prefix="atomdiff-") as folder:
        paths: list[Path] = []
        stems: dict[str, str] = {}
        for given, data in files:  # names are the sender's, so none of them is a path here
            own = PurePosixPath(given.replace("\\", "/"))
            if own.suffix.lower() == CAPTION:
                captions[own.stem] = _text(own.name, data)
                continue
            path = Path(folder) / f"{len(paths):03d}{_suffix(own)}"
            path.write_bytes(data)
            paths.append(path)
            stems[own.stem] = path.stem
        for stem in captions.keys() - stems.keys():
            raise SettingsError(f"'{stem[:60]}{CAPTION}' says what is in a picture that was not sent.")
        known = {stems[stem]: text for stem, text in captions.items()}
        request = TrainingRequest(
            tuple(paths), class_word, name, service.info(model).name, quality, more, known, samples=False
        )
        return service.trainings.start(owner, request)


def _suffix(name: PurePosixPath) -> str:
    """The ending of a sender's file name, where it is one."""
    ending = name.suffix.lower()
    return ending if ending[1:].isascii() and ending[1:].isalnum() and len(ending) < 8 else ".img"


def _text(name: str, data: bytes) -> str:
    try:
        return decode(data[:10_000])
    except ValueError:
        raise SettingsError(f"'{name[:60]}' is no text.") from None


def _found(service: Service, request: Request, ident: str) -> TrainingSession:
    try:
        return service.trainings.get(owner_of(request.scope), ident)
    except SettingsError as error:
        raise NotThere(str(error)) from None


def _told(service: Service, session: TrainingSession) -> dict[str, Any]:
    parts = ("state", "stage", "step", "steps", "ahead", "seconds_left", "notes", "error", "concept")
    return told(session, service.trainings.status(session), *parts)
