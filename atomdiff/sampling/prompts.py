"""Prompts written once and used often: styles, and words of which each picture takes one.

A style is a template for prompt and negative prompt, `{prompt}` standing for what was written; a file of
them is A1111's `styles.csv` (name, prompt, negative_prompt). Of `{red|blue}` a picture takes one part, and
of `__animal__` a line of `animal.txt`, by its seed: the same seed takes the same (the syntax of the
dynamic-prompts extension)."""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atomdiff.errors import SettingsError

MAX_LINES = 10_000  # of a file of words
MAX_CHOICES = 100  # of one prompt
_CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}|__([A-Za-z0-9_\-]+?)__")


@dataclass(frozen=True)
class Style:
    """A template: `{prompt}` stands for what was written, which else comes before it."""

    prompt: str
    negative: str = ""

    def applied(self, prompt: str, negative: str) -> tuple[str, str]:
        """Prompt and negative prompt in this style."""
        return _filled(self.prompt, prompt), _filled(self.negative, negative)


STYLES: Mapping[str, Style] = {
    "photo": Style("{prompt}, photograph, 50mm lens, natural light", "drawing, painting, blurry"),
    "film still": Style("{prompt}, film still, cinematic lighting, shallow focus", "drawing, text"),
    "oil painting": Style("an oil painting of {prompt}, visible brush strokes", "photograph"),
    "watercolour": Style("a watercolour of {prompt}, soft washes, paper texture", "photograph"),
    "pencil sketch": Style("a pencil sketch of {prompt}", "photograph, colour"),
    "line art": Style("{prompt}, clean line art, white background", "shading, photograph"),
    "pixel art": Style("{prompt}, pixel art, limited palette", "blurry, photograph"),
    "clay": Style("{prompt}, clay figure, stop motion, studio light", "drawing"),
    "comic": Style("{prompt}, comic book panel, ink outlines, flat colours", "photograph"),
    "sticker": Style("{prompt}, die-cut sticker, simple shapes, plain white background", "text, shadow"),
}


def load_styles(file: Path) -> dict[str, Style]:
    """STYLES and those of a `styles.csv`, where there is one. Raises SettingsError for a file that is
    none."""
    if not file.is_file():
        return dict(STYLES)
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines))
        own = {
            row["name"].strip(): Style(row.get("prompt") or "", row.get("negative_prompt") or "")
            for row in rows
            if (row.get("name") or "").strip()
        }
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SettingsError(
            f"The styles in '{file}' cannot be read ({error}): it is a CSV file of name, prompt "
            "and negative_prompt."
        ) from None
    return {**STYLES, **own}


def styled(prompt: str, negative: str, name: str, styles: Mapping[str, Style] = STYLES) -> tuple[str, str]:
    """Prompt and negative prompt in the style `name`; "" for none. Raises SettingsError for an unknown
    one."""
    if not name:
        return prompt, negative
    if name not in styles:
        raise SettingsError(f"There is no style {name[:40]!r}: choose one of {', '.join(styles)}.")
    return styles[name].applied(prompt, negative)


def has_choices(prompt: str) -> bool:
    """Whether pictures of the prompt take different words."""
    return _CHOICE.search(prompt) is not None


def expanded(prompt: str, seed: int, folder: Path | None = None) -> str:
    """The prompt of the picture with this seed; `folder` has the files of words. Raises SettingsError."""
    choose = random.Random(f"{seed} {prompt}")
    for _ in range(MAX_CHOICES):
        found = _CHOICE.search(prompt)
        if found is None:
            return prompt
        options = found[1].split("|") if found[1] is not None else _words(found[2], folder)
        prompt = prompt[: found.start()] + choose.choice(options).strip() + prompt[found.end() :]
    raise SettingsError(f"A prompt has up to {MAX_CHOICES} choices: words that name each other never end.")


def for_each(prompt: str, seed: int, count: int, folder: Path | None = None) -> str | list[str]:
    """What `draw` takes for `count` pictures from `seed` on: the prompt, or one for each."""
    if not has_choices(prompt):
        return prompt
    return [expanded(prompt, seed + i, folder) for i in range(count)]


def _words(name: str, folder: Path | None) -> list[str]:
    """The lines of NAME.txt."""
    file = folder / f"{name}.txt" if folder is not None else Path(f"{name}.txt")
    try:
        lines = file.read_text("utf-8-sig").splitlines()[:MAX_LINES]
    except (OSError, UnicodeDecodeError):
        where = f"'{folder}'" if folder is not None else "this folder"
        raise SettingsError(
            f"There are no words for __{name}__: write {name}.txt, one a line, into {where}."
        ) from None
    words = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not words:
        raise SettingsError(f"'{file}' has no words: write one a line.")
    return words


def _filled(template: str, text: str) -> str:
    if not template:
        return text
    if "{prompt}" in template:
        return template.replace("{prompt}", text)
    return f"{text}, {template}" if text.strip() else template
