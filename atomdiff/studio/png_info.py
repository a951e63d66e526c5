"""What a picture that someone drops says of itself: its settings, and the concept inside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from atomdiff.errors import ConceptError, ImageError
from atomdiff.sampling.infotext import Generation, of_picture, parse
from atomdiff.studio import html

SHOWN = 512  # pixels a side of what the page shows of it


@dataclass(frozen=True)
class PngInfo:
    """`text` is the generation text and `generation` what it says; `concept` the bytes of the concept
    inside, and `problem` why there is none although there should be."""

    text: str
    generation: Generation
    concept: bytes | None = None
    problem: str = ""
    shown: str = ""
    """The picture itself as a data URI, small."""

    def rows(self) -> list[tuple[str, str]]:
        """Names and values, for people."""
        told = [("Prompt", self.generation.prompt), ("Kept out", self.generation.negative)]
        told += list(self.generation.fields.items())
        return [*told, *self._about_concept()]

    def _about_concept(self) -> list[tuple[str, str]]:
        from atomdiff.files.safetensors_file import from_bytes

        if self.concept is None:
            return [("Concept inside", self.problem)]
        concept = from_bytes(self.concept)
        facts = (
            concept.title,
            f"called by “{concept.trigger}”" if concept.trigger else "",
            f"for {concept.base.name}" if concept.base.name else "",
            f"{len(self.concept):,} bytes",
        )
        return [("Concept inside", " · ".join(filter(None, facts)))]


def read(path: Path) -> PngInfo:
    """What a picture tells. Raises ImageError if it is none, or tells nothing at all."""
    from atomdiff.files import card
    from atomdiff.files.safetensors_file import from_bytes

    text = of_picture(path)
    concept, problem = None, ""
    try:
        data = card.read_file(path)
        concept = card.extract(data) if card.is_png(data) else None
        if concept is not None:
            from_bytes(concept)
    except ConceptError as error:
        concept, problem = None, str(error)
    if not text and concept is None and not problem:
        raise ImageError(
            f"{path.name!r} says nothing of how it was made: only the file as it was saved does, not a "
            "screenshot or a copy that a site made."
        )
    return PngInfo(text, parse(text), concept, problem, _shown(path))


def _shown(path: Path) -> str:
    """The picture, small; "" where it cannot be decoded. Limits as for every picture that strangers give."""
    from PIL import Image

    from atomdiff.files.images import MAX_PIXELS, encoded

    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return ""
            small = picture.convert("RGB")
        small.thumbnail((SHOWN, SHOWN))
    except Exception:  # decoders raise nearly anything on broken bytes; the words are there all the same
        return ""
    return html.data_uri(encoded(small))
