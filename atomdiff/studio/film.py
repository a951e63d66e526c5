"""Small drawings for the page of a training: the loss as a line, and the pictures along the way."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 640, 150
POINTS = 400  # of the line at most
SIDE = 128  # pixels of a small picture


def loss_line(losses: Sequence[tuple[int, float]], steps: int) -> str:
    """The loss over the steps as an SVG: every value faint, the running mean strong; "" while
    there are too few for a line."""
    if len(losses) < 5:
        return ""
    gap = -(-len(losses) // POINTS)
    smooth = _smooth([loss for _, loss in losses])
    kept = [(step, loss, mean) for (step, loss), mean in zip(losses, smooth, strict=True)][::gap]
    top = sorted(loss for _, loss in losses)[int(0.98 * (len(losses) - 1))] * 1.1 or 1.0

    def line(values: Sequence[tuple[int, float]]) -> str:
        return " ".join(
            f"{WIDTH * step / max(1, steps):.1f},{HEIGHT * (1 - min(1.0, value / top)):.1f}"
            for step, value in values
        )

    faint, strong = line([(s, loss) for s, loss, _ in kept]), line([(s, mean) for s, _, mean in kept])
    return (
        f'<figure class="loss"><svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="Loss"><polyline class="faint" points="{faint}"/><polyline points="{strong}"/></svg>'
        f"<figcaption><span>Loss {smooth[-1]:.3f}</span><span>step {steps}</span></figcaption></figure>"
    )


def strip(frames: Mapping[int, Sequence[Path]], rows: int = 2) -> str:
    """The pictures of every state side by side, a column for each; the latest stands at the right end."""
    columns = "".join(
        f"<figure><figcaption>{step}</figcaption>{''.join(_image(path) for path in paths[:rows])}</figure>"
        for step, paths in frames.items()
    )
    return f'<div class="film" tabindex="0" aria-label="Pictures by step">{columns}</div>' if columns else ""


def tiles(pictures: Sequence[tuple[bytes, str]]) -> str:
    """Pictures (PNG or JPEG files) side by side, each above its caption."""
    shown = "".join(map(_tile, pictures))
    return f'<div class="tiles">{shown}</div>' if shown else ""


def _tile(captioned: tuple[bytes, str]) -> str:
    data, caption = captioned[0], escape(captioned[1])
    under = f'<figcaption title="{caption}">{caption}</figcaption>' if caption else ""
    return f'<figure><img alt="{caption}" src="{_uri(data)}">{under}</figure>'


@functools.lru_cache(maxsize=512)
def _small(path: Path, changed: int) -> bytes:
    from PIL import Image

    with Image.open(path) as image:
        picture = image.convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    return packed(picture)


def packed(picture: object) -> bytes:
    """A PIL picture as a file: PNG where that is small anyway."""
    buffer = io.BytesIO()
    if max(picture.size) <= 64:  # type: ignore[attr-defined]
        picture.save(buffer, "PNG")  # type: ignore[attr-defined]
    else:
        picture.save(buffer, "JPEG", quality=85)  # type: ignore[attr-defined]
    return buffer.getvalue()


def _image(path: Path) -> str:
    try:
        return f'<img alt="" src="{_uri(_small(path, path.stat().st_mtime_ns))}">'
    except OSError:  # removed, or being written this moment
        return ""


def _uri(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _smooth(values: Sequence[float]) -> list[float]:
    """The running mean, over about the last twentieth."""
    share = min(1.0, 20 / len(values))
    means, mean = [], values[0]
    for value in values:
        mean += share * (value - mean)
        means.append(mean)
    return means
