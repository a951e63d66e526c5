"""OpenAI's API for pictures: `/v1/images/generations` and `/v1/models`."""
# No `from __future__ import annotations` here: FastAPI reads the types of these functions.

import base64
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from atomdiff.sampling.sheets import picture_bytes
from atomdiff.serving.schemas import ImagesRequest
from atomdiff.serving.service import Service
from atomdiff.serving.waiting import drawn


def router(service: Service) -> APIRouter:
    """The endpoints."""
    routes = APIRouter(prefix="/v1")

    @routes.post("/images/generations")
    async def generations(request: Request, body: ImagesRequest) -> dict[str, Any]:
        ticket, images = await drawn(request, service, body.asked())
        made = await run_in_threadpool(
            lambda: [base64.b64encode(picture_bytes(image)).decode() for image in images]
        )
        seeds = [one.settings.seed for one in ticket.wanted]
        as_url = body.response_format == "url"
        data = [
            {"url": f"data:image/png;base64,{text}", "seed": seed}
            if as_url
            else {"b64_json": text, "seed": seed}
            for text, seed in zip(made, seeds, strict=False)
        ]
        return {"created": int(time.time()), "data": data}

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(name) for name in service.models()]}

    @routes.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        return _model(service.info(name).name)

    return routes


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "atomdiff"}
