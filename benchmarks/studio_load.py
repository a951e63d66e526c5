"""Many people at once: do they get their own pictures, all of them, and does the studio stay as it was?

    python -m benchmarks.studio_load [--clients 20] [--minutes 5] [--check]

A real studio on the pocket model in a process of its own. Every client draws with a prompt and a seed of its
own and cancels every third drawing, every other client through the queue as a browser does; each picture is
downloaded, and its `parameters` must say what was asked for. Memory and threads are compared with those after
a warm-up of a fifth of the time. Afterwards, on the quiet desk, everyone draws the last picture again, which
must be the same to the pixel, and a long drawing is cancelled while a short one waits behind it: how long
until the short one starts is the time until it is there, less what it takes alone. With --check the exit
status is 1 if a target is missed, and the last line names those.
"""

from __future__ import annotations

import io
import json
import math
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image

from atomdiff.sampling.infotext import parse
from benchmarks import report
from benchmarks.serving import served

STEPS = 3
LONG = 200  # steps of what is to be cancelled
IDLE = 12.0  # seconds after which a thread that waits for work is let go, at the next request
PROBES = 5
USUAL: tuple[Any, ...] = (-1, "", "dpm++", 1, "", False, "", "", 1, [])  # guidance, size, sampler, count, ...
STOPPED = "Stopped, as asked."


class Visitor:
    """One client, who knows what was asked for and what came."""

    def __init__(self, url: str, number: int) -> None:
        self.number, self.random = number, random.Random(number)
        self.http = httpx.Client(base_url=url, timeout=600)
        self.seen: Counter[str] = Counter()
        self.problems: set[str] = set()
        self.ids: set[int] = set()
        self.last: tuple[str, int, bytes] | None = None
        """Prompt, seed and pixels."""

    def call(self, name: str, *data: object) -> Any:
        """What an endpoint gives, by a plain request; a text says what went wrong."""
        answer = self.http.post(f"gradio_api/run/{name}", json=self._body(data))
        return answer.json()["data"][0] if answer.status_code == 200 else answer.text

    def queue(self, name: str, *data: object) -> Any:
        """The same through Gradio's queue, as the page does it."""
        joined = self.http.post(f"gradio_api/call/{name}", json=self._body(data))
        if joined.status_code != 200:
            return joined.text
        event = ""
        with self.http.stream("GET", f"gradio_api/call/{name}/{joined.json()['event_id']}") as stream:
            for line in stream.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    event = value
                elif field == "data" and event in ("complete", "error"):
                    told = json.loads(value)
                    return told[0] if event == "complete" else str(told)
        return "The stream ended without an answer."

    def _body(self, data: Sequence[object]) -> dict[str, object]:
        return {"data": list(data), "session_hash": f"visitor{self.number}"}

    def draw(self, steps: int = STEPS) -> None:
        """A picture of the visitor's own."""
        seed = self.random.randrange(2**31)
        prompt = f"a {self.random.choice(('teal', 'red'))} dog, picture {seed} of visitor {self.number}"
        pixels = self.drawn(prompt, seed, steps)
        if pixels is not None and steps == STEPS:
            self.last = prompt, seed, pixels

    def drawn(self, prompt: str, seed: int, steps: int) -> bytes | None:
        """Its pixels; what came of it is counted under drawn, stopped, swapped, lost or failed."""
        ask = self.queue if self.number % 2 else self.call
        told = ask("draw", prompt, [], "", seed, steps, *USUAL)
        if isinstance(told, str):
            stopped = STOPPED in told
            self.seen["stopped" if stopped else "failed"] += 1
            self.problems |= set() if stopped else {told[:200]}
            return None
        if len(told) != 1:
            self.seen["lost"] += 1
            return None
        self.seen["drawn"] += 1
        self.ids.add(told[0]["id"])
        file = self.http.get(f"gradio_api/file={told[0]['file']['path']}").content
        with Image.open(io.BytesIO(file)) as picture:
            made, pixels = parse(picture.info["parameters"]), picture.tobytes()
        if (made.prompt, made.whole("Seed"), made.whole("Steps")) != (prompt, seed, steps):
            self.seen["swapped"] += 1
        return pixels

    def draw_again(self) -> None:
        """The last picture, drawn among many others, is the same on the quiet desk."""
        if self.last is not None and self.drawn(*self.last[:2], STEPS) != self.last[2]:
            self.seen["swapped"] += 1

    def change_mind(self) -> None:
        """A long drawing that is cancelled, now while it waits and now while it is drawn."""
        drawing = threading.Thread(target=self.draw, args=(LONG,))
        drawing.start()
        time.sleep(self.random.random())
        while drawing.is_alive():
            self.call("cancel")
            drawing.join(0.5)

    def visit(self, until: float) -> None:
        """Draws, and cancels every third drawing."""
        while time.monotonic() < until:
            for act in (self.draw, self.draw, self.change_mind):
                act()

    def check_history(self) -> None:
        """All that was drawn, and nothing of anybody else's, is in the visitor's history."""
        found: list[dict] = []
        while page := self.call("history", "", 200, len(found)):
            found += page
        self.seen["lost"] += len(self.ids - {one["id"] for one in found})
        self.seen["swapped"] += sum(
            not parse(one["text"]).prompt.endswith(f" of visitor {self.number}") for one in found
        )


def together(visitors: Sequence[Visitor], act: Callable[[Visitor], None]) -> None:
    """Everyone at once. Raises what one of them raised."""
    with ThreadPoolExecutor(len(visitors)) as pool:
        list(pool.map(act, visitors))


def usage(process: psutil.Process, visitor: Visitor) -> tuple[float, int]:
    """(MB, threads) of a process, once it is quiet and has let go of the threads that it has no work for."""
    time.sleep(IDLE)
    visitor.call("cancel")
    time.sleep(1)
    return process.memory_info().rss / 1e6, process.num_threads()


def start_after_cancel(one: Visitor, other: Visitor) -> float:
    """Seconds from a cancel until the job behind it starts: the worst of some; infinite if a cancel did not
    stop what it was to stop."""
    alone = statistics.median(_timed(other) for _ in range(PROBES))
    waits, before = [], one.seen["stopped"]
    for _ in range(PROBES):
        long = threading.Thread(target=one.draw, args=(LONG,))
        long.start()
        time.sleep(0.5)
        came: list[float] = []
        short = threading.Thread(target=lambda into=came: into.append(_timed(other, ends=True)))
        short.start()
        time.sleep(0.3)
        start = time.monotonic()
        one.call("cancel")
        short.join()
        long.join()
        waits.append(came[0] - start - alone)
    return max(0.0, *waits) if one.seen["stopped"] == before + PROBES else math.inf


def _timed(visitor: Visitor, ends: bool = False) -> float:
    """Seconds that a short drawing takes; with `ends` the moment at which it was there."""
    start = time.monotonic()
    visitor.draw(1)
    return time.monotonic() - (0 if ends else start)


def main() -> None:
    """The command."""
    parser = report.command("studio_load", __doc__)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=5)
    options = parser.parse_args()
    if options.clients < 2 or options.minutes <= 0:
        parser.error("--clients is at least 2 and --minutes more than 0.")
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as studio:
        process = psutil.Process(studio.process.pid)
        visitors = [Visitor(studio.url, number) for number in range(options.clients)]
        seconds = 60 * options.minutes
        together(visitors, lambda visitor: visitor.visit(time.monotonic() + seconds / 5))
        before = usage(process, visitors[0])
        together(visitors, lambda visitor: visitor.visit(time.monotonic() + seconds))
        after = usage(process, visitors[0])
        wait = start_after_cancel(*visitors[:2])
        together(visitors, Visitor.draw_again)
        together(visitors, Visitor.check_history)
        broken = studio.log.read_text().count("Traceback")
    seen: Counter[str] = sum((visitor.seen for visitor in visitors), Counter())
    title = f"{options.clients} clients, {options.minutes:g} minutes"
    grown = [
        (f"{what} after warm-up, at the end", f"{a:.0f}, {b:.0f}")
        for what, a, b in zip(("MB", "threads"), before, after, strict=True)
    ]
    counts = [(what, str(seen[what])) for what in ("drawn", "stopped", "failed", "lost", "swapped")]
    for problem in sorted(set().union(*(visitor.problems for visitor in visitors)))[:5]:
        print(f"failed: {problem}")
    targets = [
        report.Target("pictures drawn", seen["drawn"], low=options.clients),
        report.Target("drawings cancelled", seen["stopped"], low=1),
        report.Target("pictures lost", seen["lost"], high=0),
        report.Target("pictures swapped", seen["swapped"], high=0),
        report.Target("requests failed", seen["failed"] + broken, high=0),
        report.Target("leftover threads", max(0, after[1] - before[1]), high=0),
        report.Target("growth of memory", 100 * (after[0] / before[0] - 1), high=5, unit="%"),
        report.Target("the next job starts after a cancel", wait, high=1, unit="s"),
    ]
    report.conclude(options, title, (("", "count"), counts + grown), targets)


if __name__ == "__main__":
    main()
