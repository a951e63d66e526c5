"""How a card is drawn: 1080 × 1350 pixels, the format in which pictures are posted.

From the top: one to four pictures, with the size of the concept as a sticker; its name; trigger, class and
base on tags; a band of the maps it learned, which no two concepts share; what to do with the card; and a
small QR code that names the concept, so that a card is known for one when a site has taken the concept out of
it. The colours are those of the first picture.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from atomdiff.concept.concept import Concept
from atomdiff.errors import ImageError
from atomdiff.files import qr_image
from atomdiff.files.card import embed
from atomdiff.files.card_colours import FAINT, INK, PAPER, Colour, accents_of, ink_on, mix, neighbour
from atomdiff.files.fonts import fitted, font_for, showable
from atomdiff.files.images import encoded
from atomdiff.files.safetensors_file import from_bytes

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

SIZE = (1080, 1350)
MAX_PICTURES = 4
MARGIN, INSET = 36, 72  # outer frame; where the content starts
HERO, SMALL = 698, 221  # sides of the first picture and of those beside it
WIDTH = SIZE[0] - 2 * INSET


def draw(concept: Concept, data: bytes, pictures: Sequence[Image]) -> Image:
    """The card of a concept whose file is `data`, with square RGB pictures. Raises ImageError if over four.

    Learned maps fill the places of missing pictures.
    """
    if len(pictures) > MAX_PICTURES:
        raise ImageError(
            f"A card shows at most {MAX_PICTURES} pictures, not {len(pictures)}: choose the best."
        )
    accents = accents_of(pictures[0] if pictures else None, data)
    card = _background(accents)
    _paper(card)
    _pictures(card, concept, accents, pictures)
    _sticker(card, accents[1], _size(len(data)))
    y = _name(card, _called(concept, data), INSET + HERO + 22)
    y = _tags(card, concept, accents[0], y)
    _band(card, concept, accents, y + 30)
    _footer(card, data)
    return card


def make(data: bytes, pictures: Sequence[Image] = ()) -> bytes:
    """The card of a concept file as a PNG that carries the file. Raises ConceptError, ImageError."""
    from PIL.PngImagePlugin import PngInfo

    concept = from_bytes(data)
    texts = PngInfo()
    texts.add_text("parameters", parameters_text(concept, data))
    return embed(encoded(draw(concept, data, pictures), pnginfo=texts, optimize=True), data)


def parameters_text(concept: Concept, data: bytes) -> str:
    """What A1111 and its kin show of the card: a prompt to start from, the base, and which concept it is."""
    prompt = concept.training.get("instance_prompt") or f"{concept.trigger} {concept.class_word}".strip()
    title = " ".join(re.sub(r'[",:]', " ", concept.title).split())
    base = " ".join(re.sub(r'[",]', " ", concept.base.name or concept.base.architecture).split())
    digest = hashlib.sha256(data).hexdigest()[:12]
    fields = f'Model: "{base}", Concepts: "{title}:1:{digest}", Concept bytes: {len(data)}, Version: atomdiff'
    return f"{prompt}\n{fields}" if prompt else fields


# ------------------------------------------------------------------------------------------ parts


def _background(accents: tuple[Colour, Colour]) -> Image:
    """A slanted gradient from the first colour to its neighbour; to its opposite it would go through grey."""
    from PIL import Image as Pictures

    ends = mix(accents[0], PAPER, 0.18), neighbour(accents[0])
    columns, rows = SIZE[0] // 18, SIZE[1] // 18
    small = Pictures.new("RGB", (columns, rows))
    small.putdata(
        [mix(*ends, (0.4 * x / columns + 0.6 * y / rows)) for y in range(rows) for x in range(columns)]
    )
    return small.resize(SIZE, Pictures.Resampling.BICUBIC)


def _paper(card: Image) -> None:
    """The sheet that everything lies on, with a shadow."""
    from PIL import Image as Pictures
    from PIL import ImageDraw, ImageFilter

    box = (MARGIN, MARGIN, SIZE[0] - MARGIN, SIZE[1] - MARGIN)
    shade = Pictures.new("L", SIZE, 0)
    ImageDraw.Draw(shade).rounded_rectangle((box[0], box[1] + 8, box[2], box[3] + 8), 52, 110)
    card.paste((20, 16, 24), (0, 0), shade.filter(ImageFilter.GaussianBlur(12)))
    card.paste(PAPER, box[:2], _rounded((box[2] - box[0], box[3] - box[1]), 52))


def _pictures(
    card: Image, concept: Concept, accents: tuple[Colour, Colour], pictures: Sequence[Image]
) -> None:
    """One large square and three small ones beside it; without any picture one wall of maps."""
    from PIL import Image as Pictures
    from PIL import ImageOps

    if not pictures:
        wall = Pictures.new("RGB", (WIDTH, HERO), mix(PAPER, accents[0], 0.1))
        maps = _maps(concept, accents, 12, 9, 72, 4)
        wall.paste(maps, ((WIDTH - maps.width) // 2, (HERO - maps.height) // 2))
        card.paste(wall, (INSET, INSET), _rounded(wall.size, 28))
        return
    step = SMALL + (HERO - 3 * SMALL) // 2
    places = [(INSET, INSET)] + [(SIZE[0] - INSET - SMALL, INSET + i * step) for i in range(3)]
    for i, place in enumerate(places):
        side = SMALL if i else HERO
        if i < len(pictures):
            shown = ImageOps.fit(pictures[i].convert("RGB"), (side, side), Pictures.Resampling.LANCZOS)
        else:
            shown = _maps(concept, accents, 3, 3, SMALL // 3 - 1, 2, first=i).resize((side, side))
        card.paste(shown, place, _rounded((side, side), 28))


def _rounded(size: tuple[int, int], radius: int) -> Image:
    """A mask with smooth round corners."""
    from PIL import Image as Pictures
    from PIL import ImageDraw

    large = Pictures.new("L", (size[0] * 2, size[1] * 2), 0)
    ImageDraw.Draw(large).rounded_rectangle((0, 0, size[0] * 2 - 1, size[1] * 2 - 1), radius * 2, 255)
    return large.resize(size, Pictures.Resampling.LANCZOS)


def _font(size: int, text: str = "") -> Any:
    return font_for(text, size)


def _size(count: int) -> tuple[str, str]:
    kb = count / 1000
    return (f"{kb:.1f}" if kb < 99.95 else f"{kb:.0f}", "KB") if kb < 999.5 else (f"{kb / 1000:.1f}", "MB")


def _sticker(card: Image, colour: Colour, size: tuple[str, str]) -> None:
    """The size of the concept, in a circle that hangs from the lower right corner of the pictures."""
    from PIL import ImageDraw

    side = 172
    x, y = SIZE[0] - INSET - side + 12, INSET + HERO - 34
    card.paste(PAPER, (x, y), _rounded((side, side), side // 2))
    card.paste(colour, (x + 8, y + 8), _rounded((side - 16, side - 16), side // 2 - 8))
    pen, ink = ImageDraw.Draw(card), ink_on(colour)
    middle = (x + side / 2, y + side / 2)
    number = _font(62 if len(size[0]) < 4 else 54)
    pen.text((middle[0], middle[1] - 16), size[0], ink, number, "mm", stroke_width=2, stroke_fill=ink)
    pen.text((middle[0], middle[1] + 36), size[1], ink, _font(32), "mm", stroke_width=1, stroke_fill=ink)


def _called(concept: Concept, data: bytes) -> str:
    """What of the concept's name can be shown, else of its trigger, else its first digits."""
    said = filter(None, map(showable, (concept.title, concept.trigger)))
    return next(said, hashlib.sha256(data).hexdigest()[:12])


def _name(card: Image, title: str, y: int) -> int:
    """The name, as large as it fits; returns where it ends."""
    from PIL import ImageDraw

    room = WIDTH - 190
    fonts = [_font(size, title) for size in (92, 80, 70, 60, 52)]
    font = next((font for font in fonts if font.getlength(title) <= room), fonts[-1])
    place, text = (INSET, y + 78), fitted(title, font, room)
    ImageDraw.Draw(card).text(place, text, INK, font, "ls", stroke_width=2, stroke_fill=INK)
    return y + 120


def _tags(card: Image, concept: Concept, colour: Colour, y: int) -> int:
    """Trigger, class and base, each on a tag; returns where they end."""
    from PIL import ImageDraw

    pen = ImageDraw.Draw(card)
    x, height = INSET, 60
    base = concept.base.name.rsplit("/", 1)[-1] or concept.base.family
    for label, text in (("trigger", concept.trigger), ("class", concept.class_word), ("base", base)):
        text = showable(text)
        font = _font(34, text)
        start = x + 36 + round(_font(26).getlength(label))
        room = SIZE[0] - INSET - start - 24
        if not text or room < 60:
            continue
        text = fitted(text, font, room)
        end = start + round(font.getlength(text)) + 24
        tag = colour if label == "trigger" else mix(PAPER, colour, 0.14)
        card.paste(tag, (x, y), _rounded((end - x, height), height // 2))
        ink = ink_on(tag)
        pen.text((x + 24, y + 40), label, mix(tag, ink, 0.62), _font(26), "ls")
        pen.text((start, y + 41), text, ink, font, "ls", stroke_width=1, stroke_fill=ink)
        x = end + 14
    return y + height


def _band(card: Image, concept: Concept, accents: tuple[Colour, Colour], y: int) -> None:
    """A row of what was learned, and how much of it there is."""
    from PIL import ImageDraw

    band = _maps(concept, accents, 10, 1, 90, 4)
    card.paste(band, (INSET + (WIDTH - band.width) // 2, y), _rounded(band.size, 12))
    count = sum(len(tensor) for key, tensor in concept.atoms.items() if key[:4] in ("conv", "line"))
    where = f" in {count} maps like these" if count else ": a word"
    line = f"all it learned: {concept.num_parameters():,} numbers{where}"
    ImageDraw.Draw(card).text((INSET, y + 120), line, FAINT, _font(24), "ls")


def _maps(
    concept: Concept,
    accents: tuple[Colour, Colour],
    columns: int,
    rows: int,
    tile: int,
    gap: int,
    first: int = 0,
) -> Image:
    """Spatial maps (block maps, or else the learned word, if there are no others): the first colour where a
    number raises, the second where it lowers. Each is scaled to its own strongest number, so that a quiet
    layer is seen as well.
    """
    from PIL import Image as Pictures

    atoms = {key: _tiles(tensor) for key, tensor in concept.atoms.items()}
    shown = next(kind for kind in ("conv", "linear", "token") if any(key.startswith(kind) for key in atoms))
    maps = [matrix[:32, :32] for key, some in atoms.items() if key.startswith(shown) for matrix in some]
    made = Pictures.new("RGB", (columns * (tile + gap) - gap, rows * (tile + gap) - gap), PAPER)
    blank = mix(PAPER, accents[0], 0.08)
    for i in range(columns * rows):
        matrix = maps[(first + i * max(1, len(maps) // (columns * rows))) % len(maps)]
        top = float(matrix.abs().max()) or 1.0
        small = Pictures.new("RGB", (matrix.shape[1], matrix.shape[0]))
        small.putdata(
            [
                mix(blank, accents[value < 0], (abs(value) / top) ** 0.75)
                for value in matrix.flatten().tolist()
            ]
        )
        place = (i % columns * (tile + gap), i // columns * (tile + gap))
        made.paste(small.resize((tile, tile), Pictures.Resampling.NEAREST), place)
    return made


def _tiles(atoms: Tensor) -> Tensor:
    """Maps as they are; vectors (n, 1, d) as near to squares as d lets them be."""
    if atoms.shape[1] > 1:
        return atoms
    rows = max(r for r in range(1, math.isqrt(atoms.shape[2]) + 1) if atoms.shape[2] % r == 0)
    return atoms.unflatten(2, (rows, -1)).squeeze(1)


def _footer(card: Image, data: bytes) -> None:
    """What the picture is, and the small code that names its concept."""
    from PIL import ImageDraw

    pen = ImageDraw.Draw(card)
    code = qr_image.symbol(qr_image.mark(data), 4, "M")
    card.paste(code, (SIZE[0] - INSET - code.width, SIZE[1] - INSET - code.height - 6))
    lines = (
        ("This picture is the concept.", 36, INK, 1),
        ("Its file is inside, exact to the byte: keep the original,", 25, FAINT, 0),
        (f"and give it to atomdiff.  {hashlib.sha256(data).hexdigest()[:12]}", 25, FAINT, 0),
    )
    for i, (text, size, ink, bold) in enumerate(lines):
        place = (INSET, SIZE[1] - INSET - 84 + 37 * i)
        pen.text(place, text, ink, _font(size), "ls", stroke_width=bold, stroke_fill=ink)
