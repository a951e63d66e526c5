"""The training on the page: how far it is, its pictures, and the timeline to choose a state from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from atomdiff.errors import SettingsError
from atomdiff.serving.job_queue import duration
from atomdiff.serving.training_session import MAX_STEPS, TrainingSession, TrainingStatus
from atomdiff.serving.trainings import Trainings
from atomdiff.studio import html
from atomdiff.studio.identity import owner
from atomdiff.studio.session import Studio
from atomdiff.studio.tabs import parts
from atomdiff.studio.tabs.concepts import ConceptsTab
from atomdiff.studio.tabs.draw import DrawTab

EMPTY = html.empty(
    "Teach it your subject",
    "Drop about five pictures of one thing, say what it is, and press Train. Its progress appears here; you "
    "may close the page meanwhile.",
)
UNSET = 1.5  # of a slider that the browser has not laid out yet, which would send nothing
POINTS = 400  # of the loss at most


@dataclass(frozen=True)
class TrainingView:
    """`shown(owner, ident)` updates `outputs` for a training."""

    outputs: list[Any]
    shown: Callable[[str, str], dict[Any, Any]]


def training_view(
    studio: Studio, page: gr.Blocks, draw: DrawTab, concepts: ConceptsTab, go: gr.Button, stop: gr.Button
) -> TrainingView:
    """The right side of Train; `go` and `stop` take turns."""
    store = studio.trainings
    status = gr.HTML(EMPTY, elem_id="train-status")
    with gr.Row(elem_classes="plots"):
        loss = _plot("loss", "Loss", "train-loss", {"each": "#99d5cf", "mean": "#0f766e"})
        drift = _plot(
            "drift", "Drift of the class, %", "train-drift", {"drift": "#ea580c", "bound": "#d6d3d1"}
        )
    film = parts.gallery(
        "train-film", columns=6, buttons=[], elem_classes="pictures film", allow_preview=False
    )
    choice = _Choice()
    with gr.Row(elem_classes="line"):
        which = gr.Dropdown([], label="Trainings", visible=False, scale=4, min_width=160, elem_id="trainings")
        resume = gr.Button("Go on", size="sm", visible=False, scale=1, min_width=80, elem_id="go-on")
        delete = gr.Button(
            "Delete", size="sm", variant="stop", visible=False, scale=1, min_width=80, elem_id="train-delete"
        )
    at, seen = gr.State(""), gr.State("")
    clock = gr.Timer(1.0, active=False)
    outputs = [
        status, loss, drift, film, choice.whole, choice.state, which, resume, delete, at, seen, clock, go,
        stop,
    ]  # fmt: skip

    def looked(me: str, ident: str, before: str) -> dict[Any, Any]:
        """`before` is what the page shows already: what did not change is not sent again."""
        session = store.get(me, ident)
        now, samples = store.status(session), session.samples()
        mark = f"{ident} {now.state} {now.step} {len(samples)}"
        steps = session.steps if now.over else ()
        updates: dict[Any, Any] = {
            status: _status(session, now),
            **parts.running(go, stop, not now.over),
            resume: gr.update(visible=now.state in ("stopped", "failed")),
            delete: gr.update(visible=now.over),
            choice.whole: gr.update(visible=bool(steps)),
            which: _trainings(studio, me, ident),
            clock: gr.Timer(active=not now.over),
            seen: mark,
        }
        if mark == before:
            return updates
        updates[loss] = gr.update(value=loss_table(now), visible=len(now.losses) > 4, x_lim=[0, now.steps])
        drifts = drift_table(now, session.settings.max_drift)
        updates[drift] = gr.update(value=drifts, visible=bool(now.drifts), x_lim=[0, now.steps])
        if mark.split()[3:] != before.split()[3:] or not before.startswith(ident):
            pictures = [(str(path), f"Step {step}") for step, paths in samples.items() for path in paths[:1]]
            updates[film] = gr.update(value=pictures, visible=bool(pictures))
        if steps:
            updates[choice.state] = gr.update(
                maximum=max(2, len(steps)), value=len(steps), label=_after(session, steps[-1]),
                interactive=len(steps) > 1,
            )  # fmt: skip
        return updates

    def shown(me: str, ident: str) -> dict[Any, Any]:
        """A training, or the latest if there is no such one, or none."""
        idents = [session.ident for session in store.of(me)]
        if not idents:
            hidden = dict.fromkeys((loss, drift, film, choice.whole, resume, delete, which), parts.HIDDEN)
            off = {at: "", seen: "", clock: gr.Timer(active=False)}
            return {status: EMPTY, **parts.running(go, stop, False), **hidden, **off}
        ident = ident if ident in idents else idents[0]
        return looked(me, ident, "") | {at: ident}

    @clock.tick(inputs=[at, seen], outputs=outputs)
    def tick(ident: str, before: str, request: gr.Request) -> dict[Any, Any]:
        return looked(owner(request), ident, before)

    @page.load(outputs=outputs)
    def load(request: gr.Request) -> dict[Any, Any]:
        return shown(owner(request), "")

    @which.input(inputs=which, outputs=outputs)
    def choose(ident: str, request: gr.Request) -> dict[Any, Any]:
        return shown(owner(request), ident or "")

    @resume.click(inputs=at, outputs=outputs)
    def go_on(ident: str, request: gr.Request) -> dict[Any, Any]:
        store.resume(owner(request), ident)
        return shown(owner(request), ident)

    @delete.click(inputs=at, outputs=outputs)
    def forget(ident: str, request: gr.Request) -> dict[Any, Any]:
        store.delete(owner(request), ident)
        return shown(owner(request), "")

    @stop.click(queue=False)
    def halt(request: gr.Request) -> None:
        store.stop(owner(request))

    choice.connect(studio, store, draw, concepts, film, at)
    return TrainingView(outputs, shown)


class _Choice:
    """The timeline: the kept states, pictures of each, and what can be done with one."""

    def __init__(self) -> None:
        with gr.Column(visible=False, elem_id="choice") as self.whole:
            self.state = gr.Slider(1, 2, 1, step=1, label="State", buttons=[], elem_id="timeline")
            self.drawing = gr.HTML("", elem_id="frame-status")
            self.gallery = parts.gallery("frame", columns=4, visible=True)
            with gr.Row(elem_classes="actions"):
                self.keep = gr.Button("Save to the library", variant="primary", elem_id="keep-state")
                self.draw_with = gr.Button("Draw with it", visible=False, elem_id="draw-state")
            self.told = gr.HTML("", elem_id="keep-told")
        self.kept = gr.State("")

    def connect(
        self, studio: Studio, store: Trainings, draw: DrawTab, concepts: ConceptsTab, film: gr.Gallery,
        at: gr.State,
    ) -> None:  # fmt: skip
        """What happens when a state is chosen, saved or drawn with; `at` is the training's id."""
        state, drawing, gallery, keep, draw_with, told, kept = (
            self.state, self.drawing, self.gallery, self.keep, self.draw_with, self.told, self.kept,
        )  # fmt: skip
        timeline = [state, drawing, gallery, draw_with, told]

        async def show(ident: str, place: float, request: gr.Request) -> AsyncIterator[Any]:
            """The pictures of a state; one that has none yet is drawn first."""
            me = owner(request)
            if not ident or place == UNSET or not (session := store.get(me, ident)).steps:
                yield gr.skip()
                return
            step = _step(session, place)
            label = gr.update(label=_after(session, step))
            if not session.samples().get(step):
                waiting = {drawing: html.hint("Drawing this state…"), gallery: []}
                yield {state: label, **waiting, draw_with: parts.HIDDEN, told: ""}
                async for now in studio.queue.watch(store.draw_state(me, session, step)):
                    yield {drawing: html.progress(now)}
                    if now.error:
                        return
            files = [str(file) for file in session.samples().get(step, ())]
            yield {state: label, drawing: "", gallery: files, draw_with: parts.HIDDEN, told: ""}

        state.change(
            show, [at, state], timeline, js=f"(ident, state) => [ident, state ?? {UNSET}]",
            trigger_mode="always_last",
        )  # fmt: skip

        @at.change(inputs=at, outputs=timeline, trigger_mode="always_last")
        async def latest(ident: str, request: gr.Request) -> AsyncIterator[Any]:
            """Of another training, the slider may stand where it stood: the last state is shown."""
            async for updates in show(ident, MAX_STEPS, request):
                yield updates

        @film.select(inputs=at, outputs=state)
        def select(ident: str, request: gr.Request, event: gr.SelectData) -> Any:
            session = store.get(owner(request), ident)
            step, steps = list(session.samples())[int(event.index)], session.steps
            return steps.index(step) + 1 if step in steps else gr.skip()

        @keep.click(inputs=[at, state], outputs=[told, draw_with, kept, concepts.known])
        def keep_state(ident: str, place: float, request: gr.Request) -> Any:
            me = owner(request)
            step = _step(store.get(me, ident), place)
            entry = store.keep(me, ident, step, studio.library)
            note = f"{entry.title} after step {step} is in the library, {entry.size:,} bytes."
            return html.note(note), gr.update(visible=True), entry.id, concepts.changed()

        settings = draw.settings
        draw_with.click(settings.with_concept, kept, settings.outputs, inputs_kwargs=settings.context)


def loss_table(now: TrainingStatus) -> Any:
    """The loss of every step (at most POINTS of them) and its running mean, over about the last twentieth."""
    import pandas

    share, mean, rows = min(1.0, 20 / max(1, len(now.losses))), 0.0, []
    for number, (step, loss) in enumerate(now.losses):
        mean = loss if number == 0 else mean + share * (loss - mean)
        rows.append((step, loss, mean))
    kept = rows[:: -(-len(rows) // POINTS) or 1]
    lines = [(row[0], row[place], name) for name, place in (("each", 1), ("mean", 2)) for row in kept]
    return pandas.DataFrame(lines, columns=["step", "loss", "which"])


def drift_table(now: TrainingStatus, bound: float) -> Any:
    """The drift of the class, in per cent, and once it is half-way there the bound beyond which the run goes
    back."""
    import pandas

    rows = [(step, 100 * value, "drift") for step, value in ((0, 0.0), *now.drifts)]
    if bound and max(value for _, value in ((0, 0.0), *now.drifts)) > bound / 2:
        rows += [(step, 100 * bound, "bound") for step in (0, now.steps)]
    return pandas.DataFrame(rows, columns=["step", "drift", "which"])


def _plot(value: str, title: str, ident: str, colours: dict[str, str]) -> gr.LinePlot:
    """Lines over the steps of a training."""
    return gr.LinePlot(
        None, "step", value, y_title=title, x_title="Step", height=170, visible=False, elem_id=ident,
        buttons=[], container=False, show_label=False, color="which", color_map=colours, colors_in_legend=[],
        min_width=240,
    )  # fmt: skip


def _status(session: TrainingSession, now: TrainingStatus) -> str:
    settings = session.settings
    head = html.heading(settings.name, f"a {settings.trigger} {settings.class_word}")
    notes = "".join(map(html.note, now.notes[:3]))
    if now.state == "waiting":
        return head + html.bar(0, html.place(now.ahead, "it")) + notes
    if now.state == "running":
        left = f" · {duration(now.seconds_left)} left" if now.seconds_left is not None else ""
        step = f" · step {now.step} of {now.steps}{left}" if now.stage == "Training" else "…"
        return head + html.bar(now.step / max(1, now.steps), now.stage + step) + notes
    if now.state == "failed":
        return head + html.error(now.error) + notes
    stopped = f"Stopped after step {now.step} of {now.steps}; what was reached is kept. Go on takes it up."
    done = f"Trained {now.step} steps. Choose the state you like best."
    return head + html.note(stopped if now.state == "stopped" else done) + notes


def _step(session: TrainingSession, place: float) -> int:
    """The step of the state at a place of the slider. Raises SettingsError if none is kept."""
    steps = session.steps
    if not steps:
        raise SettingsError("This training has kept no state yet: let it run a little.")
    return steps[min(len(steps), max(1, int(place or 1))) - 1]


def _after(session: TrainingSession, step: int) -> str:
    return f"After step {step} of {session.status().steps}"


def _trainings(studio: Studio, me: str, ident: str) -> Any:
    choices = []
    for session in studio.trainings.of(me):
        now = studio.trainings.status(session)
        title = f"{session.settings.name} · {now.state}, step {now.step} of {now.steps}"
        choices.append((title, session.ident))
    return gr.update(choices=choices, value=ident, visible=len(choices) > 1)
