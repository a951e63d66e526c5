"""What stands between the settings and the first step: pictures, class pictures, latents, the saved state."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atomdiff.base.stable_diffusion import Base, truncated_part
from atomdiff.base.textual_inversion import TriggerToken, calls
from atomdiff.concept.passport import BasePassport
from atomdiff.errors import SettingsError, TrainingError
from atomdiff.files.images import Picture, Skipped, load_folder
from atomdiff.training import latents, prior_preservation
from atomdiff.training.checkpoint import Checkpoint, differences, find_checkpoint, load_checkpoint
from atomdiff.training.defaults import count_steps, numerical
from atomdiff.training.loop import Run, TrainingData
from atomdiff.training.reporting import Reporter
from atomdiff.training.settings import TrainingSettings


def prepare(settings: TrainingSettings, base: Base, accelerator: Any, told: Reporter, drop: bool) -> Run:
    """Pictures, class pictures, latents, embeddings and the state to resume from -> a run about to start."""
    pictures, skipped = load_folder(
        settings.instance_data_dir, int(settings.resolution or 0), settings.caption_extension
    )
    _tell_pictures(pictures, skipped, settings, told)
    settings = count_steps(settings, len(pictures), accelerator.num_processes)
    saved = _saved_state(settings, told)
    state = _identity(settings, base, pictures, accelerator.num_processes)
    if saved:
        _refuse_differences(saved, state)
    class_pictures: list[Picture] = []
    if settings.with_prior_preservation:
        class_pictures = _class_pictures(settings, base, accelerator, told)
    state["compared"]["class pictures"] = _digest(class_pictures)
    if saved:
        _refuse_differences(saved, state)
    data = _encode(settings, base, pictures, class_pictures, accelerator, told)
    if drop:
        latents.release_encoders(base, text=data.token is None)
    heard = lambda done, total: told.stage("Decomposing convolutions", done, total)  # noqa: E731
    run = Run(settings, base, data, accelerator, state, heard if settings.conv_family == "sparse" else None)
    try:
        if saved:
            run.restore(saved)
    except TrainingError:
        run.close()
        raise
    return run


def _tell_pictures(
    pictures: Sequence[Picture], skipped: Sequence[Skipped], settings: TrainingSettings, told: Reporter
) -> None:
    for item in skipped[:10]:
        told.notice(f"Skipped {item.path.name}: {item.reason}")
    if len(skipped) > 10:
        told.notice(f"Skipped {len(skipped) - 10} more")
    small = sum(min(picture.original_size) < int(settings.resolution or 0) for picture in pictures)
    enlarged = f"; {small} smaller than {settings.resolution} pixels and enlarged" if small else ""
    captions = [picture.caption for picture in pictures if picture.caption]
    own = f"{len(captions)} by their texts, such as '{captions[0]}'" if captions else ""
    usual = f"as '{settings.instance_prompt}'" if len(captions) < len(pictures) else ""
    told.notice(f"Pictures: {len(pictures)}, {'; the others '.join(filter(None, (own, usual)))}{enlarged}")
    silent = [caption for caption in captions if not calls(caption, settings.trigger)]
    if silent:
        told.warn(
            f"{len(silent)} of {len(captions)} texts beside the pictures do not say '{settings.trigger}', "
            f"such as '{silent[0]}': the concept is called by that word, and learns less of it from those "
            "pictures; write it into them, or choose the word with --trigger."
        )


def _class_pictures(
    settings: TrainingSettings, base: Base, accelerator: Any, told: Reporter
) -> list[Picture]:
    request = prior_preservation.ClassRequest(
        settings.class_prompt,
        int(settings.num_class_images or 0),
        int(settings.resolution or 0),
        settings.seed,
    )
    made, skipped = prior_preservation.class_pictures(
        base,
        request,
        _class_folder(settings),
        accelerator,
        lambda done, total: told.stage("Drawing class pictures", done, total),
        settings.sample_batch_size,
    )
    for item in skipped[:10]:
        told.notice(f"Skipped {item.path.name}: {item.reason}")
    told.notice(f"Class pictures: {len(made)}, as '{settings.class_prompt}', in {made[0].path.parent}")
    return made


def _encode(
    settings: TrainingSettings,
    base: Base,
    pictures: list[Picture],
    class_pictures: list[Picture],
    accelerator: Any,
    told: Reporter,
) -> TrainingData:
    """Latents and embeddings of everything; prompts that are cut are told."""
    captions = [picture.caption or settings.instance_prompt for picture in pictures]
    prompts = list(dict.fromkeys([*captions, *([settings.class_prompt] if class_pictures else [])]))
    token = _token(settings, base, told)
    for prompt in prompts:
        cut = truncated_part(base, token.reading().spoken(prompt) if token else prompt)
        if cut:
            told.warn(
                f"The prompt '{prompt}' is longer than the text encoder takes; this was cut off: '{cut}'"
            )
    cached = latents.encode_table(base, prompts)
    table = latents.LiveTable(cached, base, token) if token else cached

    def encoded(those: list[Picture], rows: list[int], what: str) -> latents.LatentCache:
        images = [picture.image for picture in those]
        heard = lambda done, total: told.stage(f"Encoding {what}", done, total)  # noqa: E731
        return latents.encode_pictures(base, images, rows, accelerator, settings.random_flip, heard)

    instance = encoded(pictures, [prompts.index(caption) for caption in captions], "pictures")
    if not class_pictures:
        return TrainingData(instance, None, table, token)
    row = prompts.index(settings.class_prompt)
    return TrainingData(
        instance, encoded(class_pictures, [row] * len(class_pictures), "class pictures"), table, token
    )


def _token(settings: TrainingSettings, base: Base, told: Reporter) -> TriggerToken | None:
    """The trigger's vectors, to be trained; None, which is told, for a trigger that cannot have any."""
    if not settings.train_token:
        return None
    try:
        return TriggerToken(base, settings.trigger, [settings.class_prompt], settings.num_vectors)
    except SettingsError as error:
        told.warn(f"{error} Going on without.")
        return None


def _class_folder(settings: TrainingSettings) -> Path:
    """The folder named by the user, else the shared cache, else (no home to write to) one in the output."""
    if settings.class_data_dir:
        return Path(settings.class_data_dir).expanduser()
    shared = prior_preservation.default_folder()
    try:
        shared.mkdir(parents=True, exist_ok=True)
        if os.access(shared, os.W_OK):
            return shared
    except OSError:
        pass
    return Path(settings.output_dir) / "class_pictures"


# ------------------------------------------------------------------------------------------- resuming


def _saved_state(settings: TrainingSettings, told: Reporter) -> Checkpoint | None:
    if not settings.resume_from_checkpoint:
        return None
    path = find_checkpoint(Path(settings.output_dir), settings.resume_from_checkpoint)
    if path is None:
        told.notice(f"No saved state in {settings.output_dir}; starting from the beginning")
        return None
    saved = load_checkpoint(path)
    told.notice(f"Resuming from {path}, after step {saved.step}")
    return saved


def _identity(
    settings: TrainingSettings, base: Base, pictures: list[Picture], processes: int
) -> dict[str, Any]:
    """What a state records so that only an equal run goes on from it."""
    compared = numerical(settings, processes) | {"pictures": _digest(pictures)}
    passport = {"architecture": base.passport.architecture, "sketch": base.passport.sketch_text()}
    return {"compared": compared, "base": passport | {"name": base.name}}


def _refuse_differences(saved: Checkpoint, now: dict[str, Any]) -> None:
    """Raise TrainingError, listing them, when the saved run differs in anything that decides its numbers."""
    before = saved.state.get("compared") or {}
    if "class pictures" not in now["compared"]:  # not drawn yet: compared in a second round
        before = {name: value for name, value in before.items() if name != "class pictures"}
    free = saved.state.get("may_change") or []  # of a run that broke down, see `loop.MAY_CHANGE`
    before, after = ({k: v for k, v in d.items() if k not in free} for d in (before, now["compared"]))
    found = differences(before, after)
    then, base = saved.state.get("base") or {}, now["base"]
    passports = [BasePassport.from_text(b.get("architecture", ""), b.get("sketch", "")) for b in (then, base)]
    if passports[0].compare(passports[1]).kind != "same":
        found.insert(0, f"base: {then.get('name')} -> {base['name']}")
    if found:
        hint = ""
        if len(found) == 1 and found[0].startswith("max_train_steps"):
            hint = " (Rates that fall towards the last step fix it; --lr_scheduler constant leaves it open.)"
        raise TrainingError(
            f"The saved state of step {saved.step} was made with other settings ({'; '.join(found)}); "
            f"give the old ones again, or drop --resume_from_checkpoint to start anew.{hint}"
        )


def _digest(pictures: Sequence[Picture]) -> str:
    """8 hex digits over the pixels and captions."""
    digest = hashlib.blake2b(digest_size=4)
    for picture in pictures:
        digest.update(picture.image.tobytes())
        digest.update(picture.caption.encode() + b"\0")
    return digest.hexdigest()
