"""Base models of the Hugging Face hub: from the cache on this machine if they are there, else downloaded."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomdiff.base.loading import (
    GO_ON,
    UNUSED_PARTS,
    check_kind,
    from_folder,
    missing_weights,
    quiet,
    read_index,
)
from atomdiff.errors import BaseError, refused_by_hub

if TYPE_CHECKING:
    import torch


def from_hub(
    repo: str,
    dtype: torch.dtype,
    ref: str,
    revision: str | None = None,
    variant: str | None = None,
    **given: Any,
) -> Any:
    """The pipeline of a repository; `ref` and `given` as in `from_folder`. Raises BaseError."""
    folder = _cached_folder(repo, ref, revision) or _download(repo, dtype, ref, revision, variant)
    return from_folder(folder, dtype, ref, variant, **given)


def _cached_folder(repo: str, ref: str, revision: str | None) -> Path | None:
    """The repository's snapshot in the local cache, if it is complete; no network is touched."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(repo, "model_index.json", revision=revision)
    if not isinstance(index, str):
        return None
    folder = Path(index).parent
    return None if missing_weights(folder, check_kind(read_index(folder, ref), ref)) else folder


def _download(repo: str, dtype: torch.dtype, ref: str, revision: str | None, variant: str | None) -> Path:
    """Downloads what is needed, in fp16 where that is what will be used; looks at the small index first."""
    import torch
    from diffusers import DiffusionPipeline
    from huggingface_hub import errors, hf_hub_download

    try:
        with quiet():
            index = hf_hub_download(repo, "model_index.json", revision=revision)
        parts = check_kind(read_index(Path(index).parent, ref), ref)
        variants = (None, "fp16") if dtype == torch.float32 else ("fp16", None)
        for kind in (variant,) if variant else variants:
            with contextlib.suppress(ValueError, EnvironmentError):
                options: dict[str, Any] = {"variant": kind, "revision": revision}
                left_out = dict.fromkeys(UNUSED_PARTS)
                folder = DiffusionPipeline.download(repo, use_safetensors=True, **options, **left_out)
                if not missing_weights(Path(folder), parts):
                    return Path(folder)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise BaseError(refused_by_hub(error, f"model {repo!r}")) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise BaseError(
            f"The base {ref!r} is not on this machine and the hub cannot be reached: go online once to "
            f"download it, or {GO_ON}."
        ) from error
    except errors.EntryNotFoundError as error:
        raise BaseError(
            f"The hub model {repo!r} is not in diffusers' layout (it has no model_index.json): {GO_ON}."
        ) from error
    raise BaseError(
        f"The base {ref!r} could not be downloaded in full as safetensors (connection lost, disk full, or it "
        f"only has pickled weights): try again, or {GO_ON}."
    )
