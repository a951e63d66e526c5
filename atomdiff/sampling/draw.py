"""Drawing: a base, any concepts and a prompt become pictures.

Concepts are folded into the weights for the time of drawing, W' = W + Σ sᵢ ΔWᵢ, so that a step computes no
more than on the base alone, and the very same weights are back afterwards. Σ is over the concepts that a
prompt calls by their triggers: where none is called, pictures are the base's, bit for bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from atomdiff.base.architectures import ARCHITECTURES
from atomdiff.base.prompt_weights import Prompt, batches, prompt_arguments
from atomdiff.base.stable_diffusion import Base
from atomdiff.base.textual_inversion import convert_prompt, embeddings_of
from atomdiff.concept.concept import Concept
from atomdiff.core.blocks import Strength, of_words
from atomdiff.errors import SettingsError
from atomdiff.sampling import adapters, img2img, mixed
from atomdiff.sampling.gating import acting as concepts_acting
from atomdiff.sampling.gating import groups
from atomdiff.sampling.pipeline import Batches, Callback, Concepts, with_scheduler
from atomdiff.sampling.regions import draw_in_regions
from atomdiff.sampling.resident import Residents
from atomdiff.sampling.settings import MAX_SEED, USUAL, DrawingSettings, sides_of

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor

    from atomdiff.sampling.region import Region

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
    loras: Sequence[tuple[Path, float]] = (),
    embeddings: Sequence[Path] = (),
    spend: bool = False,
    regions: Sequence[Region] = (),
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

    `loras` are other people's LoRA files with strengths, and `embeddings` textual inversions, each called by
    the name of its file; they are in the base while it draws, and out of it afterwards (see `adapters`).

    Concepts that are drawn plainly move the weights of the base, of which it keeps the originals meanwhile, a
    second copy of the layers that they change. A base that is not needed any more may be spent: with `spend`
    they are moved in their place, layer by layer, where pictures are drawn plainly, in one pass and without
    LoRAs, and the base must be loaded again for anything else.

    `regions` are parts of the picture, `[Region((0, 0, 0.5, 1), (0,)), ...]`, in which some of the concepts
    act, 0 being the first of them; one that no region has acts everywhere (see `regions`).

    `callback(done, total)` is told of every step, and `preview(latents)` what the step expects the pictures
    to become, (b, c, h, w); drawing stops within the step if one of them raises (`Interrupted`, say). Raises
    SettingsError for values that cannot work, ConceptError for a concept of another base; warns
    (CousinWarning) where a concept's base was fine-tuned in the meantime.
    """
    mixing = any(isinstance(item, list) for item in concepts)
    each = [weighted_of(cast(list[Any], some)) for some in concepts] if mixing else []
    weighted = [] if mixing else weighted_of(concepts)
    if strength is None:
        strength = LARGER if hires != 1 else CHANGED
    settings = DrawingSettings(
        "", tuple(weighted), negative, seed, steps, guidance, sides_of(size), sampler.lower(), acting,
        None if image is None and hires == 1 else strength, hires, tuple(loras), tuple(embeddings),
        tuple(regions),
    )  # fmt: skip
    prompts = _of_each(prompt, count, batch_size, seed)
    for concept in dict.fromkeys(concept for own in [weighted, *each] for concept, _ in own):
        warning = concept.check_base(base.passport)
        if warning:
            warnings.warn(warning, CousinWarning, stacklevel=2)
    keep = not spend or settings.acting != "plain" or hires != 1 or bool(loras)
    how = _How(batch_size or ARCHITECTURES[base.family].batch, callback, preview, keep=keep)
    if mixing:
        if image is not None or mask is not None or loras or embeddings or regions:
            raise SettingsError(
                "Pictures of different concepts in one batch start from noise and take no LoRAs, "
                "embeddings or regions: draw them apart."
            )
        if isinstance(prompt, str) or len(each) != len(prompts) // count:
            raise SettingsError(
                f"With a list of concepts for each prompt give as many lists as prompts, not {len(each)}."
            )
        return _draw_mixed(base, prompts, [own for own in each for _ in range(count)], settings, how)
    drawn = _draw_once if hires == 1 else _draw_large
    with adapters.loaded(base, settings.loras, settings.embeddings) as said:
        return drawn(base, prompts, settings.with_files_named(), image, mask, replace(how, said=said))


def draw_as(
    base: Base, settings: DrawingSettings, prompts: Sequence[str] | None = None, **options: Any
) -> list[Image]:
    """Draws what the settings say, whose concepts are `Concept`s, or several `prompts` with the same;
    `options` are the others of `draw`: count, batch_size, image, mask, callback, preview."""
    told = {name: value for name, value in vars(settings).items() if name != "prompt"}
    return draw(base, settings.prompt if prompts is None else prompts, **told, **options)


def weighted_of(concepts: Sequence[Any]) -> list[tuple[Concept, Strength]]:
    return [(item, 1.0) if isinstance(item, Concept) else (item[0], item[1]) for item in concepts]


@dataclass(frozen=True)
class _How:
    """At most how many pictures are drawn at a time, who is told of it, what prompts are to the text
    encoders, and whether the base is kept as it was."""

    limit: int
    callback: Callback | None
    preview: Callable[[Tensor], None] | None
    said: adapters.Said = str
    keep: bool = True


def _of_each(prompt: str | Sequence[str], count: int, batch_size: int | None, seed: int) -> list[str]:
    """The prompt of every picture. Raises SettingsError where there are no pictures, or no seeds for all."""
    if count < 1 or (batch_size is not None and batch_size < 1):
        raise SettingsError(
            f"At least one picture is drawn at a time, not count {count}, batch {batch_size}."
        )
    prompts = [text for text in ([prompt] if isinstance(prompt, str) else prompt) for _ in range(count)]
    if seed + len(prompts) - 1 > MAX_SEED:
        raise SettingsError(
            f"The seeds {seed} to {seed + len(prompts) - 1} go beyond 2^63 - 1: take a smaller seed."
        )
    return prompts


def _draw_once(
    base: Base,
    prompts: Sequence[str],
    settings: DrawingSettings,
    image: Image | Sequence[Image] | None,
    mask: Image | None,
    how: _How,
) -> list[Image]:
    """A picture of each prompt, in batches of those that call the same concepts."""
    starts = img2img.starts(base, settings, image, mask, len(prompts))
    if starts:
        base, settings = img2img.with_pipeline(base, mask is not None), replace(settings, size=starts[0].size)
    settings, weighted = settings.filled(base), settings.concepts
    if settings.regions:
        if mask is not None:
            raise SettingsError("Regions are parts of a whole picture: leave out the mask, or the regions.")
        return draw_in_regions(base, prompts, settings, starts, how.limit, how.callback, how.preview)
    told, negative = [how.said(text) for text in prompts], how.said(settings.negative)
    plans: list[tuple[Concepts, dict[int, Prompt], list[list[int]]]] = []
    for called, those in groups(told, [concept for concept, _ in weighted], settings.acting).items():
        some = [weighted[i] for i in called]
        learned = embeddings_of(base, [(concept, of_words(own)) for concept, own in some])
        converted = {i: Prompt.of(base, convert_prompt(told[i], learned)) for i in those}
        plans.append((some, converted, batches(converted, how.limit)))
    made = Batches(base, settings, sum(len(planned) for *_, planned in plans), how.callback, starts)
    with with_scheduler(base, settings, how.preview):
        for own, converted, planned in plans:
            with concepts_acting(base, own, negative, settings.acting, how.keep) as avoided:
                for batch in planned:
                    texts = [converted[i] for i in batch]
                    made.draw(batch, prompt_arguments(base, texts, avoided(len(batch))))
    return made.finished([replace(settings, prompt=prompt) for prompt in prompts])


def _draw_large(
    base: Base,
    prompts: Sequence[str],
    settings: DrawingSettings,
    image: Image | Sequence[Image] | None,
    mask: Image | None,
    how: _How,
) -> list[Image]:
    """Two passes: pictures of the usual size, then from each of them one with sides `hires` times as long."""

    def half(place: int) -> _How:
        heard = how.callback
        return replace(how, callback=heard and (lambda done, total: heard(place * total + done, 2 * total)))

    once = replace(settings, hires=1.0)
    first = once if image is not None else replace(once, strength=None)
    small = _draw_once(base, prompts, first, image, mask, half(0))
    width, height = (8 * round(settings.hires * side / 8) for side in small[0].size)
    large = _draw_once(base, prompts, replace(once, size=(width, height)), small, None, half(1))
    for one, other in zip(small, large, strict=True):
        told = [f"Denoising strength: {settings.strength:g}", f"Hires upscale: {settings.hires:g}"]
        told = [field for field in told if field not in one.info["parameters"]]
        other.info["parameters"] = one.info["parameters"].replace(
            ", Version: atomdiff", f", {', '.join(told)}, Version: atomdiff"
        )
    return large


def _draw_mixed(
    base: Base, prompts: Sequence[str], each: Sequence[Concepts], settings: DrawingSettings, how: _How
) -> list[Image]:
    """A picture of each prompt with its own concepts, in batches of any of them together."""
    if settings.hires != 1:
        raise SettingsError("Pictures of different concepts in one batch have one pass: draw them apart.")
    settings, held = replace(settings, acting="plain").filled(base), Residents(base)
    resident = [[(held.add(concept), strength) for concept, strength in own] for own in each]
    starts = range(0, len(prompts), how.limit)
    made = Batches(base, settings, len(starts), how.callback)
    with with_scheduler(base, settings, how.preview), mixed.mixer(base) as mixer:
        for start in starts:
            some = slice(start, start + how.limit)
            told = mixer.told(prompts[some], resident[some], settings.negative)
            made.draw(range(len(prompts))[some], told)
    pairs = zip(prompts, each, strict=True)
    return made.finished([replace(settings, prompt=text, concepts=tuple(own)) for text, own in pairs])
