"""The text in which a picture's settings travel (A1111's `parameters`), written and read back.

    prompt, on any number of lines
    Negative prompt: what to keep out
    Steps: 25, Sampler: DPM++ 2M, CFG scale: 4, Seed: 0, Size: 64x64, ..., Concepts: "dog:0.8:0123456789ab"

Pictures come from strangers and from other programs: what cannot be understood is left out, never an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from atomdiff.errors import ImageError

MAX_TEXT = 100_000  # characters: more is no generation text
_FIELD = re.compile(r'\s*([\w][\w \-/]*?):\s*("(?:\\.|[^"\\])*"|\{[^}]*\}|[^,]*)(?:,|$)')
_LORA = re.compile(r"\s*<lora:([^:<>]+)(?::([^:<>]*))?[^<>]*>")


@dataclass(frozen=True)
class UsedConcept:
    """A concept as a picture names it."""

    title: str
    strength: str
    """A number, or one a block: `down=0.5 mid=1 up=1`."""
    sha256: str
    """The first letters of its file's checksum."""

    def __str__(self) -> str:
        return f"{self.title}:{self.strength}:{self.sha256}"


@dataclass(frozen=True)
class UsedFile:
    """A LoRA or an embedding as a picture names it, with the first letters of its file's checksum, or ""."""

    name: str
    sha256: str = ""


@dataclass(frozen=True)
class Generation:
    """What a generation text says. `fields` are the last line's, in order."""

    prompt: str
    negative: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The text: inverse of `parse`."""
        negative = [f"Negative prompt: {self.negative}"] if self.negative else []
        fields = ", ".join(f"{key}: {_quoted(value)}" for key, value in self.fields.items())
        return "\n".join([self.prompt, *negative, fields])

    def whole(self, key: str) -> int | None:
        """A field that is a whole number; None if missing or none."""
        text = self.fields.get(key, "")
        return int(text) if re.fullmatch(r"-?\d{1,19}", text) else None

    def number(self, key: str) -> float | None:
        """A field that is a number; None if missing or none."""
        return _number(self.fields.get(key, ""))

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) in pixels."""
        found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", self.fields.get("Size", ""))
        return (int(found[1]), int(found[2])) if found else None

    @property
    def plain_prompt(self) -> str:
        """The prompt without A1111's `<lora:name:0.7>`."""
        return _LORA.sub("", self.prompt).strip()

    @property
    def loras(self) -> list[tuple[UsedFile, float]]:
        """The LoRAs that the prompt calls, with their strengths."""
        hashes = self._files("Lora hashes")
        found = {found[1].strip(): _number(found[2] or "1") for found in _LORA.finditer(self.prompt)}
        return [(UsedFile(name, hashes.get(name, "")), 1.0 if s is None else s) for name, s in found.items()]

    @property
    def embeddings(self) -> list[UsedFile]:
        """The textual inversions that were used."""
        return [UsedFile(name, sha256) for name, sha256 in self._files("TI hashes").items()]

    def _files(self, key: str) -> dict[str, str]:
        """Name -> checksum, of `name: 0123, other: 4567`."""
        pairs = (item.rpartition(":") for item in self.fields.get(key, "").split(","))
        return {name.strip(): sha256.strip() for name, _, sha256 in pairs if name.strip()}

    @property
    def concepts(self) -> list[UsedConcept]:
        """The concepts that were used, with their strengths."""
        used = []
        for item in self.fields.get("Concepts", "").split(","):
            title, _, rest = item.strip().rpartition(":")
            name, _, strength = title.rpartition(":")
            if name and strength:
                used.append(UsedConcept(name.strip(), strength.strip(), rest.strip()))
        return used


def parse(text: str) -> Generation:
    """The settings in a generation text; a text without any is all prompt."""
    lines = text[:MAX_TEXT].strip().splitlines()
    fields: dict[str, str] = {}
    if lines and lines[-1].startswith("Steps:"):
        fields = {found[1]: _unquoted(found[2].strip()) for found in _FIELD.finditer(lines.pop())}
    start = next((i for i, line in enumerate(lines) if line.startswith("Negative prompt:")), len(lines))
    negative = "\n".join(lines[start:]).removeprefix("Negative prompt:").strip()
    return Generation("\n".join(lines[:start]).strip(), negative, fields)


def of_picture(path: Path) -> str:
    """The generation text inside a PNG, JPEG or WebP; "" if it has none. No pixel is decoded.

    Raises ImageError for what is no picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as picture:
            text = picture.info.get("parameters", "")
            comment = picture.getexif().get_ifd(0x8769).get(0x9286, b"")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise ImageError(
            f"{path.name!r} is no picture that can be read: give a PNG, JPEG or WebP as it was saved."
        ) from None
    if isinstance(text, str) and text:
        return text[:MAX_TEXT]
    if isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
        return comment[8 : 8 + 2 * MAX_TEXT].decode("utf-16-be", "ignore")
    return ""


def _quoted(value: str) -> str:
    """A1111 quotes values that hold a separator, but for its `Hashes`, which are JSON."""
    if value.startswith("{") and value.endswith("}"):
        return value
    return json.dumps(value, ensure_ascii=False) if any(letter in value for letter in ',:"\n') else value


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value.strip('"')


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?\d{1,9}(\.\d{1,9})?", text.strip()) else None
