"""The studio's queue."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from atomdiff.errors import SettingsError
from atomdiff.serving.job_queue import MAX_WAITING, JobQueue, JobStatus


@pytest.fixture
def queue():
    queue = JobQueue()
    yield queue
    queue.close()


def gate() -> tuple[threading.Event, object]:
    """Work that steps until it is let through, or stopped."""
    through = threading.Event()

    def work(job):
        while not through.is_set():
            job.progress(0, 1)
            time.sleep(0.005)

    return through, work


def test_jobs_are_done_in_the_order_in_which_they_came(queue):
    seen = []
    jobs = [queue.submit(name, lambda job, name=name: seen.append(name)) for name in "abc"]
    assert [job.wait(5).state for job in jobs] == ["done"] * 3
    assert seen == ["a", "b", "c"]


def test_a_running_job_stops_at_its_next_step_and_the_next_one_starts(queue):
    _, work = gate()
    stopped, after = queue.submit("me", work), queue.submit("you", lambda job: job.add("drawn"))
    assert queue.status(after).ahead == 1
    assert queue.cancel("me") == 1
    assert stopped.wait(5).state == "cancelled"
    start = time.monotonic()
    assert after.wait(5).results == ("drawn",)
    assert time.monotonic() - start < 1


def test_a_cancel_is_for_ones_own_jobs_and_reaches_those_that_wait(queue):
    through, work = gate()
    first, mine = queue.submit("you", work), queue.submit("me", lambda job: job.add("never"))
    assert queue.cancel("me") == 1
    assert first.status().state in ("waiting", "running")
    through.set()
    assert first.wait(5).state == "done"
    assert mine.wait(5) == JobStatus("cancelled")
    assert queue.cancel("me") == 0


def test_what_was_finished_before_a_cancel_stays(queue):
    def work(job):
        job.add("one")
        while True:
            job.progress(1, 2)
            time.sleep(0.005)

    job = queue.submit("me", work)
    while not job.status().results:
        time.sleep(0.005)
    job.cancel()
    look = job.wait(5)
    assert (look.state, look.results) == ("cancelled", ("one",))


def test_errors_are_told_and_the_desk_goes_on(queue, caplog):
    def refuse(job):
        raise SettingsError("This cannot work: do that.")

    def break_down(job):
        raise KeyError("secret path")

    def overflow(job):
        raise RuntimeError("CUDA out of memory")

    looks = [queue.submit("me", work).wait(5) for work in (refuse, break_down, overflow)]
    assert [look.state for look in looks] == ["failed"] * 3
    assert looks[0].error == "This cannot work: do that."
    assert "terminal" in looks[1].error
    assert "secret" not in looks[1].error
    assert "secret" in caplog.text
    assert "not enough memory" in looks[2].error
    assert queue.submit("me", lambda job: None).wait(5).state == "done"


def test_one_person_cannot_fill_the_queue(queue):
    through, work = gate()
    for _ in range(MAX_WAITING):
        queue.submit("me", work)
    with pytest.raises(SettingsError, match="8 of your jobs wait already"):
        queue.submit("me", work)
    assert queue.current("me") is not None
    queue.submit("you", work)
    through.set()


def test_watching_tells_every_change_and_the_time_left(queue):
    def work(job):
        for step in range(4):
            job.progress(step, 4, "Drawing")
            job.show([b"png"])
            time.sleep(0.03)
        job.note("One thing.")
        job.note("One thing.")

    async def all_of(job):
        return [look async for look in queue.watch(job, 0.005)]

    looks = asyncio.run(all_of(queue.submit("me", work)))
    assert [look.done for look in looks] == sorted(look.done for look in looks)
    assert any(look.previews == (b"png",) for look in looks)
    assert any(look.seconds_left for look in looks)
    assert (looks[-1].state, looks[-1].notes, looks[-1].previews) == ("done", ("One thing.",), ())


def test_a_closed_desk_leaves_no_thread():
    queue = JobQueue()
    _, work = gate()
    job = queue.submit("me", work)
    queue.close(5)
    assert job.status().state == "cancelled"
    assert not any(thread.name == "atomdiff-queue" and thread.is_alive() for thread in threading.enumerate())
    with pytest.raises(SettingsError, match="closing"):
        queue.submit("me", work)
