"""What an author says about a concept, under the keys of the ModelSpec that other tools show.

Optional, since each costs bytes: a concept without them has none of these keys. With any of them come those
that the ModelSpec requires, repeated from the concept's own fields.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING

from atomdiff.concept.concept import Concept

if TYPE_CHECKING:
    from PIL.Image import Image

PREFIX = "modelspec."
ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2",
    "sdxl": "stable-diffusion-xl-v1-base",
}


def annotated(
    concept: Concept,
    *,
    author: str = "",
    license: str = "",  # noqa: A002 - the key's own name
    description: str = "",
    usage_hint: str = "",
    thumbnail: Image | None = None,
) -> Concept:
    """The concept with what its author says of it; empty ones leave what it already says.

    `thumbnail` is a picture of 256 pixels a side, kept as JPEG. Raises ConceptError for a text with control
    characters.
    """
    told = {"author": author, "license": license, "description": description, "usage_hint": usage_hint}
    told = {key: text for key, text in told.items() if text}
    if thumbnail is not None:
        told["thumbnail"] = _data_uri(thumbnail)
    if not told:
        return concept
    side = concept.training.get("resolution", "")
    required = required_keys(concept, "/atomdiff", "atomdiff") | {"resolution": f"{side}x{side}" * bool(side)}
    added = {PREFIX + key: text for key, text in (required | told).items() if text}
    return replace(concept, extra={**concept.extra, **added})


def required_keys(
    concept: Concept, kind: str, implementation: str, prediction_type: str = ""
) -> dict[str, str]:
    """The keys, without their prefix, that the ModelSpec requires of a file of a concept, such as a "/lora";
    "" where there is nothing to say. Stable Diffusion 2's two models differ in what they predict."""
    architecture = ARCHITECTURES.get(concept.base.family, concept.base.family)
    if concept.base.family == "sd2" and prediction_type:
        architecture += "-768-v" if prediction_type == "v_prediction" else "-512"
    return {
        "sai_model_spec": "1.0.0",
        "architecture": architecture + kind,
        "implementation": implementation,
        "title": concept.title,
        "trigger_phrase": concept.trigger,
    }


def _data_uri(picture: Image) -> str:
    packed = BytesIO()
    picture.convert("RGB").save(packed, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode()
