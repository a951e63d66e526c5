"""What breaks down is told on the terminal, but no visitor can fill it: each place in the code tells of its
breakdowns a few times, in a few lines, and the page's library, which would print a traceback for whatever
junk it is sent, prints none.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections import Counter
from typing import Any

TIMES = 3  # that a place is told of
LENGTH = 4000  # letters of a traceback, its end
TOLD = (
    "atomdiff.serving.job_queue",
    "atomdiff.serving.app",
    "atomdiff.studio.security",
    "atomdiff.studio.app",
    "uvicorn.error",
)
"""The loggers that a visitor can cause to write."""


class RateLimit(logging.Filter):
    """Lets the first TIMES records of each place in the code through. A record's place is where its exception
    was raised, or else where it was written; there are only so many, so a log of them ends."""

    def __init__(self) -> None:
        super().__init__()
        self._told: Counter[tuple[Any, ...]] = Counter()
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        place: tuple[Any, ...] = (record.pathname, record.lineno)
        if error is not None:
            place = _raised(error)
            record.exc_text = "".join(traceback.format_exception(error))[-LENGTH:]
        with self._lock:
            self._told[place] += 1
            count = self._told[place]
        if count == TIMES:
            record.msg = f"{record.msg} (the like of it is not told again)"
        return count <= TIMES


def limit_logs() -> None:
    """Limits every logger of TOLD."""
    for name in TOLD:
        logger = logging.getLogger(name)
        if not any(isinstance(known, RateLimit) for known in logger.filters):
            logger.addFilter(RateLimit())


def _raised(error: BaseException) -> tuple[Any, ...]:
    """(kind, file, line) of the innermost frame."""
    place: tuple[Any, ...] = (type(error),)
    for frame, line in traceback.walk_tb(error.__traceback__):
        place = (type(error), frame.f_code.co_filename, line)
    return place
