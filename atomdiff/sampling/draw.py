"""Drawing: a base, any concepts and a prompt become pictures.

Concepts are folded into the weights for the time of drawing, W' = W + Σ sᵢ ΔWᵢ, so that a step computes no
more than on the base alone, and the very same weights are back afterwards. Σ is over the concepts that a
prompt calls by their triggers: where none is called, pictures are the base's, bit for bit. Picture i of a
call is made from seed + i, whatever its neighbours in the batch are; noise comes from the CPU's generator, so
that a seed means the same on every device.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from atomdiff.base import loading, textual_inversion
from atomdiff.base.architectures import ARCHITECTURES
from atomdiff.base.prompt_weights import batches, prompt_arguments
from atomdiff.base.stable_diffusion import Base
from atomdiff.concept.concept import Concept
from atomdiff.core.blocks import Strength, of_words
from atomdiff.errors import SettingsError
from atomdiff.files.safetensors_file import sha256
from atomdiff.sampling import img2img, mixed
from atomdiff.sampling.gating import Negatives, groups
from atomdiff.sampling.gating import acting as concepts_acting
from atomdiff.sampling.resident import Residents
from atomdiff.sampling.settings import MAX_SEED, SAMPLERS, USUAL, DrawingSettings, used

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

CHANGED, LARGER = 0.6, 0.4  # how much a picture changes that drawing starts from, or that is made larger


class CousinWarning(UserWarning):
    """A concept is used on a fine-tuned relative of the base that it was trained on."""


def draw(
    base: Base,
    prompt: str | Sequence[str],
    *,
    concepts: Sequence[Concept | tuple[Concept, Strength]] | Sequence[list[Any]] = (),
    count: int = 1,
    seed: int = 0,
    steps: int = 25,
    guidance: float | None = None,
    negative: str = "",
    size: int | tuple[int, int] | None = None,
    sampler: str = "dpm++",
    batch_size: int | None = None,
    acting: str = USUAL,
    image: Image | Sequence[Image] | None = None,
    mask: Image | None = None,
    strength: float | None = None,
    hires: float = 1.0,
    callback: Callable[[int, int], None] | None = None,
    preview: Callable[[Tensor], None] | None = None,
) -> list[Image]:
    """Draws `count` pictures of the prompt, or of each of several prompts in turn; the i-th of all
    depends on its prompt and seed + i alone, and its `info["parameters"]` says how to redraw it.

    `concepts` may carry strengths: `(concept, 0.8)`, or one a block `(concept, {"down": 0.5, "up": 1})`. At
    strength 0 the pictures are the base's, bit for bit. `guidance`, `size` (a side, or width and height) and
    `batch_size` have defaults by the base. With `acting` "plain" concepts act on everything, as any tool
    draws with weights that are attached; "gated" only where a prompt says their trigger (or they have none),
    on the prompt's side of guidance, and not in the first steps: elsewhere the base draws, to the bit.

    With a list of concepts for each prompt, `concepts=[[dog], [(cat, 0.8), hat], []]`, pictures of different
    concepts are drawn in one batch (see `mixed`); these act plainly.

    With an `image` (or one for each picture) drawing starts from it: the picture may change as much as
    `strength` says, 0 to 1, or where a `mask` is white (see `img2img`). `hires` 2 draws at `size` first,
    then from what came of it at twice the sides, by `strength`.

    `callback(done, total)` is told of every step, and `preview(latents)` what the step expects the pictures
    to become, (b, c, h, w); drawing stops within the step if one of them raises (`Interrupted`, say). Raises
    SettingsError for values that cannot work, ConceptError for a concept of another base; warns
    (CousinWarning) where a concept's base was fine-tuned in the meantime.
    """
    if strength is None:
        strength = LARGER if hires != 1 else CHANGED
    if hires != 1:
        plain = {
            "concepts": concepts, "seed": seed, "steps": steps, "guidance": guidance, "negative": negative,
            "sampler": sampler, "batch_size": batch_size, "acting": acting, "strength": strength,
            "preview": preview,
        }  # fmt: skip
        started = {"image": image, "mask": mask, "size": size, "count": count}
        return _draw_large(base, prompt, hires, plain, started, callback)
    first = None if image is None else strength
    settings = draw_settings(base, seed, steps, guidance, negative, size, sampler, acting, first)
    mixing = any(isinstance(item, list) for item in concepts)
    each = [weighted_of(cast(list[Any], some)) for some in concepts] if mixing else []
    weighted = [] if mixing else weighted_of(concepts)
    if count < 1 or (batch_size is not None and batch_size < 1):
        raise SettingsError(
            f"At least one picture is drawn at a time, not count {count}, batch {batch_size}."
        )
    prompts = [prompt] * count if isinstance(prompt, str) else [text for text in prompt for _ in range(count)]
    total = len(prompts)
    if seed + total - 1 > MAX_SEED:
        raise SettingsError(
            f"The seeds {seed} to {seed + total - 1} go beyond 2^63 - 1: take a smaller seed."
        )
    for concept in dict.fromkeys(
        concept for concept, _ in [*weighted, *(pair for own in each for pair in own)]
    ):
        warning = concept.check_base(base.passport)
        if warning:
            warnings.warn(warning, CousinWarning, stacklevel=2)
    starts = img2img.starts(base, image, mask, strength, size, total)
    if starts:
        base, settings = img2img.with_pipeline(base, mask is not None), replace(settings, size=starts[0].size)
    if mixing:
        if starts:
            raise SettingsError(
                "Pictures of different concepts in one batch start from noise: draw them apart."
            )
        if isinstance(prompt, str) or len(each) != len(prompts) // count:
            raise SettingsError(
                f"With a list of concepts for each prompt give as many lists as prompts, not {len(each)}."
            )
        each = [own for own in each for _ in range(count)]
        return _draw_mixed(base, prompts, each, settings, batch_size, callback, preview)
    together = groups(prompts, [concept for concept, _ in weighted], settings.acting)
    limit = batch_size or ARCHITECTURES[base.family].batch
    plans: list[tuple[list[tuple[Concept, Strength]], list[list[int]]]] = []
    for called, those in together.items():
        some = [weighted[i] for i in called]
        known = textual_inversion.readings(base, [(concept, of_words(own)) for concept, own in some])
        spoken = {i: textual_inversion.spoken(prompts[i], known) for i in those}
        plans.append((some, batches(base, spoken, limit)))
    rounds, begun = sum(len(planned) for _, planned in plans), 0
    each_round = img2img.steps_done(steps, strength) if starts else steps
    images: dict[int, Image] = {}
    with with_scheduler(base, settings, preview):
        for some, planned in plans:
            with concepts_acting(base, some, settings.negative, settings.acting) as (known, avoided):
                for batch in planned:
                    tell = teller(callback, begun * each_round, rounds * each_round, each_round)
                    texts, seeds = (
                        [textual_inversion.spoken(prompts[i], known) for i in batch],
                        [seed + i for i in batch],
                    )
                    from_these = [starts[i] for i in batch] if starts else []
                    made = draw_batch(base, texts, settings, seeds, avoided, tell, from_these)
                    images |= zip(batch, made, strict=True)
                    begun += 1
    for i, image in images.items():
        image.info["parameters"] = parameters_text(base, prompts[i], settings, weighted, seed + i)
    return [images[i] for i in range(total)]


def draw_as(
    base: Base, settings: DrawingSettings, prompts: Sequence[str] | None = None, **options: Any
) -> list[Image]:
    """Draws what the settings say, whose concepts are `Concept`s, or several `prompts` with the same;
    `options` are the others of `draw`: count, batch_size, image, mask, callback, preview."""
    told = {name: value for name, value in vars(settings).items() if name != "prompt"}
    return draw(base, settings.prompt if prompts is None else prompts, **told, **options)


def _draw_large(
    base: Base,
    prompt: str | Sequence[str],
    hires: float,
    plain: dict[str, Any],
    started: dict[str, Any],
    callback: Callable[[int, int], None] | None,
) -> list[Image]:
    """Two passes: pictures of the usual size, then from each of them one with sides `hires` times as long."""
    settings = DrawingSettings("", hires=hires)  # refuses another factor

    def half(place: int) -> Callable[[int, int], None] | None:
        return callback and (lambda done, total: callback(place * total + done, 2 * total))

    small = draw(base, prompt, **plain, **started, callback=half(0))
    prompts = [prompt] * len(small) if isinstance(prompt, str) else list(prompt)
    prompts = [text for text in prompts for _ in range(len(small) // len(prompts))]
    each = plain["concepts"]
    if any(isinstance(own, list) for own in each):
        raise SettingsError("Pictures of different concepts in one batch have one pass: draw them apart.")
    width, height = (8 * round(settings.hires * side / 8) for side in small[0].size)
    large = draw(base, prompts, **plain, image=small, size=(width, height), callback=half(1))
    for one, other in zip(small, large, strict=True):
        told = [f"Denoising strength: {plain['strength']:g}", f"Hires upscale: {hires:g}"]
        told = [field for field in told if field not in one.info["parameters"]]
        other.info["parameters"] = one.info["parameters"].replace(
            ", Version: atomdiff", f", {', '.join(told)}, Version: atomdiff"
        )
    return large


def weighted_of(concepts: Sequence[Any]) -> list[tuple[Concept, Strength]]:
    return [(item, 1.0) if isinstance(item, Concept) else (item[0], item[1]) for item in concepts]


def _draw_mixed(
    base: Base,
    prompts: list[str],
    each: list[list[tuple[Concept, Strength]]],
    settings: DrawingSettings,
    batch_size: int | None,
    callback: Callable[[int, int], None] | None,
    preview: Callable[[Tensor], None] | None,
) -> list[Image]:
    """A picture of each prompt with its own concepts, in batches of any of them together."""
    settings = replace(settings, acting="plain")
    held, limit, images = Residents(base), batch_size or ARCHITECTURES[base.family].batch, []
    resident = [[(held.add(concept), strength) for concept, strength in own] for own in each]
    starts = range(0, len(prompts), limit)
    with with_scheduler(base, settings, preview), mixed.mixer(base) as mixer:
        for turn, start in enumerate(starts):
            some = slice(start, start + limit)
            told = mixer.told(prompts[some], resident[some], settings.negative)
            seeds = [settings.seed + i for i in range(len(prompts))[some]]
            tell = teller(callback, turn * settings.steps, len(starts) * settings.steps, settings.steps)
            images += draw_batch(base, None, settings, seeds, functools.partial(_same, told), tell)
    for i, image in enumerate(images):
        image.info["parameters"] = parameters_text(base, prompts[i], settings, each[i], settings.seed + i)
    return images


def _same(told: dict[str, Any], count: int) -> dict[str, Any]:
    return told


def draw_settings(
    base: Base,
    seed: int = 0,
    steps: int = 25,
    guidance: float | None = None,
    negative: str = "",
    size: int | tuple[int, int] | None = None,
    sampler: str = "dpm++",
    acting: str = USUAL,
    strength: float | None = None,
) -> DrawingSettings:
    """The settings of any prompt and concepts, with the base's own defaults filled in."""
    sides = (size, size) if isinstance(size, int) else size
    return DrawingSettings(
        "", (), negative, seed, steps, guidance, sides, sampler.lower(), acting, strength
    ).filled(base)


def parameters_text(
    base: Base,
    prompt: str,
    settings: DrawingSettings,
    concepts: Sequence[tuple[Concept, Strength]],
    seed: int,
) -> str:
    """The generation text as A1111 writes it; concepts as name:strength:hash."""
    named = [used(concept.title, strength, sha256(concept)) for concept, strength in concepts]
    return str(replace(settings, prompt=prompt, seed=seed).generation(base.name, named))


def draw_batch(
    base: Base,
    prompts: list[str] | None,
    settings: DrawingSettings,
    seeds: list[int],
    avoided: Negatives,
    tell: Callable[..., dict[str, Any]],
    starts: Sequence[img2img.Start] = (),
) -> list[Image]:
    import torch

    width, height = settings.size or (0, 0)
    noise = {"num_inference_steps": settings.steps, "width": width, "height": height}
    with loading.quiet(), torch.no_grad():
        against = avoided(len(seeds))
        made = base.pipe(
            **(against if prompts is None else prompt_arguments(base, prompts, against)),
            **(img2img.arguments(starts, settings.steps) if starts else noise),
            guidance_scale=settings.guidance,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            callback_on_step_end=tell,
        )
    return (
        [start.finished(image) for start, image in zip(starts, made.images, strict=True)]
        if starts
        else list(made.images)
    )


def teller(
    callback: Callable[[int, int], None] | None, done: int, total: int, steps: int
) -> Callable[..., dict[str, Any]]:
    """diffusers' step callback: passes progress on, and stops when the latents are no numbers any more."""

    def tell(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if not tensors["latents"].isfinite().all():
            raise SettingsError(
                f"The picture turned into NaN at step {step + 1}: lower the concept's strength, or draw in "
                "fp32 or bf16."
            )
        if callback is not None:
            callback(done + min(step + 1, steps), total)
        return {}

    return tell


@contextlib.contextmanager
def with_scheduler(
    base: Base, settings: DrawingSettings, preview: Callable[[Tensor], None] | None = None
) -> Iterator[None]:
    """The pipeline with the wanted sampler over the base's own noise schedule; its own one is put back."""
    import diffusers

    sampler = SAMPLERS[settings.sampler]
    own = base.pipe.scheduler
    with loading.quiet():
        made = getattr(diffusers, sampler.scheduler).from_config(own.config, **dict(sampler.options))
    if preview is not None:
        made.step = _watched(made, preview)
    base.pipe.scheduler = made
    try:
        yield
    finally:
        base.pipe.scheduler = own


def _watched(scheduler: Any, preview: Callable[[Tensor], None]) -> Callable[..., Any]:
    """A scheduler's step that also tells its estimate of the clean latents.

    Schedulers return it beside the next latents, or keep it (the multistep ones) among their past outputs.
    """
    own = scheduler.step

    @functools.wraps(own)  # pipelines look at the signature
    def step(*args: Any, **kwargs: Any) -> Any:
        made = own(*args, **kwargs)
        preview(made[1] if len(made) > 1 else scheduler.model_outputs[-1])
        return made

    return step
