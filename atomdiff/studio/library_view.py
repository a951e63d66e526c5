"""The library as the page shows it: cards, what people drop or paste, and a concept in every form in which it
travels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from atomdiff.errors import AtomdiffError, ConceptError, ImageError
from atomdiff.studio import html
from atomdiff.studio.session import Studio

if TYPE_CHECKING:
    from PIL.Image import Image

    from atomdiff.files.read_any import Source
    from atomdiff.library import Entry

FORMS = {"file": ".safetensors", "card": "-card.png", "qr": "-qr.png"}
MAX_FILES = 50  # that are taken in at a time
ASSETS = Path(__file__).parents[2] / "assets"  # of a checkout
EXAMPLE = Path(__file__).with_name("dog.safetensors")


@dataclass(frozen=True)
class Added:
    """What came into the library, and why the rest did not."""

    entries: tuple[Entry, ...] = ()
    problems: tuple[str, ...] = ()

    def html(self) -> str:
        """Both."""
        names = ", ".join(entry.title for entry in self.entries)
        verb = "is" if len(self.entries) == 1 else "are"
        good = html.note(f"{names} {verb} in the library.") if names else ""
        return good + "".join(map(html.error, self.problems[:5]))


def add(studio: Studio, sources: Sequence[Source]) -> Added:
    """Takes in files and texts, each a concept; pictures that hold none are tried together, as photos of
    the QR codes of one."""
    entries: list[Entry] = []
    problems: list[str] = []
    rest: list[Source] = []
    for source in sources[:MAX_FILES]:
        try:
            entries.append(studio.library.add(source))
        except AtomdiffError as error:
            rest.append(source)
            folder = f"{source.parent}{os.sep}" if isinstance(source, Path) else ""  # no visitor's business
            problems.append(str(error).replace(folder, "") if folder else str(error))
    if len(rest) > 1:
        try:
            entries.append(studio.library.add(*rest))
            problems = []
        except AtomdiffError:  # each has its own sentence
            pass
    if len(sources) > MAX_FILES:
        problems.append(f"{MAX_FILES} files are taken in at a time: drop the other ones again.")
    return Added(tuple(entries), tuple(problems))


def example(studio: Studio) -> Path | None:
    """The bundled concept, unless it is not here or in the library already."""
    if not EXAMPLE.is_file():
        return None
    ident = hashlib.sha256(EXAMPLE.read_bytes()).hexdigest()
    return None if any(entry.id == ident for entry in studio.concepts()) else EXAMPLE


def add_example(studio: Studio) -> Added:
    """Takes the bundled concept in, with a picture of its subject; nothing where there is none to take."""
    path = example(studio)
    added = add(studio, [path] if path else [])
    for entry in added.entries:
        pictures = sorted((ASSETS / path.stem).glob("*.png")) if path else []
        if pictures and entry.thumbnail is None:
            studio.library.set_thumbnail(entry.id, pictures[0])
    return added


def annotate(studio: Studio, ident: str, name: str, tags: str) -> None:
    """Gives a concept its name in this library and its tags (written with commas). Raises ConceptError."""
    before = studio.library.get(ident)
    wanted = {tag.strip() for tag in tags.split(",") if tag.strip()}
    studio.library.tag(ident, *wanted)
    studio.library.untag(ident, *(set(before.tags) - wanted))
    if name.strip() != before.title:
        studio.library.rename(ident, name.strip())


def removed(studio: Studio) -> list[tuple[str, str]]:
    """(file name, id) of what lies in the library's trash."""
    try:
        return [(", ".join(names), ident) for ident, names in studio.library.removed().items()]
    except (AtomdiffError, OSError):  # emptied by hand this moment
        return []


# ----------------------------------------------------------------------------------------------- cards


def cards(entries: Sequence[Entry], base: str, chosen: str) -> str:
    """The concepts as cards; the one with the id `chosen` is marked, and those not for `base` say so."""
    return f'<div class="cards">{"".join(_card(entry, base, entry.id == chosen) for entry in entries)}</div>'


def _card(entry: Entry, base: str, chosen: bool) -> str:
    other = "" if entry.base == base else f'<p class="other">for {escape(entry.base or "another base")}</p>'
    tags = "".join(f'<span data-tag="{escape(tag)}">{escape(tag)}</span>' for tag in entry.tags[:6])
    return (
        f'<article class="concept{" chosen" if chosen else ""}">'
        f'<button type="button" data-id="{escape(entry.id)}" aria-pressed="{str(chosen).lower()}" '
        f'aria-label="{escape(entry.title)}">{thumbnail(entry)}'
        f'<span class="words"><strong>{escape(entry.title)}</strong>'
        f"<em>{escape(called(entry))}</em>"
        f"<small>{escape(entry.base)} · {size(entry.size)}</small></span></button>"
        f'{other}{f"""<p class="tags">{tags}</p>""" if tags else ""}</article>'
    )


def called(entry: Entry) -> str:
    """What a prompt calls it by."""
    return f"{entry.trigger} {entry.class_word}".strip()


def thumbnail(entry: Entry) -> str:
    """The picture of a concept, or its first letter on a colour of its own."""
    try:
        jpeg = entry.thumbnail.read_bytes() if entry.thumbnail else b""
    except OSError:  # removed this moment
        jpeg = b""
    if jpeg:
        return f'<img alt="" src="{html.data_uri(jpeg)}">'
    hue = int(entry.id[:4], 16) % 360
    return f'<span class="letter" style="--hue:{hue}">{escape(entry.title[:1].upper())}</span>'


def size(count: int) -> str:
    """Bytes, for people."""
    return f"{count:,} bytes" if count < 1000 else f"{count / 1000:.1f} KB"


def about(entry: Entry, base: str) -> str:
    """Everything about a concept, as HTML."""
    used = {0: "never", 1: "once"}.get(entry.times_used, f"{entry.times_used} times")
    rows = [("Base", entry.base), ("Size", f"{entry.size:,} bytes"), ("Drawn with", used)]
    other = f"It was trained on {entry.base or 'another base'}: choose that base on Draw to draw with it."
    warning = html.note(other) if entry.base != base else ""
    name = html.heading(entry.title, called(entry))
    return f'<div class="portrait">{thumbnail(entry)}</div>{name}{html.facts(rows)}{warning}'


# --------------------------------------------------------------------------------------------- sharing


def share(studio: Studio, owner: str, ident: str, form: str) -> Path:
    """A concept as a file to hand on: the concept itself, its card, or its QR codes. Raises ConceptError."""
    from atomdiff.files import atomic as files
    from atomdiff.files.card import concept_bytes
    from atomdiff.library.folder import slug

    entry = studio.library.get(ident)
    data = concept_bytes(entry.path)
    if form not in FORMS:
        raise ConceptError(f"A concept is handed on as {', '.join(FORMS)} or text, not {form[:20]!r}.")
    makers = {"card": lambda: _card_picture(studio, owner, entry, data), "qr": lambda: _codes(entry, data)}
    made = makers[form]() if form in makers else data
    folder = studio.history.folder / "cache" / "shared" / ident
    folder.mkdir(parents=True, exist_ok=True)
    return files.write(folder / f"{slug(entry.title)}{FORMS[form]}", made, "The file")


def text_of(studio: Studio, ident: str) -> str:
    """A concept as one line for a chat. Raises ConceptError."""
    from atomdiff.files.card import concept_bytes
    from atomdiff.files.text import to_text

    return to_text(concept_bytes(studio.library.get(ident).path))


def _card_picture(studio: Studio, owner: str, entry: Entry, data: bytes) -> bytes:
    """With the latest pictures that the owner drew with it, else its thumbnail."""
    from atomdiff.files import card_image
    from atomdiff.files.images import read_picture

    drawn = [one.file for one in studio.history.find(owner, entry.id[:12], 12) if one.kind == "picture"]
    pictures: list[Image] = []
    for path in drawn or ([entry.thumbnail] if entry.thumbnail is not None else []):
        try:
            if len(pictures) < card_image.MAX_PICTURES:
                pictures.append(read_picture(path, card_image.HERO)[0])
        except ImageError:  # a card is as good without
            continue
    return card_image.make(data, pictures)


def _codes(entry: Entry, data: bytes) -> bytes:
    from atomdiff.files import qr_image
    from atomdiff.files.images import encoded

    about = (entry.title, entry.trigger, entry.base, f"{len(data):,} bytes")
    return encoded(qr_image.sheet(data, " · ".join(dict.fromkeys(filter(None, about)))))
