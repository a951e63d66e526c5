"""Letters for what people call things: a font that has them, and what remains where none does.

Pillow's own font has hardly more than ASCII. matplotlib, which is there anyway, brings DejaVu Sans: Latin
with its accents, Greek, Cyrillic and more. Chinese, Japanese, Korean and the others are looked for among the
fonts of the system, under the names that Windows, macOS and Linux give them. A letter that none of them has
is left out, never shown as a box; what is drawn is only a label, and the text itself travels beside it.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SYSTEM = (
    *("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "NotoSansCJKjp-Regular.otf", "NotoSansSC-Regular.otf"),
    *("wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "fonts-japanese-gothic.ttf"),
    *("NanumGothic.ttf", "FreeSans.ttf"),
    *("PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc", "Arial Unicode.ttf"),
    *("msyh.ttc", "YuGothM.ttc", "malgun.ttf", "segoeui.ttf", "Nirmala.ttc", "Nirmala.ttf", "leelawui.ttf"),
)
_OWN = ""  # Pillow's own font
_NO_LETTER = "\U0010fffe"  # no font has one for it
_PROBE = 20  # pixels, at which letters are told from the box for a missing one


def font_for(text: str, size: float) -> Any:
    """The first font that has all the letters of a text, else the one that lacks fewest; of `size` pixels."""
    return _opened(_face(text), size)


def showable(text: str) -> str:
    """The text in one line, without what its font has no letters for."""
    face = _face(text)
    return " ".join("".join(letter for letter in text if letter.isspace() or _has(face, letter)).split())


def fitted(text: str, font: Any, width: float) -> str:
    """The text in one line, cut with an ellipsis where it would run out of `width` pixels."""
    line = " ".join(text.split())
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"


def _face(text: str) -> str:
    letters = {letter for letter in text if not letter.isspace()}
    fewest, best = len(letters) + 1, _OWN
    for face in (_OWN, _brought(), *SYSTEM):
        lacking = sum(not _has(face, letter) for letter in letters)
        if lacking < fewest:
            fewest, best = lacking, face
        if not fewest:
            break
    return best


@cache
def _brought() -> str:
    """The file of DejaVu Sans in matplotlib, which need not be imported for it."""
    found = find_spec("matplotlib")
    places = [Path(folder) for folder in (found.submodule_search_locations or ())] if found else []
    files = [place / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf" for place in places]
    return next((str(file) for file in files if file.is_file()), _OWN)


@cache
def _opened(face: str, size: float) -> Any:
    """The font, or None if the system has none of this name."""
    from PIL import ImageFont

    try:
        return ImageFont.truetype(face, size) if face else ImageFont.load_default(size)
    except OSError:
        return None


@cache
def _has(face: str, letter: str) -> bool:
    """Whether a font has this letter: it is drawn otherwise than what no font has."""
    font = _opened(face, _PROBE)
    if font is None:
        return False
    drawn, box = font.getmask(letter), font.getmask(_NO_LETTER)
    return bool(bytes(drawn)) and (drawn.size, bytes(drawn)) != (box.size, bytes(box))
