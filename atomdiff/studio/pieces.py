"""Small pieces of HTML that the tabs share. Every text in them may be a stranger's, so all of it is
escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from atomdiff.studio.desk import Look


def progress(look: Look) -> str:
    """A job as it is: its place in the queue, previews, a bar and the time left; then what is to be known."""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in look.notes)
    if look.state == "failed":
        return error(look.error) + notes
    if look.state == "cancelled":
        return f'<p class="note" role="status">Stopped. What was finished is kept.</p>{notes}'
    if look.state == "done":
        return notes
    if look.state == "waiting":
        return bar(0, _place(look.ahead)) + notes
    share = look.done / look.total if look.total else 0
    left = f" · {duration(look.seconds_left)} left" if look.seconds_left is not None else ""
    steps = f" · step {look.done} of {look.total}" if look.total > 1 else "…"
    shown = "".join(f'<img alt="" src="{data_uri(preview)}">' for preview in look.previews)
    previews = f'<div class="previews">{shown}</div>' if shown else ""
    return previews + bar(share, f"{look.stage}{steps}{left}") + notes


def error(sentence: str) -> str:
    """What went wrong."""
    return f'<p class="error" role="alert">{escape(sentence)}</p>' if sentence else ""


def note(sentence: str) -> str:
    """Something to know."""
    return f'<p class="note" role="status">{escape(sentence)}</p>'


def hint(sentence: str) -> str:
    """Small print."""
    return f'<p class="hint">{escape(sentence)}</p>'


def heading(title: str, text: str) -> str:
    """What the rest is about."""
    return f'<h3 class="heading">{escape(title)} <span>{escape(text)}</span></h3>'


def empty(title: str, text: str) -> str:
    """What stands where nothing is yet: what to do."""
    return f'<div class="empty"><h3>{escape(title)}</h3><p>{escape(text)}</p></div>'


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Names and what they are."""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows if value)
    return f'<dl class="facts">{lines}</dl>' if lines else ""


def data_uri(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def duration(seconds: float) -> str:
    """About how long, in words."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def _place(ahead: int) -> str:
    if ahead == 0:
        return "Starting…"
    return f"Waiting: {ahead} before you" if ahead > 1 else "Waiting: one before you"


def bar(share: float, text: str) -> str:
    """How much of something is done, and in words."""
    return (
        f'<div class="bar" role="progressbar" aria-valuenow="{100 * share:.0f}">'
        f'<i style="width:{share:.1%}"></i></div>'
        f'<p class="stage">{escape(text)}</p>'
    )
