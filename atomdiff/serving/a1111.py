"""The part of A1111's API that draws: `/sdapi/v1`."""
# No `from __future__ import annotations` here: FastAPI reads the types of these functions.

import base64
import json
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from atomdiff.errors import SettingsError
from atomdiff.sampling.settings import SAMPLERS
from atomdiff.sampling.sheets import picture_bytes
from atomdiff.serving.access import owner_of
from atomdiff.serving.schemas import Img2Img, Txt2Img
from atomdiff.serving.service import Service
from atomdiff.serving.waiting import drawn


def router(service: Service) -> APIRouter:
    """The endpoints."""
    routes = APIRouter(prefix="/sdapi/v1")
    _drawing(routes, service)
    _looking(routes, service)
    return routes


def _drawing(routes: APIRouter, service: Service) -> None:
    @routes.post("/txt2img")
    async def txt2img(request: Request, body: Txt2Img) -> dict[str, Any]:
        return await _answer(request, service, body)

    @routes.post("/img2img")
    async def img2img(request: Request, body: Img2Img) -> dict[str, Any]:
        return await _answer(request, service, body)

    @routes.post("/interrupt")
    async def interrupt(request: Request) -> dict[str, Any]:
        """Stops what the same token asked for."""
        for ticket in service.of(owner_of(request.scope)):
            service.cancel(ticket)
        return {}

    @routes.get("/progress")
    async def progress(request: Request) -> dict[str, Any]:
        """Of what the same token asked for."""
        tickets = service.of(owner_of(request.scope))
        part = sum(ticket.progress for ticket in tickets) / len(tickets) if tickets else 0.0
        began = min((ticket.began for ticket in tickets), default=0.0)
        left = (time.monotonic() - began) * (1 - part) / part if part else 0.0
        done, steps = max((step for ticket in tickets for step in ticket.steps.values()), default=(0, 0))
        state = {
            "skipped": False, "interrupted": False, "job": "drawing" if tickets else "",
            "job_count": len(tickets), "job_no": 0, "sampling_step": done, "sampling_steps": steps,
        }  # fmt: skip
        return {
            "progress": part, "eta_relative": left, "state": state, "current_image": None, "textinfo": None
        }  # fmt: skip


def _looking(routes: APIRouter, service: Service) -> None:
    @routes.get("/sd-models")
    async def sd_models() -> list[dict[str, Any]]:
        return [
            {
                "title": name,
                "model_name": name,
                "hash": None,
                "sha256": None,
                "filename": name,
                "config": None,
            }
            for name in service.models()
        ]

    @routes.get("/loras")
    def loras() -> list[dict[str, Any]]:
        """The concepts, as `<atom:NAME:STRENGTH>` names them."""
        return [
            {
                "name": entry.title, "alias": entry.trigger, "path": entry.path.name,
                "metadata": {"id": entry.id, "class_word": entry.class_word, "base": entry.base},
            }
            for entry in service.library.find()
        ]  # fmt: skip

    @routes.get("/samplers")
    async def samplers() -> list[dict[str, Any]]:
        return [{"name": one.title, "aliases": [key], "options": {}} for key, one in SAMPLERS.items()]

    @routes.get("/options")
    async def options() -> dict[str, Any]:
        return {"sd_model_checkpoint": service.models()[0]}

    @routes.post("/options")
    async def set_options(wanted: dict[str, Any]) -> None:
        for name, value in wanted.items():
            if name != "sd_model_checkpoint":
                raise SettingsError(
                    f"The option {name[:60]!r} cannot be set here: sd_model_checkpoint alone."
                )
            service.info(str(value))

    @routes.get("/scripts")
    async def scripts() -> dict[str, list[str]]:
        return {"txt2img": [], "img2img": []}


async def _answer(request: Request, service: Service, body: Txt2Img) -> dict[str, Any]:
    asked = await run_in_threadpool(body.asked)
    ticket, images = await drawn(request, service, asked)
    encoded = await run_in_threadpool(
        lambda: [base64.b64encode(picture_bytes(one)).decode() for one in images]
    )
    settings = [ticket.wanted[i].settings for i in range(len(images))]
    info = {
        "prompt": body.prompt,
        "negative_prompt": body.negative_prompt,
        "seed": settings[0].seed,
        "all_seeds": [one.seed for one in settings],
        "all_prompts": [body.prompt] * len(images),
        "width": images[0].width,
        "height": images[0].height,
        "steps": body.steps,
        "cfg_scale": settings[0].guidance,
        "sampler_name": SAMPLERS[settings[0].sampler].title,
        "sd_model_name": ticket.wanted[0].base,
        "infotexts": [image.info["parameters"] for image in images],
    }
    told = body.model_dump(exclude={"init_images", "mask", "regions"})
    return {"images": encoded if body.send_images else [], "parameters": told, "info": json.dumps(info)}
