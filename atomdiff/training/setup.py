"""What stands between the settings and the first step: pictures, class pictures, latents, the saved state."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from atomdiff.base.stable_diffusion import Base, truncated_part
from atomdiff.base.textual_inversion import TriggerToken, has_trigger
from atomdiff.errors import SettingsError, TrainingError
from atomdiff.training import latents, masks, prior_preservation
from atomdiff.training.batches import seeded
from atomdiff.training.captions import Variation
from atomdiff.training.defaults import count_steps, spec_of
from atomdiff.training.forward import TrainingData
from atomdiff.training.loop import Run
from atomdiff.training.monitor import Watch
from atomdiff.training.pictures import STEP, Picture, Reading, Skipped, load_folder
from atomdiff.training.rates import saved_rates, suit_rates
from atomdiff.training.reporting import Reporter
from atomdiff.training.resuming import digest_of, identity, refuse_differences, saved_state, with_saved_name
from atomdiff.training.settings import TrainingSettings


def prepare(settings: TrainingSettings, base: Base, accelerator: Any, told: Reporter, drop: bool) -> Run:
    """Pictures, class pictures, latents, embeddings and the state to resume from -> a run about to start."""
    pictures, skipped = load_folder(settings.instance_data_dir, _reading(settings, base))
    _tell_pictures(pictures, skipped, settings, told)
    settings = count_steps(settings, len(pictures), accelerator.num_processes)
    saved = saved_state(settings, told)
    if saved:
        settings = saved_rates(settings, saved.state.get("compared") or {})
    spec = spec_of(settings)
    settings = suit_rates(settings, spec, base, accelerator, told)
    state = identity(settings, base, pictures, accelerator.num_processes)
    if saved:
        settings = with_saved_name(settings, str(saved.state.get("name") or ""))
        refuse_differences(saved, state)
    state["name"] = settings.name
    class_pictures: list[Picture] = []
    if settings.with_prior_preservation:
        class_pictures = _class_pictures(settings, base, accelerator, told)
    state["compared"]["class pictures"] = digest_of(class_pictures)
    if saved:
        refuse_differences(saved, state)
    data = _encode(settings, base, pictures, class_pictures, accelerator, told)
    if settings.drift_steps and spec.has_layers:
        data = replace(data, watch=Watch.of(base, settings.class_prompt, int(settings.resolution or 0)))
    if drop:
        latents.release_encoders(base, text=data.token is None)

    def decomposing(done: int, total: int) -> None:
        if settings.conv_family == "sparse":  # the closed form takes no time
            told.stage("Decomposing convolutions", done, total)

    run = Run(settings, base, data, accelerator, state, decomposing)
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
    captions = [picture.caption for picture in pictures if picture.caption]
    own = f"{len(captions)} by their texts, such as '{captions[0]}'" if captions else ""
    usual = f"as '{settings.instance_prompt}'" if len(captions) < len(pictures) else ""
    prompts = "; the others ".join(filter(None, (own, usual)))
    told.notice("; ".join([f"Pictures: {len(pictures)}, {prompts}", *_shapes(pictures, settings)]))
    silent = [caption for caption in captions if not has_trigger(caption, settings.trigger)]
    if silent:
        told.warn(
            f"{len(silent)} of {len(captions)} texts beside the pictures do not say '{settings.trigger}', "
            f"such as '{silent[0]}': the concept is called by that word, and learns less of it from those "
            "pictures; write it into them, or choose the word with --trigger."
        )


def _shapes(pictures: Sequence[Picture], settings: TrainingSettings) -> list[str]:
    """What is to be told of sizes, crops and masks."""
    side = int(settings.resolution or 0)
    small = sum(
        p.original_size[0] * p.original_size[1] < 0.99 * p.image.width * p.image.height for p in pictures
    )
    sizes = list(dict.fromkeys(p.image.size for p in pictures))
    cut = sum(picture.cut_off > 0.1 for picture in pictures)
    masked = sum(picture.mask is not None for picture in pictures)
    shown = ", ".join(f"{w} x {h}" for w, h in sizes[:4]) + (" ..." if len(sizes) > 4 else "")
    return [
        text
        for text, due in (
            (f"in their own shapes, {shown}", sizes != [(side, side)]),
            (f"{cut} cropped by more than a tenth", cut),
            (f"{small} smaller than {side} pixels and enlarged", small),
            (f"{masked} with a mask", masked),
        )
        if due
    ]


def _reading(settings: TrainingSettings, base: Base) -> Reading:
    """How the picture folder is read."""
    return Reading(
        int(settings.resolution or 0),
        None if settings.center_crop else STEP * base.vae_factor,
        settings.caption_extension,
        settings.caption_column,
        settings.masked_loss,
    )


def _class_pictures(
    settings: TrainingSettings, base: Base, accelerator: Any, told: Reporter
) -> list[Picture]:
    request = prior_preservation.ClassRequest(
        settings.class_prompt,
        int(settings.num_class_images or 0),
        int(settings.resolution or 0),
        settings.seed,
        _reading(settings, base).step,
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
    captions = _captions(settings, pictures)
    kept = prior_preservation.prompts(settings.class_prompt, len(class_pictures))
    empty = [""] if settings.caption_dropout_rate else []
    prompts = list(dict.fromkeys([*itertools.chain(*captions), *kept, *empty]))
    token = _token(settings, base, told)
    _tell_cut(prompts, base, token, told)
    cached = latents.encode_table(base, prompts)
    table = latents.LiveTable(cached, base, token) if token else cached

    def encoded(those: list[Picture], rows: list[tuple[int, ...]], what: str) -> latents.LatentCache:
        images = [picture.image for picture in those]
        heard = lambda done, total: told.stage(f"Encoding {what}", done, total)  # noqa: E731
        found = latents.encode_pictures(base, images, rows, accelerator, settings.random_flip, heard)
        return replace(found, weights=_weights(those, base.vae_factor, settings.unmasked_weight))

    rows = [tuple(prompts.index(prompt) for prompt in variants) for variants in captions]
    instance = encoded(pictures, rows, "pictures")
    if settings.caption_dropout_rate:
        instance = replace(instance, dropout=settings.caption_dropout_rate, empty=prompts.index(""))
    if not class_pictures:
        return TrainingData(instance, None, table, token)
    prior = encoded(class_pictures, [(prompts.index(prompt),) for prompt in kept], "class pictures")
    return TrainingData(instance, prior, table, token)


def _captions(settings: TrainingSettings, pictures: Sequence[Picture]) -> list[tuple[str, ...]]:
    """For each picture the prompts to draw from: its caption, varied, or the instance prompt."""
    variation = Variation(
        settings.shuffle_caption,
        settings.keep_tokens,
        settings.caption_tag_dropout_rate,
        settings.caption_separator,
    )
    return [
        variation.of(picture.caption, seeded(settings.seed, "captions", i))
        if picture.caption
        else (settings.instance_prompt,)
        for i, picture in enumerate(pictures)
    ]


def _tell_cut(prompts: Sequence[str], base: Base, token: TriggerToken | None, told: Reporter) -> None:
    for prompt in prompts:
        cut = truncated_part(base, token.embedding().convert_prompt(prompt) if token else prompt)
        if cut:
            told.warn(
                f"The prompt '{prompt}' is longer than the text encoder takes; this was cut off: '{cut}'"
            )


def _weights(pictures: Sequence[Picture], factor: int, outside: float) -> tuple[Tensor | None, ...]:
    """What each place of the pictures counts; () where none has a mask."""
    if all(picture.mask is None for picture in pictures):
        return ()
    return tuple(masks.weights(p.mask, factor, outside) if p.mask else None for p in pictures)


def _token(settings: TrainingSettings, base: Base, told: Reporter) -> TriggerToken | None:
    """The trigger's vectors, to be trained; None, which is told, for a trigger that cannot have any."""
    if not settings.train_token:
        return None
    try:
        return TriggerToken(base, settings.trigger, [settings.class_prompt], settings.num_vectors or 1)
    except SettingsError as error:
        if not (settings.num_atoms or settings.linear_atoms != "none"):
            raise
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
