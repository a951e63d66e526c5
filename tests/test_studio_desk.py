"""The studio's queue."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from atomdiff.errors import SettingsError
from atomdiff.studio.desk import MAX_WAITING, Desk, Look


@pytest.fixture
def desk():
    desk = Desk()
    yield desk
    desk.close()


def gate() -> tuple[threading.Event, object]:
    """Work that steps until it is let through, or stopped."""
    through = threading.Event()

    def work(job):
        while not through.is_set():
            job.progress(0, 1)
            time.sleep(0.005)

    return through, work


def test_jobs_are_done_in_the_order_in_which_they_came(desk):
    seen = []
    jobs = [desk.submit(name, lambda job, name=name: seen.append(name)) for name in "abc"]
    assert [job.wait(5).state for job in jobs] == ["done"] * 3
    assert seen == ["a", "b", "c"]


def test_a_running_job_stops_at_its_next_step_and_the_next_one_starts(desk):
    _, work = gate()
    stopped, after = desk.submit("me", work), desk.submit("you", lambda job: job.add("drawn"))
    assert desk.look(after).ahead == 1
    assert desk.cancel("me") == 1
    assert stopped.wait(5).state == "cancelled"
    start = time.monotonic()
    assert after.wait(5).results == ("drawn",)
    assert time.monotonic() - start < 1


def test_a_cancel_is_for_ones_own_jobs_and_reaches_those_that_wait(desk):
    through, work = gate()
    first, mine = desk.submit("you", work), desk.submit("me", lambda job: job.add("never"))
    assert desk.cancel("me") == 1
    assert first.look().state in ("waiting", "running")
    through.set()
    assert first.wait(5).state == "done"
    assert mine.wait(5) == Look("cancelled")
    assert desk.cancel("me") == 0


def test_what_was_finished_before_a_cancel_stays(desk):
    def work(job):
        job.add("one")
        while True:
            job.progress(1, 2)
            time.sleep(0.005)

    job = desk.submit("me", work)
    while not job.look().results:
        time.sleep(0.005)
    job.cancel()
    look = job.wait(5)
    assert (look.state, look.results) == ("cancelled", ("one",))


def test_errors_are_told_and_the_desk_goes_on(desk, caplog):
    def refuse(job):
        raise SettingsError("This cannot work: do that.")

    def break_down(job):
        raise KeyError("secret path")

    def overflow(job):
        raise RuntimeError("CUDA out of memory")

    looks = [desk.submit("me", work).wait(5) for work in (refuse, break_down, overflow)]
    assert [look.state for look in looks] == ["failed"] * 3
    assert looks[0].error == "This cannot work: do that."
    assert "terminal" in looks[1].error
    assert "secret" not in looks[1].error
    assert "secret" in caplog.text
    assert "not enough memory" in looks[2].error
    assert desk.submit("me", lambda job: None).wait(5).state == "done"


def test_one_person_cannot_fill_the_queue(desk):
    through, work = gate()
    for _ in range(MAX_WAITING):
        desk.submit("me", work)
    with pytest.raises(SettingsError, match="8 of your jobs wait already"):
        desk.submit("me", work)
    assert desk.current("me") is not None
    desk.submit("you", work)
    through.set()


def test_watching_tells_every_change_and_the_time_left(desk):
    def work(job):
        for step in range(4):
            job.progress(step, 4, "Drawing")
            job.show([b"png"])
            time.sleep(0.03)
        job.note("One thing.")
        job.note("One thing.")

    async def all_of(job):
        return [look async for look in desk.watch(job, 0.005)]

    looks = asyncio.run(all_of(desk.submit("me", work)))
    assert [look.done for look in looks] == sorted(look.done for look in looks)
    assert any(look.previews == (b"png",) for look in looks)
    assert any(look.seconds_left for look in looks)
    assert (looks[-1].state, looks[-1].notes, looks[-1].previews) == ("done", ("One thing.",), ())


def test_a_closed_desk_leaves_no_thread():
    desk = Desk()
    _, work = gate()
    job = desk.submit("me", work)
    desk.close(5)
    assert job.look().state == "cancelled"
    assert not any(thread.name == "atomdiff-desk" and thread.is_alive() for thread in threading.enumerate())
    with pytest.raises(SettingsError, match="closing"):
        desk.submit("me", work)
