"""From a folder of pictures to a concept: everything around the loop.

`train` is the whole of it for a caller in Python; `fit` is the same for settings that are made
already, as the command line does. Both know no user interface: they tell a `Reporter`.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL.Image import Image

from atomdiff.base.stable_diffusion import Base
from atomdiff.concept.concept import Concept
from atomdiff.errors import AtomdiffError, Interrupted, SettingsError
from atomdiff.files.atomic import require_writable
from atomdiff.files.safetensors_file import check_patterns, from_bytes, save_concept, to_bytes
from atomdiff.sampling import draw
from atomdiff.sampling.sheets import save_picture
from atomdiff.training.defaults import name_everything, spec_of, suit_base, suit_recipe
from atomdiff.training.loop import MAY_CHANGE, Run
from atomdiff.training.rates import open_rates
from atomdiff.training.recipes import refuse_beside_size
from atomdiff.training.reporting import Reporter, StepRecord
from atomdiff.training.settings import TrainingSettings
from atomdiff.training.setup import prepare
from atomdiff.training.sizing import recipe_of, suit_size, texts_of
from atomdiff.training.start import Silent, accelerated, base_for, check_before
from atomdiff.training.timeline_recorder import Recorder
from atomdiff.training.trackers import open_logs, sheet_of

Stop = Callable[[], bool]


def train(
    instance_dir: str | Path,
    out: str | Path | None = None,
    base: str | Path | Base = "pocket",
    *,
    reporter: Reporter | None = None,
    stop: Stop = lambda: False,
    **settings: Any,
) -> Concept:
    """Train a concept on the pictures in `instance_dir`; it is returned, and saved as `out`/NAME.safetensors.

    `settings` are the fields of `TrainingSettings`. Raises AtomdiffError, with one sentence, for
    whatever a user can cause; Interrupted, with the state saved, after Ctrl-C or when `stop` answers True.
    """
    named = ("instance_data_dir", "output_dir", "base")  # arguments of their own
    known = [item.name for item in dataclasses.fields(TrainingSettings) if item.name not in named]
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else "; see TrainingSettings for all of them."
            raise SettingsError(f"There is no training setting {name!r}{hint}")
    refuse_beside_size(settings)
    loaded = base if isinstance(base, Base) else None
    given = TrainingSettings(
        instance_data_dir=str(instance_dir),
        output_dir=str(out or ""),
        base=loaded.name if loaded else str(base),
        **settings,
    )
    return fit(given, reporter=reporter, base=loaded, stop=stop)


def fit(
    settings: TrainingSettings,
    *,
    reporter: Reporter | None = None,
    base: Base | None = None,
    stop: Stop = lambda: False,
    between: Callable[[Run], None] = lambda run: None,
) -> Concept:
    """Train with settings made already.

    A `base` handed over keeps its encoders and weights; it is moved to the device that accelerate chose.
    `between` is called after every step, and may use the base meanwhile, inside `Run.aside`.
    """
    settings, renamed = with_own_name(settings)
    settings = suit_recipe(settings)
    if settings.size == "":
        check_patterns(spec_of(settings))  # now, not when the finished concept is saved
    check_before(settings)
    accelerator, settings = accelerated(settings)
    told = (reporter or Reporter()) if accelerator.is_main_process else Silent()
    if accelerator.is_main_process:
        require_writable(Path(settings.output_dir), "--output_dir")
    drop = base is None and not settings.validations
    base = base_for(settings, base, accelerator)
    suited = suit_base(settings, base.family, base.resolution, base.vae_factor)
    settings = open_rates(suited, settings, base)
    if renamed:
        told.notice(renamed)
    told.notice(
        f"Base: {base.name} ({base.passport.architecture}), pictures of {settings.resolution}² pixels"
    )
    settings, chosen = suit_size(settings, base)
    told.notice(chosen or f"Trained: {recipe_of(settings)}")
    if accelerator.num_processes > 1:
        told.notice(f"Training in {accelerator.num_processes} processes")
    run = prepare(settings, base, accelerator, told, drop)
    settings = run.settings
    try:
        _train(run, told, stop, between)
        concept = from_bytes(to_bytes(concept_of(run), settings.precision))  # what the file will say
    finally:
        run.close()
    if accelerator.is_main_process:
        path = concept_path(settings)
        save_concept(concept, path)
        told.notice(f"Concept: {path} ({path.stat().st_size:,} bytes)")
    if accelerator.num_processes > 1:
        accelerator.wait_for_everyone()
        accelerator.end_training()
    return concept


def concept_path(settings: TrainingSettings) -> Path:
    """Where the concept of a run goes (`name_everything` must have been asked)."""
    return Path(settings.output_dir) / f"{settings.name}.safetensors"


def with_own_name(settings: TrainingSettings) -> tuple[TrainingSettings, str]:
    """The settings with all names filled, and a name under which nothing is finished yet, NAME, NAME-2,
    NAME-3 ..., unless the run goes on or may overwrite; and what is to be told of that."""
    settings = name_everything(settings)
    if settings.overwrite or settings.resume_from_checkpoint:
        return settings, ""
    name, number = settings.name, 2
    while concept_path(settings).exists():
        settings, number = dataclasses.replace(settings, name=f"{name}-{number}"), number + 1
    if settings.name == name:
        return settings, ""
    return settings, (
        f"There is a finished '{name}' in '{settings.output_dir}', so this one is called '{settings.name}'; "
        "--overwrite would replace it"
    )


def shared_base(settings: TrainingSettings) -> Base:
    """The base of several runs, to be handed to `fit`."""
    accelerator, settings = accelerated(settings)
    return base_for(settings, None, accelerator)


def timeline_path(settings: TrainingSettings) -> Path:
    """Where the kept states of a run go (`name_everything` must have been asked)."""
    return Path(settings.output_dir) / f"{settings.name}.timeline.safetensors"


def concept_of(run: Run) -> Concept:
    """The concept that a run has arrived at."""
    s, data = run.settings, run.data
    atoms, token = run.trained.read()
    texts = texts_of(s, run.done, len(data.instance), len(data.prior) if data.prior else 0)
    return Concept.of(
        run.base.unet, run.trained.attached.spec, atoms, run.base.passport, token=token, **texts
    )


# -------------------------------------------------------------------------------------------- running


def _train(run: Run, told: Reporter, stop: Stop, between: Callable[[Run], None]) -> None:
    """Run the loop to its end, telling and logging every step."""
    settings, main = run.settings, run.accelerator.is_main_process
    output = Path(settings.output_dir)
    log = open_logs(settings, output / settings.logging_dir, run.done, told) if main else None
    validate = _validator(run, told) if settings.validations else None
    recorder = _recorder(run, told) if settings.timeline_steps and main else None
    try:
        with _stop_signals(told) as stopped:
            for record in run.steps(output, lambda: stopped() or stop(), validate):
                if recorder and recorder.due(record.step, record.last):
                    recorder.keep(record.step, record.loss, concept_of(run))
                told.step(record)
                _tell_drift(record, settings, told)
                if log:
                    log.step(record)
                between(run)
        if recorder and recorder.timeline:
            told.notice(f"Timeline: {recorder.path} ({len(recorder.timeline.steps)} states)")
    finally:
        if log:
            log.close()


def _tell_drift(record: StepRecord, settings: TrainingSettings, told: Reporter) -> None:
    """Says so where the run went back."""
    if record.drift is None or not settings.max_drift or record.drift <= settings.max_drift:
        return
    then = "ends here with them" if record.last else "goes on at a quarter of its rates"
    told.warn(
        f"After step {record.step} the base's prediction for '{settings.class_prompt}' had changed by "
        f"{record.drift:.2f}, over --max_drift {settings.max_drift:g}: the run goes back to the numbers of "
        f"{settings.drift_steps} steps ago and {then}. Lower --learning_rate (now "
        f"{settings.learning_rate or settings.token_learning_rate:g}) learns more evenly."
    )


def _recorder(run: Run, told: Reporter) -> Recorder:
    """Keeps states in the timeline of this very run: equal settings and pictures, whatever may change."""
    settings = run.settings
    compared = {key: run.state["compared"][key] for key in run.state["compared"] if key not in MAY_CHANGE}
    text = json.dumps(compared, sort_keys=True)
    known_as = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    recorder = Recorder(timeline_path(settings), settings.timeline_steps, run.done, known_as, told.warn)
    recorder.require_room(run.total, sum(p.numel() for p in run.trained.attached.parameters()))
    return recorder


def _validator(run: Run, told: Reporter) -> Callable[[int], tuple[Image, ...]]:
    """Draws the validation prompts as the concept would now, and keeps the pictures in `validation/`."""
    settings = run.settings

    def validate(step: int) -> tuple[Image, ...]:
        concept, folder = concept_of(run), Path(settings.output_dir) / "validation"
        try:
            drawn = draw.draw(
                run.base,
                list(settings.validations),
                concepts=[concept],
                count=settings.num_validation_images,
                seed=settings.seed,
                size=settings.resolution,
                batch_size=settings.sample_batch_size,
            )
            for i, picture in enumerate(drawn):
                save_picture(picture, folder / f"step-{step:06d}-{i}.png")
            if sheet := sheet_of(drawn, settings.validations):
                save_picture(sheet, folder / f"step-{step:06d}.png")
        except Interrupted:
            raise
        except AtomdiffError as error:  # what cannot be drawn or kept is no reason to lose the run
            told.warn(f"No validation pictures at step {step}: {error}")
            return ()
        return tuple(drawn)

    return validate


@contextlib.contextmanager
def _stop_signals(told: Reporter) -> Iterator[Stop]:
    """Within: Ctrl-C and SIGTERM ask for a stop after the step at hand; a second Ctrl-C stops at once."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def ask(number: int, frame: Any) -> None:
        if number == signal.SIGINT and number in asked:
            raise Interrupted(
                "Stopped at once, without saving this step; --resume_from_checkpoint latest goes on from the "
                "last saved state, if there is one."
            )
        asked.append(number)
        with contextlib.suppress(RuntimeError):  # the signal may come while a line is being written
            told.notice("Stopping after this step, to save it; a second Ctrl-C stops at once.")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
