"""The library as the page shows it: cards, what people drop or paste, and a concept in every form in which
it travels."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from atomdiff.errors import AtomdiffError, ConceptError
from atomdiff.studio import pieces

if TYPE_CHECKING:
    from PIL.Image import Image

    from atomdiff.files.read_any import Source
    from atomdiff.library import Entry
    from atomdiff.studio.house import Studio

FORMS = ("file", "card", "qr")
MAX_FILES = 50  # that are taken in at a time
ASSETS = Path(__file__).parents[2] / "assets"  # of a checkout
EXAMPLE = Path(__file__).with_name("dog.safetensors")
EMPTY = pieces.empty(
    "No concepts yet",
    "Drop a concept file, a card or a screenshot of its QR codes anywhere on this page, or paste its text. "
    "Or make your own under Train.",
)
NONE_FOUND = pieces.empty("Nothing found", "No concept has all of these words in its name, trigger or tags.")


@dataclass(frozen=True)
class Taken:
    """What came into the library, and why the rest did not."""

    entries: tuple[Entry, ...] = ()
    problems: tuple[str, ...] = ()

    def told(self) -> str:
        """Both, as HTML."""
        names = ", ".join(entry.title for entry in self.entries)
        verb = "is" if len(self.entries) == 1 else "are"
        good = pieces.note(f"{names} {verb} in the library.") if names else ""
        return good + "".join(map(pieces.error, self.problems[:5]))


def take(studio: Studio, sources: Sequence[Source]) -> Taken:
    """Takes in files and texts, each a concept; pictures that hold none are tried together, as photos of the
    QR codes of one."""
    entries: list[Entry] = []
    problems: list[str] = []
    rest: list[Source] = []
    for source in sources[:MAX_FILES]:
        try:
            entries.append(studio.library.add(source))
        except AtomdiffError as error:
            rest.append(source)
            problems.append(_without_folder(str(error), source))
    if len(rest) > 1:
        try:
            entries.append(studio.library.add(*rest))
            problems = []
        except AtomdiffError:  # each has its own sentence
            pass
    if len(sources) > MAX_FILES:
        problems.append(f"{MAX_FILES} files are taken in at a time: drop the other ones again.")
    return Taken(tuple(entries), tuple(problems))


def found(studio: Studio, words: str) -> list[Entry]:
    """The concepts that have all the words; none if the library cannot be read at the moment."""
    try:
        return studio.library.find(words)
    except AtomdiffError:
        return []


def example(studio: Studio) -> Path | None:
    """The bundled concept, unless it is not here or in the library already."""
    if not EXAMPLE.is_file():
        return None
    ident = hashlib.sha256(EXAMPLE.read_bytes()).hexdigest()
    return None if any(entry.id == ident for entry in studio.concepts()) else EXAMPLE


def take_example(studio: Studio) -> Taken:
    """Takes the bundled concept in, with a picture of its subject; nothing where there is none to take."""
    path = example(studio)
    taken = take(studio, [path] if path else [])
    for entry in taken.entries:
        pictures = sorted((ASSETS / path.stem).glob("*.png")) if path else []
        if pictures and entry.thumbnail is None:
            studio.library.set_thumbnail(entry.id, pictures[0])
    return taken


# ----------------------------------------------------------------------------------------------- cards


def cards(entries: Sequence[Entry], base: str, chosen: str) -> str:
    """The concepts as cards; the one with the id `chosen` is marked, and those not for `base` say so."""
    return f'<div class="shelf">{"".join(_card(entry, base, entry.id == chosen) for entry in entries)}</div>'


def _card(entry: Entry, base: str, chosen: bool) -> str:
    called = f"{entry.trigger} {entry.class_word}".strip()
    other = "" if entry.base == base else f'<p class="other">for {escape(entry.base or "another base")}</p>'
    tags = "".join(f'<span data-tag="{escape(tag)}">{escape(tag)}</span>' for tag in entry.tags[:6])
    return (
        f'<article class="concept{" chosen" if chosen else ""}">'
        f'<button type="button" data-id="{escape(entry.id)}" aria-pressed="{str(chosen).lower()}" '
        f'aria-label="{escape(entry.title)}">{thumbnail(entry)}'
        f'<span class="words"><strong>{escape(entry.title)}</strong>'
        f"<em>{escape(called)}</em><small>{escape(entry.base)} · {size(entry.size)}</small></span></button>"
        f'{other}{f"""<p class="tags">{tags}</p>""" if tags else ""}</article>'
    )


def thumbnail(entry: Entry) -> str:
    """The picture of a concept, or its first letter on a colour of its own."""
    try:
        jpeg = entry.thumbnail.read_bytes() if entry.thumbnail else b""
    except OSError:  # removed this moment
        jpeg = b""
    if jpeg:
        return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'
    hue = int(entry.id[:4], 16) % 360
    return f'<span class="letter" style="--hue:{hue}">{escape(entry.title[:1].upper())}</span>'


def size(count: int) -> str:
    """Bytes, for people."""
    return f"{count:,} bytes" if count < 1000 else f"{count / 1000:.1f} KB"


def about(entry: Entry, base: str) -> str:
    """Everything about a concept, as HTML."""
    used = "never" if not entry.times_used else f"{entry.times_used} times"
    rows = [
        ("Base", entry.base),
        ("Size", f"{entry.size:,} bytes"),
        ("Drawn with", "once" if entry.times_used == 1 else used),
    ]
    warning = ""
    if entry.base != base:
        warning = pieces.note(
            f"It was trained on {entry.base or 'another base'}: choose that base on Draw to draw with it."
        )
    name = pieces.heading(entry.title, f"{entry.trigger} {entry.class_word}".strip())
    return f'<div class="portrait">{thumbnail(entry)}</div>{name}{pieces.facts(rows)}{warning}'


# --------------------------------------------------------------------------------------------- sharing


def shared(studio: Studio, owner: str, ident: str, form: str) -> Path:
    """A concept as a file to hand on: the concept itself, its card, or its QR codes. Raises ConceptError."""
    from atomdiff.files import atomic as files
    from atomdiff.files.card import concept_bytes
    from atomdiff.library.folder import slug

    entry = studio.library.get(ident)
    data = concept_bytes(entry.path)
    endings = {"file": ".safetensors", "card": "-card.png", "qr": "-qr.png"}
    if form not in endings:
        raise ConceptError(f"A concept is handed on as {', '.join(FORMS)} or text, not {form[:20]!r}.")
    made = data
    if form == "card":
        made = _card_picture(studio, owner, entry, data)
    elif form == "qr":
        made = _codes(entry, data)
    folder = studio.history.folder / "cache" / "shared" / ident
    folder.mkdir(parents=True, exist_ok=True)
    return files.write(folder / f"{slug(entry.title)}{endings[form]}", made, "The file")


def text_of(studio: Studio, ident: str) -> str:
    """A concept as one line for a chat. Raises ConceptError."""
    from atomdiff.files.card import concept_bytes
    from atomdiff.files.text import to_text

    return to_text(concept_bytes(studio.library.get(ident).path))


def _card_picture(studio: Studio, owner: str, entry: Entry, data: bytes) -> bytes:
    """With the latest pictures that the owner drew with it, else its thumbnail."""
    from atomdiff.errors import ImageError
    from atomdiff.files import card_image as card_art
    from atomdiff.files.images import read_picture

    drawn = [found for found in studio.history.find(owner, entry.id[:12], 12) if found.kind == "picture"]
    pictures: list[Image] = []
    paths = [found.file for found in drawn]
    if not paths and entry.thumbnail is not None:
        paths = [entry.thumbnail]
    for path in paths:
        try:
            if len(pictures) < card_art.MAX_PICTURES:
                pictures.append(read_picture(path, card_art.HERO)[0])
        except ImageError:  # a card is as good without
            continue
    return card_art.make(data, pictures)


def _codes(entry: Entry, data: bytes) -> bytes:
    import io

    from atomdiff.files import qr_image as symbols

    about = (entry.title, entry.trigger, entry.base, f"{len(data):,} bytes")
    buffer = io.BytesIO()
    symbols.sheet(data, " · ".join(dict.fromkeys(filter(None, about)))).save(buffer, "PNG")
    return buffer.getvalue()


def _without_folder(sentence: str, source: Source) -> str:
    """Uploads lie in a folder of the server's, which is no visitor's business."""
    if not isinstance(source, Path):
        return sentence
    return sentence.replace(f"{source.parent}{os.sep}", "")


# -------------------------------------------------------------------------------------------- changing


def noted(studio: Studio, ident: str, name: str, tags: str) -> None:
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
