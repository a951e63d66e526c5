"""From a concept file to a file of another kind: what `atomdiff export --to` does."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from atomdiff.base.stable_diffusion import Base, added_conditions, encode_prompts
from atomdiff.concept.concept import Concept
from atomdiff.core.inject import fold
from atomdiff.errors import BaseError, ConceptError, SettingsError
from atomdiff.files import modelspec
from atomdiff.files.safetensors_file import sha256
from atomdiff.integrations.exports import embedding, merged, weights

KINDS = ("embedding", "diffusers", "checkpoint", "diff", "lora")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Tell = Callable[[str], None]
_NO_HASH = "0x" + 64 * "0"


@dataclass(frozen=True)
class ExportSettings:
    """What is written, and how. `rank` or `max_error` is a LoRA's; `checkpoint` is the base's own file.

    Raises SettingsError for what cannot work.
    """

    kind: str
    strength: float = 1.0
    dtype: str = "fp16"
    rank: int | None = None
    max_error: float | None = None
    checkpoint: Path | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SettingsError(f"A concept is exported to {', '.join(KINDS)}, not {self.kind!r}.")
        if self.dtype not in DTYPES:
            raise SettingsError(f"Tensors are written as {', '.join(DTYPES)}, not {self.dtype!r}.")
        if not -1e6 < self.strength < 1e6:
            raise SettingsError(f"A strength is a finite number, not {self.strength}.")
        if self.kind != "lora" and (self.rank is not None or self.max_error is not None):
            raise SettingsError(
                "A rank and a largest error are a LoRA's: leave them out, or export --to lora."
            )
        if self.kind == "lora" and (self.rank is None) == (self.max_error is None):
            raise SettingsError("A LoRA is made of --rank or of --max-error: give one of the two.")


def export(concept: Concept, base: Base, settings: ExportSettings, out: Path, tell: Tell = print) -> None:
    """Writes the file, or folder, and what belongs with it; `tell` hears what one should know, a line each.

    Raises ConceptError, BaseError or SettingsError, and writes nothing then.
    """
    warning = concept.check_base(base.passport)
    if warning:
        tell(f"warning: {warning}")
    if settings.kind == "diffusers":
        merged.save_folder(concept, base.pipe, out, settings.strength)
        tell(f"{out} (a diffusers folder; {concept.trigger!r} is a word of its tokenizers)")
        return
    if out.suffix != ".safetensors":
        raise SettingsError(f"An export --to {settings.kind} is a .safetensors file, not {out.name!r}.")
    made = {"embedding": _embedding, "checkpoint": _checkpoint, "diff": _diff, "lora": _lora}[settings.kind]
    tensors = made(concept, base, settings, tell)
    if tensors:
        _write(out, tensors, _metadata(concept, settings.kind, base), tell)
    if settings.kind != "embedding" and concept.token:
        beside = out.with_name(f"{out.stem}-{_plain(concept.trigger)}.safetensors")
        words = _embedding(concept, base, settings, tell)
        _write(beside, words, _metadata(concept, "embedding", base), tell)
        tell(f"note: {concept.trigger!r} is a learned word: load {beside.name} as a textual inversion too.")


def _embedding(concept: Concept, base: Base, settings: ExportSettings, tell: Tell) -> dict[str, Tensor]:
    found = embedding.word_embeddings(concept, base.pipe, settings.strength)
    tensors = embedding.textual_inversion(concept.trigger, found)
    return {key: values.to(DTYPES[settings.dtype]) for key, values in tensors.items()}


def _checkpoint(concept: Concept, base: Base, settings: ExportSettings, tell: Tell) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if settings.checkpoint is None:
        raise BaseError(
            f"A checkpoint is made from a base that is a single .safetensors file, and {base.name!r} is "
            "none: give the file with --base, or export --to diffusers."
        )
    return merged.checkpoint_tensors(concept, base.unet, load_file(settings.checkpoint), settings.strength)


def _diff(concept: Concept, base: Base, settings: ExportSettings, tell: Tell) -> dict[str, Tensor]:
    dtype = DTYPES[settings.dtype]
    size = weights.diff_size(concept, base.unet, dtype)
    tell(f"note: a diff holds every changed weight: {size / 1e6:,.1f} MB; the concept itself is a few KB.")
    return weights.diff_tensors(weights.changed_weights(concept, base.unet, settings.strength), dtype)


def _lora(concept: Concept, base: Base, settings: ExportSettings, tell: Tell) -> dict[str, Tensor]:
    changes = weights.changed_weights(concept, base.unet, settings.strength)
    made = weights.lora(changes, DTYPES[settings.dtype], settings.rank, settings.max_error)
    ranks = sorted(made.ranks.values())
    tell(
        f"note: ranks {ranks[0]} to {ranks[-1]}; ΔW is missed by {made.error:.0%}, what it does to the "
        f"prediction by {prediction_error(concept, base, made.changes, settings.strength):.0%} (100% is no "
        "LoRA at all): a map applied to frozen kernels has full rank, so no small LoRA is the concept."
    )
    return made.tensors


@torch.no_grad()
def prediction_error(
    concept: Concept, base: Base, changes: Mapping[str, Tensor], strength: float = 1.0
) -> float:
    """‖ε̂(changes) − ε̂(concept)‖ / ‖ε̂(concept) − ε̂(base)‖ for fixed noise in the middle of the way."""
    unet, side = base.unet, base.resolution // base.vae_factor
    noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))
    embeds = encode_prompts(base, [f"a {concept.trigger} {concept.class_word}".strip()])
    extra = added_conditions(base, embeds)
    given = {"added_cond_kwargs": extra} if extra is not None else {}

    def eps() -> Tensor:
        made = unet(noise.to(unet.device, unet.dtype), 500, embeds.hidden, return_dict=False, **given)
        return made[0].float()

    plain = eps()
    with fold(unet, [(concept.deltas(unet), strength)]):
        wanted = eps()
    with fold(unet, [(changes, 1.0)]):
        found = eps()
    return float((found - wanted).norm() / (wanted - plain).norm())


def _write(out: Path, tensors: dict[str, Tensor], metadata: dict[str, str], tell: Tell) -> None:
    """As one file, whole or not at all; tensors may be larger than one would copy."""
    from safetensors.torch import save_file

    part = out.with_name(f".{out.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: values.contiguous() for key, values in tensors.items()}, part, metadata)
        _stamp(part)
        part.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner may read
        part.replace(out)
    except OSError as error:
        raise ConceptError(
            f"The export cannot be written to {str(out)!r} ({error.strerror or error}): choose a folder that "
            "can be written, or free some space."
        ) from error
    finally:
        part.unlink(missing_ok=True)
    tell(f"{out} ({out.stat().st_size:,} bytes)")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _metadata(concept: Concept, kind: str, base: Base) -> dict[str, str]:
    """ModelSpec, with what the concept's author says of it, and what concept the file is of."""
    adapter = {"embedding": "/textual-inversion", "checkpoint": ""}.get(kind, "/lora")
    said = modelspec.required_keys(concept, adapter, "diffusers", base.prediction_type) | {
        "resolution": f"{base.resolution}x{base.resolution}",
        "prediction_type": "v" if base.prediction_type == "v_prediction" else "epsilon",
        "hash_sha256": _NO_HASH,
    }
    kept = {key: text for key, text in concept.extra.items() if key.startswith(modelspec.PREFIX)}
    about = {"atomdiff.concept": json.dumps({"sha256": sha256(concept), "export": kind})}
    return kept | {modelspec.PREFIX + key: text for key, text in said.items() if text} | about


def _stamp(file: Path) -> None:
    """Puts the SHA-256 of the tensors into the header of a file, which has the room for it."""
    digest = hashlib.sha256()
    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = opened.read(size)
        while block := opened.read(2**22):
            digest.update(block)
        opened.seek(8)
        opened.write(header.replace(_NO_HASH.encode(), b"0x" + digest.hexdigest().encode()))


def _plain(word: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in word)
