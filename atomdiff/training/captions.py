"""What each picture shows, in words: texts beside the pictures, or a metadata.jsonl, and variants of them.

A text beside a picture has the picture's name and another extension, `.txt` or `.caption`, as kohya's
trainers read them. `metadata.jsonl` is the list of Hugging Face's imagefolder datasets: a JSON object a
line, with `file_name` and a column of texts.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from atomdiff.errors import ImageError
from atomdiff.files.plain_text import decode

LIST = "metadata.jsonl"
COLUMNS = ("text", "caption", "prompt")  # the first that a list has, unless one is named
MAX_BYTES = 1 << 20  # of one caption file


def beside(path: Path, extension: str) -> Path:
    """The caption file of a picture: `1.jpg`, "txt" -> `1.txt`."""
    return path.with_suffix(f".{extension.lstrip('.')}")


def is_caption(path: Path, extension: str) -> bool:
    """Whether a file is named as captions are."""
    return bool(extension) and path.suffix.lower() == f".{extension.lstrip('.').lower()}"


def read_caption(path: Path) -> str:
    """The text of a caption file, in one line. Raises ImageError for one that is no text."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes")
        return " ".join(decode(path.read_bytes()).split())
    except OSError as error:
        raise ImageError(f"The caption '{path.name}' cannot be read: {error.strerror}.") from None
    except ValueError:
        raise ImageError(
            f"The caption '{path.name}' is no text; write a sentence into it, or remove it."
        ) from None


def read_list(folder: Path, column: str = "") -> dict[str, str]:
    """File name -> caption, of the folder's metadata.jsonl; empty where there is none.

    Raises ImageError, naming the line, where it is broken, lacks the column, or names a file that is not
    there.
    """
    path = folder / LIST
    if not path.is_file():
        return {}
    try:
        lines = decode(path.read_bytes()).splitlines()
    except (OSError, ValueError):
        raise ImageError(f"'{path}' cannot be read as text; write one JSON object a line into it.") from None
    found = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            name, text = _entry(f"Line {number} of '{path}'", line, column)
            if not (folder / name).is_file():
                raise ImageError(
                    f"Line {number} of '{path}' names '{name}', which is not in the folder; put the picture "
                    "there or remove the line."
                )
            found[name] = text
    return found


def _entry(where: str, line: str, column: str) -> tuple[str, str]:
    try:
        entry: Any = json.loads(line)
    except ValueError:
        raise ImageError(f'{where} is not JSON; write {{"file_name": ..., "text": ...}}.') from None
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise ImageError(f'{where} has no file_name; write {{"file_name": ..., "text": ...}}.')
    wanted = (column,) if column else COLUMNS
    text = next((entry[name] for name in wanted if name in entry), None)
    if not isinstance(text, str):
        others = ", ".join(name for name in entry if name != "file_name") or "none"
        raise ImageError(
            f"{where} has no text under {' or '.join(wanted)} (it has: {others}); name the column of the "
            "captions with --caption_column."
        )
    return entry["file_name"], " ".join(text.split())


def of_folder(paths: Iterable[Path], listed: Mapping[str, str], extension: str) -> dict[Path, str]:
    """The caption of each picture that has one; a text beside it goes before the list."""
    found = {}
    for path in paths:
        if extension and beside(path, extension).is_file():
            found[path] = read_caption(beside(path, extension))
        elif path.name in listed:
            found[path] = listed[path.name]
    return found


@dataclass(frozen=True)
class Variation:
    """How captions of tags, `sks dog, sitting, on grass`, are varied. Each variant is encoded once, so
    there is a fixed number of them; a sample draws one."""

    shuffle: bool = False
    keep_tokens: int = 0  # the first tags, which neither move nor go
    tag_dropout: float = 0.0  # the chance of each other tag to be left out
    separator: str = ","
    count: int = 16  # variants of a caption

    def of(self, caption: str, generator: Generator) -> tuple[str, ...]:
        """Variants of a caption, the caption itself first; it alone where nothing varies."""
        tags = [tag.strip() for tag in caption.split(self.separator) if tag.strip()]
        if not (self.shuffle or self.tag_dropout) or len(tags) <= max(1, self.keep_tokens):
            return (caption,)
        joint = f"{self.separator} "
        made = [joint.join(self._one(tags, generator)) for _ in range(self.count - 1)]
        return tuple(dict.fromkeys([joint.join(tags), *made]))

    def _one(self, tags: Sequence[str], generator: Generator) -> list[str]:
        fixed, free = list(tags[: self.keep_tokens]), list(tags[self.keep_tokens :])
        if self.tag_dropout:
            stays = torch.rand(len(free), generator=generator) >= self.tag_dropout
            free = [tag for tag, stay in zip(free, stays.tolist(), strict=True) if stay]
        if self.shuffle:
            free = [free[i] for i in torch.randperm(len(free), generator=generator).tolist()]
        return (fixed + free) or list(tags[:1])
