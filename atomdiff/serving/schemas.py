"""What clients send, checked: A1111's, OpenAI's and our own requests, and what they ask for in our words."""
# No `from __future__ import annotations` here: FastAPI reads the types of these classes.

import base64
import binascii
import re
from typing import Annotated, Any

from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from atomdiff.core.blocks import parse_strength
from atomdiff.errors import ImageError, SettingsError
from atomdiff.sampling.settings import SAMPLERS, parse_size
from atomdiff.serving.limits import MAX_CONCEPTS, MAX_REGIONS, MAX_TEXT
from atomdiff.serving.service import Asked, AskedRegion

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Whole = Annotated[int, Field(ge=-1, lt=2**63)]
Number = Annotated[float, Field(allow_inf_nan=False)]
REFUSED = {
    "enable_hr": "a second pass (enable_hr)", "tiling": "tiling", "restore_faces": "restore_faces",
    "styles": "styles", "script_name": "scripts", "alwayson_scripts": "scripts (alwayson_scripts)",
}  # fmt: skip
"""A1111's that would change the picture and that are not here: told, rather than left out in silence."""


class Body(BaseModel):
    """A request: fields that mean nothing here are left out, and text is text that can be sent back."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, sent: Any) -> Any:
        try:
            return plain(sent)
        except RecursionError:
            raise ValueError("it is nested too deep") from None


class SentRegion(Body):
    """A part of the picture with concepts of its own, `["dog:0.8"]`: a box, left, top, right, bottom in
    shares of the picture, or a mask, a picture in Base64 whose white it is."""

    concepts: list[Text] = Field(max_length=MAX_CONCEPTS)
    box: tuple[Number, Number, Number, Number] | None = None
    mask: str | None = None
    prompt: Text = ""

    def asked(self) -> AskedRegion:
        """Raises SettingsError or ImageError."""
        if (self.box is None) == (self.mask is None):
            raise SettingsError("A region has a box or a mask, one of the two.")
        named = [text.partition(":") for text in self.concepts]
        concepts = tuple((name.strip(), parse_strength(strength or "1")) for name, _, strength in named)
        return AskedRegion(self.box or picture(str(self.mask)), concepts, self.prompt)


class Drawing(Body):
    """What every request for pictures may have."""

    regions: list[SentRegion] = Field(default=[], max_length=MAX_REGIONS)

    def placed(self) -> tuple[AskedRegion, ...]:
        """Raises SettingsError or ImageError."""
        return tuple(region.asked() for region in self.regions)


class Txt2Img(Drawing):
    """A1111's, as far as it is served; what changes nothing here is left out."""

    prompt: Text = ""
    negative_prompt: Text = ""
    seed: Whole = -1
    steps: int = 20
    cfg_scale: Number | None = None
    width: int | None = None
    height: int | None = None
    batch_size: int = 1
    n_iter: int = 1
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    subseed_strength: Number = 0
    override_settings: dict[str, Any] = {}
    enable_hr: bool = False
    tiling: bool | None = False
    restore_faces: bool | None = False
    styles: list[Any] | None = None
    script_name: str | None = None
    alwayson_scripts: dict[str, Any] = {}
    send_images: bool = True

    def asked(self) -> Asked:
        """Raises SettingsError for what is not served."""
        for name, called in REFUSED.items():
            if getattr(self, name):
                raise SettingsError(f"This server does not know {called}: leave it out.")
        if self.subseed_strength:
            raise SettingsError("This server does not know variation seeds: leave subseed_strength out.")
        if self.batch_size < 1 or self.n_iter < 1:
            raise SettingsError("batch_size and n_iter are at least 1.")
        chosen = self.override_settings.get("sd_model_checkpoint", "")
        return Asked(
            self.prompt, self.negative_prompt, (), self.batch_size * self.n_iter, self.seed, self.steps,
            self.cfg_scale, sides(self.width, self.height),
            sampler(self.sampler_name or self.sampler_index, self.scheduler), str(chosen or ""),
            regions=self.placed(),
        )  # fmt: skip


class Img2Img(Txt2Img):
    """A1111's picture to picture and inpainting."""

    init_images: list[str] = Field(default=[], max_length=1)
    mask: str | None = None
    denoising_strength: Number = 0.75
    inpainting_mask_invert: int = 0

    def asked(self) -> Asked:
        """Raises SettingsError or ImageError."""
        if not self.init_images:
            raise ImageError("There is no picture to start from: put one into init_images.")
        asked, mask = super().asked(), picture(self.mask) if self.mask else None
        if mask is not None and self.inpainting_mask_invert:
            from PIL import ImageOps

            mask = ImageOps.invert(mask)
        more = {"image": picture(self.init_images[0]), "mask": mask, "strength": self.denoising_strength}
        return Asked(**(vars(asked) | more))


class ImagesRequest(Drawing):
    """OpenAI's, and beside it what it does not know (`extra_body` of its client)."""

    prompt: Text
    model: str | None = None
    n: int | None = 1
    size: str | None = None
    response_format: str | None = None
    negative_prompt: Text = ""
    seed: Whole = -1
    steps: int = 25
    guidance: Number | None = None
    sampler: str | None = None

    def asked(self) -> Asked:
        """Raises SettingsError."""
        if self.response_format not in (None, "b64_json", "url"):
            raise SettingsError("response_format is b64_json or url.")
        size = None if self.size in (None, "auto") else parse_size(str(self.size))
        return Asked(
            self.prompt, self.negative_prompt, (), 1 if self.n is None else self.n,
            self.seed, self.steps, self.guidance, size, sampler(self.sampler), base=self.model or "",
            regions=self.placed(),
        )  # fmt: skip


def plain(sent: Any) -> Any:
    """JSON without what no text has: halves of surrogate pairs, and zeros."""
    if isinstance(sent, str):
        return sent.encode("utf-8", "replace").decode().replace("\0", " ")
    if isinstance(sent, list):
        return [plain(item) for item in sent]
    if isinstance(sent, dict):
        return {plain(key): plain(value) for key, value in sent.items()}
    return sent


def sampler(name: str | None, scheduler: str | None = None) -> str:
    """Our name of a sampler, by ours or A1111's, with its schedule apart or in the name. Raises
    SettingsError."""
    if not name:
        return "dpm++"
    wanted, schedule = " ".join(name.lower().split()), (scheduler or "automatic").lower()
    titles = {known.title.lower(): key for key, known in SAMPLERS.items()} | {key: key for key in SAMPLERS}
    if schedule not in ("automatic", "normal", "uniform") and not wanted.endswith(schedule):
        wanted = f"{wanted} {schedule}"
    if wanted not in titles:
        known = ", ".join(one.title for one in SAMPLERS.values())
        raise SettingsError(f"There is no sampler {wanted[:60]!r}: choose one of {known}.")
    return titles[wanted]


def sides(width: int | None, height: int | None) -> tuple[int, int] | None:
    """The size, where both or one of its sides are given."""
    return (width or height or 0, height or width or 0) if width or height else None


def picture(text: str) -> Image:
    """A picture in Base64, with or without `data:image/png;base64,` before it, RGB. Raises ImageError."""
    from atomdiff.files.qr_image import open_picture

    try:
        data = base64.b64decode(
            re.sub(r"^data:[\w/+.-]{0,60};base64,", "", text[:100]) + text[100:], validate=True
        )
    except (binascii.Error, ValueError):
        raise ImageError("The picture is not in Base64: encode the bytes of a PNG or JPEG.") from None
    return open_picture(data, "the picture", "RGB")
