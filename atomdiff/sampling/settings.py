"""One description of a drawing: what flags, forms and APIs are read into, and what a picture's text says."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomdiff.core.blocks import Strength, check_strength, parse_strength, strength_text
from atomdiff.errors import SettingsError
from atomdiff.sampling import region
from atomdiff.sampling.infotext import Generation, UsedConcept, UsedFile

if TYPE_CHECKING:
    from atomdiff.base.stable_diffusion import Base

MAX_SEED = 2**63 - 1
ACTING = ("plain", "gated")
USUAL = "plain"
"""How concepts act while a picture is drawn; `gating` tells what each does."""


@dataclass(frozen=True)
class Sampler:
    """A diffusers scheduler: its class, what to change in it, and what A1111 and its kin call it."""

    scheduler: str
    title: str
    options: tuple[tuple[str, Any], ...] = ()


SAMPLERS = {
    "dpm++": Sampler("DPMSolverMultistepScheduler", "DPM++ 2M"),
    "dpm++ karras": Sampler("DPMSolverMultistepScheduler", "DPM++ 2M Karras", (("use_karras_sigmas", True),)),
    "ddim": Sampler("DDIMScheduler", "DDIM"),
    "euler": Sampler("EulerDiscreteScheduler", "Euler"),
    "euler a": Sampler("EulerAncestralDiscreteScheduler", "Euler a"),
    "heun": Sampler("HeunDiscreteScheduler", "Heun"),
    "unipc": Sampler("UniPCMultistepScheduler", "UniPC"),
}


@dataclass(frozen=True)
class DrawingSettings:
    """Everything that decides a picture but the base. Raises SettingsError for what cannot work.

    `concepts` come with strengths, and are whatever the caller knows them by: objects where pictures are
    drawn, names or ids before. `guidance` and `size`, (width, height) in pixels and both multiples of 8, are
    None for the base's own. `acting` is how concepts act: one of `ACTING`. `strength` is how much of a
    picture that drawing starts from may change, and `hires` by how much the sides grow in a second pass.
    `loras`, with strengths, and `embeddings` are other people's files beside the concepts, known likewise.
    `regions` say where concepts act; one that is in none acts everywhere.
    """

    prompt: str
    concepts: tuple[tuple[Any, Strength], ...] = ()
    negative: str = ""
    seed: int = 0
    steps: int = 25
    guidance: float | None = None
    size: tuple[int, int] | None = None
    sampler: str = "dpm++"
    acting: str = USUAL
    strength: float | None = None
    hires: float = 1.0
    loras: tuple[tuple[Any, float], ...] = ()
    embeddings: tuple[Any, ...] = ()
    regions: tuple[region.Region, ...] = ()

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise SettingsError(f"There is no sampler {self.sampler!r}: choose one of {', '.join(SAMPLERS)}.")
        if self.acting not in ACTING:
            raise SettingsError(f"Concepts act {' or '.join(ACTING)}, not {self.acting!r}.")
        if not 1 <= self.steps <= 1000:
            raise SettingsError(f"A picture takes 1 to 1000 steps, not {self.steps}: 20 to 50 are usual.")
        if not 0 <= self.seed <= MAX_SEED:
            raise SettingsError(f"A seed is a whole number from 0 to 2^63 - 1, not {self.seed}.")
        if self.guidance is not None and not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise SettingsError(
                f"The guidance scale is a number from 0 up, not {self.guidance}: 4 to 8 are usual."
            )
        if self.size is not None and any(side % 8 or not 8 <= side <= 8192 for side in self.size):
            width, height = self.size
            raise SettingsError(
                f"The sides of a picture are multiples of 8 up to 8192 pixels, not {width} × {height}."
            )
        if not 1 <= self.hires <= 4:
            raise SettingsError(f"A second pass enlarges pictures by 1 to 4 times, not {self.hires:g}.")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise SettingsError(
                f"How much of a picture may change is a number above 0 and up to 1, not {self.strength:g}."
            )
        for _, strength in self.concepts:
            check_strength(strength)
        places = range(len(self.concepts))
        if not all(i in places for part in self.regions for i in part.concepts):
            raise SettingsError(f"A region names concepts by their places, from 0, among {len(places)}.")
        if self.regions and (self.acting != "plain" or self.loras or self.embeddings):
            raise SettingsError("Regions take concepts that act plainly, and no LoRAs or embeddings.")
        check_files(self.loras, self.embeddings)

    def filled(self, base: Base) -> DrawingSettings:
        """With the base's own guidance and size where none are given."""
        from atomdiff.base.architectures import ARCHITECTURES

        guidance = ARCHITECTURES[base.family].guidance if self.guidance is None else float(self.guidance)
        return replace(self, guidance=guidance, size=self.size or (base.resolution, base.resolution))

    def known_as(self, find: Callable[[Any], Any]) -> DrawingSettings:
        """With every concept exchanged for what `find` makes of it: its object for a name, say."""
        return replace(self, concepts=tuple((find(item), strength) for item, strength in self.concepts))

    def with_files_named(self) -> DrawingSettings:
        """With other people's files, which must be paths, known as the text of a picture names them."""
        loras = tuple((used_file(path, after_header=True), strength) for path, strength in self.loras)
        return replace(self, loras=loras, embeddings=tuple(used_file(path) for path in self.embeddings))

    def generation(self, model: str, concepts: Sequence[UsedConcept] = ()) -> Generation:
        """What the text of a picture says that was drawn like this on a base of this name, with `concepts`.

        `guidance` and `size` must be filled in, and other people's files known as `UsedFile`s.
        """
        if self.guidance is None or self.size is None:
            raise ValueError("Only settings filled in for a base say how a picture was drawn.")
        fields = {
            "Steps": str(self.steps),
            "Sampler": SAMPLERS[self.sampler].title,
            "CFG scale": f"{self.guidance:g}",
            "Seed": str(self.seed),
            "Size": "x".join(map(str, self.size)),
            "Model": model,
        }
        if self.strength is not None:
            fields["Denoising strength"] = f"{self.strength:g}"
        if self.hires != 1:
            fields["Hires upscale"] = f"{self.hires:g}"
        if concepts:
            fields["Concepts"] = ", ".join(map(str, concepts))
            fields["Concepts act"] = self.acting
        if self.regions:
            fields["Regions"] = region.told(self.regions)
        fields |= self._hashes(concepts)
        called = [f"<lora:{file.name}:{strength:g}>" for file, strength in self.loras]
        prompt = " ".join([self.prompt.strip(), *called]).strip()
        return Generation(prompt, self.negative.strip(), fields | {"Version": "atomdiff"})

    def _hashes(self, concepts: Sequence[UsedConcept]) -> dict[str, str]:
        """The files that were used, as A1111 and Civitai's extension of it name them."""
        loras, fields = [file for file, _ in self.loras], {}
        for key, files in (("Lora hashes", loras), ("TI hashes", self.embeddings)):
            if files:
                fields[key] = ", ".join(f"{file.name}: {file.sha256}" for file in files)
        hashes = {f"atom:{item.title}": item.sha256 for item in concepts}
        hashes |= {f"lora:{file.name}": file.sha256 for file in loras}
        hashes |= {f"embed:{file.name}": file.sha256 for file in self.embeddings}
        return fields | ({"Hashes": json.dumps(hashes, ensure_ascii=False)} if hashes else {})

    @classmethod
    def of(cls, generation: Generation, **instead: Any) -> DrawingSettings:
        """The settings that a picture's text tells, as far as it does; its concepts as `UsedConcept`s.

        `instead` are fields that take the place of what is told. Raises SettingsError for what cannot work.
        """
        titles = {sampler.title.lower(): name for name, sampler in SAMPLERS.items()}
        acting = generation.fields.get("Concepts act", "")
        strength, hires = generation.number("Denoising strength"), generation.number("Hires upscale")
        told: dict[str, Any] = {
            "prompt": generation.plain_prompt,
            "concepts": tuple((used, parse_strength(used.strength)) for used in generation.concepts),
            "negative": generation.negative,
            "seed": generation.whole("Seed") or 0,
            "steps": generation.whole("Steps") or cls.steps,
            "guidance": generation.number("CFG scale"),
            "size": generation.size,
            "sampler": titles.get(generation.fields.get("Sampler", "").lower(), cls.sampler),
            "acting": acting if acting in ACTING else cls.acting,
            "strength": strength if strength and 0 < strength <= 1 else None,
            "hires": hires if hires and 1 <= hires <= 4 else 1.0,
            "loras": tuple(generation.loras),
            "embeddings": tuple(generation.embeddings),
            "regions": region.read(generation.fields.get("Regions", ""), len(generation.concepts)),
        }
        return cls(**(told | instead))


def check_files(loras: Sequence[tuple[Any, float]], embeddings: Sequence[Any]) -> None:
    """Raises SettingsError for a LoRA's strength that is no number, or two files that prompts would call by
    the same name."""
    for file, strength in loras:
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not math.isfinite(strength):
            raise SettingsError(f"The strength of the LoRA {_name(file)!r} is a number, not {strength!r}.")
    for what, files in (("LoRAs", [file for file, _ in loras]), ("embeddings", embeddings)):
        names = [_name(file).lower() for file in files]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise SettingsError(f"Two {what} are called {twice!r}: leave one out, or rename its file.")


def _name(file: Any) -> str:
    """What a path, a `UsedFile` or a name is called in prompts."""
    return file.stem if isinstance(file, Path) else str(getattr(file, "name", file))


def used(title: str, strength: Strength, sha256: str) -> UsedConcept:
    """A concept as the text of a picture names it: without what separates fields there."""
    return UsedConcept(_plain(title), strength_text(strength), sha256[:12])


def used_file(path: Path, after_header: bool = False) -> UsedFile:
    """A LoRA or an embedding as A1111's texts name it, by SHA-256 of the whole file, or as it is for LoRAs of
    what comes `after_header`."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if after_header:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
        while block := file.read(2**20):
            digest.update(block)
    return UsedFile(_plain(path.stem), digest.hexdigest()[:12])


def _plain(name: str) -> str:
    """Without what separates fields and files in the text of a picture."""
    return " ".join(name.translate({ord(letter): " " for letter in ':,"\n<>{}'}).split())


def sides_of(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """(width, height) of a size, which may be one side."""
    return (size, size) if isinstance(size, int) else size


def parse_size(text: str) -> tuple[int, int] | None:
    """`512` or `512x768`, (width, height) in pixels; None if nothing is written. Raises SettingsError."""
    written = text.lower().replace("×", "x").replace(" ", "")
    found = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", written)
    if written and found is None:
        raise SettingsError(f"A size is a side or WIDTHxHEIGHT in pixels (512, 512x768), not {text[:40]!r}.")
    return (int(found[1]), int(found[2] or found[1])) if found else None
