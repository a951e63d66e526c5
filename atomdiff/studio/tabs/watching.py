"""The training on the page: how far it is, its pictures, and the timeline to choose a state from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from atomdiff.errors import AtomdiffError
from atomdiff.studio import film, pieces, teaching
from atomdiff.studio.course import MAX_STEPS, Course, View, Wish
from atomdiff.studio.house import Studio
from atomdiff.studio.people import owner
from atomdiff.studio.tabs import concepts, sending

if TYPE_CHECKING:
    from atomdiff.studio.page import Page

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
EMPTY = pieces.empty(
    "Teach it your subject",
    "Drop about five pictures of one thing, say what it is, and press Train. Its progress appears here; you "
    "may close the page meanwhile.",
)
SHOWN = (
    "status", "loss", "film", "stop", "go", "resume", "delete", "choice", "state", "which", "clock", "seen",
)  # fmt: skip
UNSET = 1.5  # of a slider that the browser has not laid out yet, which would send nothing


def connect(page: Page, asked: list[Any], wish: Callable[[list[Any]], Wish]) -> None:
    """Connects the view of the training, and begins those that `wish` makes of the values of `asked`."""
    studio, shared = page.studio, page.shared
    shown = [shared[f"train.{name}"] for name in SHOWN]
    both = [*shown, shared["train.shown"]]

    def look(ident: str, seen: str, request: gr.Request) -> list[Any]:
        return _looked(studio, owner(request), ident, seen)

    def load(request: gr.Request) -> list[Any]:
        courses = studio.trainings.of(owner(request))
        ident = courses[0].ident if courses else ""
        return [*_looked(studio, owner(request), ident, ""), ident]

    def start(request: gr.Request, *values: Any) -> list[Any]:
        try:
            course = studio.trainings.start(owner(request), wish(list(values)))
        except AtomdiffError as error:
            return [pieces.error(str(error)), *[gr.skip()] * len(shown)]
        return [*_looked(studio, owner(request), course.ident, ""), course.ident]

    def attempted(change: Any, ident: str, me: str) -> list[Any]:
        try:
            change(me, ident)
        except AtomdiffError as error:
            return [pieces.error(str(error)), *[gr.skip()] * len(shown)]
        courses = [course.ident for course in studio.trainings.of(me)]
        ident = ident if ident in courses else (courses or [""])[0]
        return [*_looked(studio, me, ident, ""), ident]

    def resume(ident: str, request: gr.Request) -> list[Any]:
        return attempted(studio.trainings.go_on, ident, owner(request))

    def delete(ident: str, request: gr.Request) -> list[Any]:
        return attempted(studio.trainings.delete, ident, owner(request))

    def stop(request: gr.Request) -> None:
        studio.trainings.stop(owner(request))

    def choose(ident: str, request: gr.Request) -> list[Any]:
        return [*_looked(studio, owner(request), ident or "", ""), ident or ""]

    at = shared["train.shown"]
    shared["train.clock"].tick(look, [at, shared["train.seen"]], shown, **QUIET)
    page.blocks.load(load, None, both, **QUIET)
    shared["train.go"].click(start, asked, both, trigger_mode="once", **QUIET)
    shared["train.stop"].click(stop, None, None, queue=False, **QUIET)
    shared["train.resume"].click(resume, at, both, **QUIET)
    shared["train.delete"].click(delete, at, both, **QUIET)
    shared["train.which"].input(choose, shared["train.which"], both, **QUIET)
    _connect_timeline(page)


def _connect_timeline(page: Page) -> None:
    studio, shared = page.studio, page.shared
    at = [shared["train.shown"], shared["train.state"]]
    outputs = [shared[f"train.{name}"] for name in ("state", "frame", "gallery", "draw", "told")]

    async def show(ident: str, state: float, request: gr.Request) -> AsyncIterator[list[Any]]:
        """The pictures of a state; one that has none yet is drawn first."""
        step, course, label = _chosen(studio, owner(request), ident, state)
        if course is None or state == UNSET:
            yield [gr.skip()] * len(outputs)
            return
        hidden = [gr.update(visible=False), ""]
        files = course.frames().get(step, ())
        if not files:
            yield [gr.update(label=label), pieces.hint("Drawing this state…"), [], *hidden]
            job = studio.desk.submit(f"timeline of {owner(request)}", teaching.frame(studio, course, step))
            async for told in studio.desk.watch(job):
                if not told.over:
                    yield [gr.skip(), pieces.progress(told), *[gr.skip()] * 3]
                elif told.error:
                    yield [gr.skip(), pieces.error(told.error), *[gr.skip()] * 3]
                    return
        yield [gr.update(label=label), "", [str(file) for file in course.frames().get(step, ())], *hidden]

    def keep(ident: str, state: float, request: gr.Request) -> list[Any]:
        me = owner(request)
        step, course, _ = _chosen(studio, me, ident, state)
        try:
            entry = studio.trainings.keep(me, course.ident if course else "", step)
        except AtomdiffError as error:
            return [pieces.error(str(error)), gr.skip(), gr.skip(), gr.skip()]
        told = f"{entry.title} after step {step} is in the library, {entry.size:,} bytes."
        return [pieces.note(told), gr.update(visible=True), entry.id, concepts.known(studio)]

    def draw(kept: str, *values: Any) -> list[Any]:
        return [*sending.on_draw(page, kept, *values), gr.update(selected="draw")]

    async def latest(ident: str, request: gr.Request) -> AsyncIterator[list[Any]]:
        """Of another training, the slider may stand where it stood: the last state is shown all the same."""
        async for values in show(ident, MAX_STEPS, request):
            yield values

    options: dict[str, Any] = {"concurrency_limit": None, "trigger_mode": "always_last", **QUIET}
    js = f"(ident, state) => [ident, state ?? {UNSET}]"
    shared["train.state"].change(show, at, outputs, js=js, **options)
    shared["train.shown"].change(latest, shared["train.shown"], outputs, **options)
    kept = [*(shared[f"train.{name}"] for name in ("told", "draw", "kept")), shared["concepts.known"]]
    shared["train.keep"].click(keep, at, kept, **QUIET)
    shared["train.draw"].click(
        draw,
        [shared["train.kept"], *sending.draw_inputs(page)],
        [*sending.draw_outputs(page), page.tabs],
        **QUIET,
    )


def _looked(studio: Studio, me: str, ident: str, seen: str) -> list[Any]:
    """Values for SHOWN. `seen` is what the page shows already: what did not change is not sent again."""
    try:
        course = studio.trainings.get(me, ident)
    except AtomdiffError:
        hidden = gr.update(visible=False)
        return [EMPTY, "", "", hidden, gr.update(visible=True), hidden, hidden, hidden, gr.skip(),
                gr.update(visible=False, value=None, choices=[]), gr.Timer(active=False), ""]  # fmt: skip
    view = studio.trainings.look(course)
    frames = course.frames()
    now = f"{ident} {view.state} {view.step} {len(frames)}"
    same_film = now.split()[3:] == seen.split()[3:] and seen.startswith(ident)
    steps = _steps(course) if view.over else ()
    return [
        _status(course, view),
        gr.skip() if now == seen else film.loss_line(view.losses, view.steps),
        gr.skip() if same_film else film.strip(frames),
        gr.update(visible=not view.over),
        gr.update(visible=view.over),
        gr.update(visible=view.state in ("stopped", "failed")),
        gr.update(visible=view.over),
        gr.update(visible=bool(steps)),
        gr.skip() if now == seen or not steps else _slider(steps, course),
        _trainings(studio, me, ident),
        gr.Timer(active=not view.over),
        now,
    ]


def _status(course: Course, view: View) -> str:
    name = course.settings.name
    notes = "".join(pieces.note(sentence) for sentence in view.notes[:3])
    head = pieces.heading(f"{name}", f"a {course.settings.trigger} {course.settings.class_word}")
    if view.state == "waiting":
        ahead = "Starting…" if view.ahead == 0 else f"Waiting: {view.ahead} before it"
        return head + pieces.bar(0, ahead) + notes
    if view.state == "running":
        left = f" · {pieces.duration(view.seconds_left)} left" if view.seconds_left is not None else ""
        step = f" · step {view.step} of {view.steps}{left}" if view.stage == "Training" else "…"
        return head + pieces.bar(view.step / max(1, view.steps), view.stage + step) + notes
    if view.state == "failed":
        return head + pieces.error(view.error) + notes
    if view.state == "stopped":
        told = f"Stopped after step {view.step} of {view.steps}; what was reached is kept. Go on takes it up."
        return head + pieces.note(told) + notes
    return head + pieces.note(f"Trained {view.step} steps. Choose the state you like best.") + notes


def _steps(course: Course) -> tuple[int, ...]:
    timeline = course.timeline()
    return timeline.steps if timeline else ()


def _slider(steps: tuple[int, ...], course: Course) -> Any:
    total = course.look().steps
    return gr.update(
        minimum=1,
        maximum=max(2, len(steps)),
        value=len(steps),
        label=f"After step {steps[-1]} of {total}",
        interactive=len(steps) > 1,
    )


def _chosen(studio: Studio, me: str, ident: str, state: float) -> tuple[int, Course | None, str]:
    """Step, training and what to call the state; without a training for what is not there."""
    try:
        course = studio.trainings.get(me, ident)
    except AtomdiffError:
        return 0, None, ""
    steps = _steps(course)
    if not steps:
        return 0, None, ""
    step = steps[min(len(steps), max(1, int(state or 1))) - 1]
    return step, course, f"After step {step} of {course.look().steps}"


def _trainings(studio: Studio, me: str, ident: str) -> Any:
    choices = [(course.title, course.ident) for course in studio.trainings.of(me)]
    return gr.update(choices=choices, value=ident, visible=len(choices) > 1)
