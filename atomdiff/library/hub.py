"""Concepts on the Hugging Face hub: a repository each, with a card of its own, given and taken.

A repository holds `NAME.safetensors`, named like itself; `card.png`, which is the concept as well;
`samples/`; and a README.md that says what it is. `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` and `HF_HUB_OFFLINE`
mean what they mean to huggingface_hub, whose cache makes `pull` work without a network.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atomdiff.errors import AtomdiffError, ConceptError, SettingsError, reason_of, refused_by_hub

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from atomdiff.library.hub_card import Sample

MAX_BYTES = 8 * 2**20  # of a concept, either way: what a card carries too
MAX_SAMPLES = 12
_REPO = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[\w][\w./-]{0,199}", re.ASCII)


def push(
    concept_file: str | Path,
    repo: str,
    *,
    token: str | None = None,
    private: bool = False,
    pictures: Sequence[str | Path] = (),
    endpoint: str | None = None,
) -> str:
    """Puts a concept file or card at `user/name` on the hub, with a card made of it and of sample pictures.

    The repository is made if missing; one that holds something else is refused. Returns its address. Raises
    ConceptError (also for whatever the hub refuses), ImageError, SettingsError.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    from atomdiff.files.read_any import read_any
    from atomdiff.library.hub_card import sample

    name = _checked(repo)[0]
    if name != repo:
        raise SettingsError(f"A concept is pushed to user/name, without a revision: {name}, not {repo!r}.")
    if len(pictures) > MAX_SAMPLES:
        raise SettingsError(f"A concept is shown by at most {MAX_SAMPLES} pictures, not {len(pictures)}.")
    data = read_any(Path(concept_file)).data
    if len(data) > MAX_BYTES:
        raise ConceptError(_too_large(str(concept_file), len(data)))
    samples = [sample(Path(picture), i) for i, picture in enumerate(pictures, 1)]
    if (token or get_token()) is None:
        raise ConceptError(
            "Pushing needs a token of your account with the right to write: log in with `hf auth login`, "
            "or set HF_TOKEN."
        )
    api = HfApi(endpoint=endpoint, token=token)
    with _told(name):
        api.create_repo(name, private=private or None, exist_ok=True)
        there = _contents(api, name, None)
        _check_ours(name, there)
        files = _files(name, data, samples)
        stale = [file for file in there if file.startswith("samples/") and file not in files]
        api.create_commit(
            name,
            [CommitOperationAdd(path, content) for path, content in files.items()]
            + [CommitOperationDelete(path) for path in stale],
            commit_message=f"A concept of {len(data):,} bytes",
        )
    return f"{api.endpoint}/{name}"


def pull(
    repo: str, *, token: str | None = None, endpoint: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """The concept file of `user/name` or `user/name@revision`, read and found sound, in the hub's cache.

    Where the hub cannot be reached, what the cache holds. Nothing over `MAX_BYTES` is downloaded. Raises
    ConceptError, SettingsError.
    """
    from huggingface_hub import HfApi

    from atomdiff.files.safetensors_file import load_concept

    name, revision = _checked(repo)
    with _told(repo):
        try:
            path = _download(HfApi(endpoint=endpoint, token=token), name, revision, token, cache_dir)
        except Exception as error:
            folder = _cached(name, revision, cache_dir) if _unreachable(error) else None
            if folder is None:
                raise
            files = [file.relative_to(folder).as_posix() for file in folder.rglob("*.safetensors")]
            path = folder / _choose(name, files)
    load_concept(path)
    return path


def is_repo(name: str) -> bool:
    """Whether this is how a concept on the hub is named."""
    repo, _, revision = name.partition("@")
    return _REPO.fullmatch(repo) is not None and (not revision or _REVISION.fullmatch(revision) is not None)


def _download(
    api: HfApi, name: str, revision: str | None, token: str | None, cache_dir: str | Path | None
) -> Path:
    """The concept of a repository, unless it is too large for one."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    chosen = _choose(name, _contents(api, name, revision))
    url = hf_hub_url(name, chosen, revision=revision, endpoint=api.endpoint)
    size = get_hf_file_metadata(url, token=token).size
    if size is None or size > MAX_BYTES:
        raise ConceptError(_too_large(f"{name}/{chosen}", size))
    return Path(
        hf_hub_download(
            name, chosen, revision=revision, token=token, endpoint=api.endpoint, cache_dir=cache_dir
        )
    )


def _files(name: str, data: bytes, samples: Sequence[Sample]) -> dict[str, bytes]:
    """Path in the repository -> contents."""
    from atomdiff.files import card_image
    from atomdiff.library.hub_card import readme

    shown = [sample.image for sample in samples[: card_image.MAX_PICTURES]]
    files = {
        "README.md": readme(name, data, samples).encode(),
        _own_file(name): data,
        "card.png": card_image.make(data, shown),
    }
    return files | {sample.path: sample.data for sample in samples}


def _own_file(name: str) -> str:
    """A repository's concept is called like the repository, so that pushing again replaces it."""
    return f"{name.partition('/')[2]}.safetensors"


def _contents(api: HfApi, name: str, revision: str | None) -> list[str]:
    """The files of a repository."""
    info = api.model_info(name, revision=revision, timeout=20)
    return [file.rfilename for file in info.siblings or []]


def _check_ours(name: str, there: Sequence[str]) -> None:
    """Raises ConceptError rather than mixing a concept with somebody's other work."""
    usual = {".gitattributes", "README.md", "LICENSE", "card.png"}
    others = sorted(file for file in there if file not in usual and not file.startswith("samples/"))
    if others and _own_file(name) not in there:
        raise ConceptError(
            f"The repository {name!r} is there and holds something else ({', '.join(others[:3])}): choose a "
            "new name."
        )


def _choose(name: str, files: Sequence[str]) -> str:
    """The file of a repository that is its concept. Raises ConceptError."""
    own = _own_file(name)
    found = [file for file in files if file.endswith(".safetensors")]
    if own in found or len(found) == 1:
        return own if own in found else found[0]
    if not found:
        raise ConceptError(
            f"The repository {name!r} holds no concept (no .safetensors file): check the name."
        )
    raise ConceptError(
        f"The repository {name!r} holds {len(found)} .safetensors files and none is called {own}, so it is "
        "no concept's: check the name."
    )


def _cached(name: str, revision: str | None, cache_dir: str | Path | None) -> Path | None:
    """The folder in which the hub's cache keeps a revision of a repository."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with contextlib.suppress(LocalEntryNotFoundError):
        return Path(
            snapshot_download(
                name,
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=True,
                allow_patterns=["*.safetensors"],
            )
        )
    return None


def _checked(repo: str) -> tuple[str, str | None]:
    """`user/name[@revision]` -> its parts. Raises SettingsError."""
    name, at, revision = repo.partition("@")
    if not _REPO.fullmatch(name) or ".." in repo or (at and not _REVISION.fullmatch(revision)):
        raise SettingsError(
            f"A concept on the hub is named user/name or user/name@revision, not {repo[:120]!r}."
        )
    return name, revision or None


def _too_large(what: str, size: int | None) -> str:
    found = "a size that nobody tells" if size is None else f"{size / 2**20:,.1f} MiB"
    return (
        f"{what!r} has {found}, and a concept at most {MAX_BYTES >> 20} MiB: it is something else, or "
        "keeps too much."
    )


def _unreachable(error: BaseException) -> bool:
    """Whether the hub did not answer, or only that it cannot. By name: httpx and requests, which
    huggingface_hub used before it, share no class."""
    silent = (
        "TransportError",
        "ConnectionError",
        "Timeout",
        "OfflineModeIsEnabled",
        "LocalEntryNotFoundError",
    )
    kinds = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    return not kinds.isdisjoint(silent) or (isinstance(status, int) and (status >= 500 or status == 429))


@contextlib.contextmanager
def _told(repo: str) -> Iterator[None]:
    """What the hub or its client refuses becomes one sentence."""
    try:
        yield
    except (AtomdiffError, MemoryError):
        raise
    except Exception as error:  # the client raises its own, its HTTP library's and ValueErrors
        if sentence := refused_by_hub(error, f"repository {repo!r}"):
            raise ConceptError(sentence) from error
        if _unreachable(error):
            raise ConceptError(
                f"The hub cannot be reached for {repo!r}, and nothing of it is kept on this machine: go "
                "online, check HF_ENDPOINT, or try later."
            ) from error
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise ConceptError(
                f"The hub does not let you write to {repo!r}: log in with `hf auth login` and a token that "
                "has the right to write, under your own name or an organisation of yours."
            ) from error
        raise ConceptError(
            f"The hub refuses {repo!r} ({reason_of(error)}): see its page, or try later."
        ) from error
