"""Small pieces of HTML that the tabs share. Every text in them may be a stranger's, so all of it is
escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from atomdiff.serving.job_queue import JobStatus, duration


def progress(status: JobStatus) -> str:
    """A job as it is: its place in the queue, previews, a bar and the time left; then what is to be known."""
    notes = "".join(map(note, status.notes))
    if status.state == "failed":
        return error(status.error) + notes
    if status.state == "cancelled":
        return note("Stopped. What was finished is kept.") + notes
    if status.state == "done":
        return notes
    if status.state == "waiting":
        return bar(0, place(status.ahead, "you")) + notes
    left = f" · {duration(status.seconds_left)} left" if status.seconds_left is not None else ""
    steps = f" · step {status.done} of {status.total}" if status.total > 1 else "…"
    shown = "".join(f'<img alt="" src="{data_uri(preview)}">' for preview in status.previews)
    previews = f'<div class="previews">{shown}</div>' if shown else ""
    share = status.done / status.total if status.total else 0
    return previews + bar(share, f"{status.stage}{steps}{left}") + notes


def bar(share: float, text: str) -> str:
    """How much of something is done, and in words."""
    return (
        f'<div class="bar" role="progressbar" aria-valuenow="{100 * share:.0f}">'
        f'<i style="width:{share:.1%}"></i></div><p class="stage">{escape(text)}</p>'
    )


def place(ahead: int, whom: str) -> str:
    """A place in the queue, in words."""
    return f"Waiting: {ahead if ahead > 1 else 'one'} before {whom}" if ahead else "Starting…"


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


def swatches(pairs: Sequence[tuple[str, str]]) -> str:
    """Colours and what they stand for, a button each."""
    parts = (f'<button><i style="background:{c}"></i>{escape(name)}</button>' for c, name in pairs)
    return f'<div class="swatches">{"".join(parts)}</div>'


def data_uri(picture: bytes) -> str:
    """A PNG or JPEG file as an address that holds it."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
