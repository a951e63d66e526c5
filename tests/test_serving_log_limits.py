"""What breaks down is told, but fills no log."""

from __future__ import annotations

import logging

from atomdiff.serving.log_limits import LENGTH, TIMES, RateLimit


def breaking(message: str) -> BaseException:
    try:
        raise KeyError(message)
    except KeyError as error:
        return error


def told(handler: list[str]) -> logging.Logger:
    logger = logging.Logger("a logger of its own")
    logger.addFilter(RateLimit())
    keep = logging.Handler()
    keep.setFormatter(logging.Formatter())
    keep.emit = lambda record: handler.append(keep.format(record))
    logger.addHandler(keep)
    return logger


def test_each_place_is_told_of_a_few_times():
    lines: list[str] = []
    logger = told(lines)
    for _ in range(50):
        logger.warning("broke", exc_info=breaking("x"))
    assert len(lines) == TIMES
    assert "KeyError: 'x'" in lines[0]
    assert "not told again" in lines[-1].split("\n")[0]
    try:
        raise KeyError("elsewhere")
    except KeyError as error:
        logger.warning("broke", exc_info=error)
    assert "elsewhere" in lines[-1]


def test_without_an_exception_the_place_is_where_it_was_written():
    lines: list[str] = []
    logger = told(lines)
    for i in range(50):
        logger.warning("junk %d", i)
    logger.warning("another")
    assert lines[:2] == ["junk 0", "junk 1"]
    assert lines[TIMES:] == ["another"]


def test_a_long_message_is_cut():
    lines: list[str] = []
    told(lines).warning("broke", exc_info=breaking("x" * 1_000_000))
    assert len(lines[0]) < LENGTH + 100
