"""The README.md of a concept's repository on the hub, what it is and how to use it."""

from __future__ import annotations

import hashlib
import io
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomdiff.files import card
from atomdiff.files.modelspec import PREFIX
from atomdiff.files.safetensors_file import from_bytes, precision_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from atomdiff.concept.concept import Concept

LICENCES = (  # those that the hub knows and that suit a concept; any other is named in words
    "apache-2.0", "mit", "openrail", "openrail++", "creativeml-openrail-m", "cc0-1.0", "cc-by-4.0",
    "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0", "unlicense",
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """A picture that a concept drew: where it lies in the repository, its bytes, itself, and its prompt if it
    says one."""

    path: str
    data: bytes
    image: Image
    prompt: str


def sample(file: Path, number: int) -> Sample:
    """A picture for the page. A PNG that says how it was drawn stays as it is; of any other only the pixels
    are kept, since a photo may tell where it was taken. Raises ImageError, ConceptError."""
    from atomdiff.files.qr_image import open_picture

    data = card.read_file(file)
    image = open_picture(data, file.name, "RGB")
    settings = _settings(data)
    if settings:
        return Sample(f"samples/{number}.png", data, image, settings.split("\n")[0][:300])
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=92)
    return Sample(f"samples/{number}.jpg", packed.getvalue(), image, "")


def _settings(data: bytes) -> str:
    """A PNG's settings as A1111 and atomdiff write them; "" without, and with anything of a camera's."""
    from PIL import Image as Pictures

    if not card.is_png(data) or any(chunk.kind == b"eXIf" for chunk in card.walk(data)):
        return ""
    with Pictures.open(io.BytesIO(data), formats=["PNG"]) as opened:
        text = str(opened.info.get("parameters", ""))
    return text if "\nSteps: " in text else ""


def readme(repo: str, data: bytes, samples: Sequence[Sample] = ()) -> str:
    """The page of the concept whose file is `data`, in the hub's form: YAML, then Markdown."""
    from huggingface_hub import ModelCardData

    concept = from_bytes(data)
    known = {key: value for key, value in _metadata(concept, samples).items() if value}
    said = {
        key: concept.extra.get(PREFIX + key, "") for key in ("author", "license", "description", "usage_hint")
    }
    file = repo.partition("/")[2] + ".safetensors"
    base = concept.base
    facts = {
        "Trigger": _code(concept.trigger),
        "What it is": _plain(concept.class_word),
        "Base": _code(base.name or base.architecture) + (f" ({base.architecture})" if base.name else ""),
        "Licence": _plain(said["license"]) or "not stated by its author",
        "Author": _plain(said["author"]),
        "Size": f"{len(data):,} bytes, {precision_of(data)}",
        "SHA-256": _code(hashlib.sha256(data).hexdigest()),
    }
    prompt = shlex.quote(f"{_prompt(concept)} on the beach".strip())
    shown = [f"![{_plain(item.prompt) or 'sample'}]({item.path})" for item in samples]
    parts = [
        f"---\n{ModelCardData(**known).to_yaml()}\n---",
        f"# {_plain(concept.title)}",
        "![The concept's card](card.png)",
        _plain(said["description"]),
        "\n".join(f"- **{what}**: {text}" for what, text in facts.items() if text),
        "## How to use it",
        "The card above *is* the concept: save the picture and use it like the file. Or, with atomdiff:",
        f"```sh\natomdiff pull {repo} --out {file}\natomdiff generate --concept {file} {prompt}\n```",
        *_in_diffusers(repo, concept),
        _plain(said["usage_hint"]),
        *(["## Samples", *shown] if shown else []),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(concept: Concept, samples: Sequence[Sample]) -> dict[str, Any]:
    """What the hub searches by and shows at the top of the page."""
    base = _repository(concept)
    licence = concept.extra.get(PREFIX + "license", "")
    listed = licence.lower() in LICENCES
    widget = [
        {"text": item.prompt or _prompt(concept) or concept.title, "output": {"url": item.path}}
        for item in samples
    ]
    return {
        "base_model": base,
        "license": licence.lower() if listed else ("other" if licence else None),
        "license_name": re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")
        if licence and not listed
        else None,
        "library_name": "atomdiff",
        "pipeline_tag": "text-to-image",
        "tags": ["atomdiff", "text-to-image", "concept", concept.base.family],
        "instance_prompt": _prompt(concept),
        "widget": widget,
    }


def _repository(concept: Concept) -> str | None:
    """The base on the hub, where it is there."""
    from atomdiff.base.architectures import ALIASES
    from atomdiff.base.loading import HUB_ID

    known = ALIASES.get(concept.base.name)
    name = known.repository if known else concept.base.name
    return name if HUB_ID.fullmatch(name) else None


def _in_diffusers(repo: str, concept: Concept) -> list[str]:
    """How to draw with it in a stock pipeline, where its base can be had."""
    base = _repository(concept)
    if base is None and concept.base.name != "pocket":
        return []
    loaded = (
        f"from diffusers import DiffusionPipeline\n\npipe = DiffusionPipeline.from_pretrained({base!r})"
        if base
        else '\npipe = atomdiff.load_base("pocket").pipe'
    )
    prompt, file = f"{_prompt(concept)} on the beach".strip(), f"{repo.partition('/')[2]}.png"
    return [
        "In a stock diffusers pipeline:",
        f"```python\nimport atomdiff\n{loaded}\natomdiff.load(pipe, {repo!r})\n"
        f"image = pipe({prompt!r}, num_inference_steps=25).images[0]\nimage.save({file!r})\n```",
    ]


def _prompt(concept: Concept) -> str:
    trained = str(concept.training.get("instance_prompt", ""))
    return trained or f"{concept.trigger} {concept.class_word}".strip()


def _plain(text: str) -> str:
    """A stranger's words as words, not as Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]()<>#|!~&])", r"\\\1", text)


def _code(text: str) -> str:
    return "`" + text.replace("`", "'") + "`" if text else ""
