"""Errors that a user can cause: one plain sentence saying what is wrong, what was received and what to do.

The command line prints `sentence_of` an error and exits with status 2; the HTTP APIs and the studio answer
with it; a library caller catches `AtomdiffError`. Anything else that escapes is a defect of atomdiff.
"""

import re


class AtomdiffError(Exception):
    """Root of every error that atomdiff raises on purpose."""


class SettingsError(AtomdiffError, ValueError):
    """A flag or a field has a value that cannot work."""


class ConceptError(AtomdiffError):
    """A concept file is broken, foreign, hostile, or made for another architecture."""


class BaseError(AtomdiffError):
    """A base model is missing, unreachable, or of a kind that atomdiff cannot tune."""


class ImageError(AtomdiffError):
    """A picture or a folder of pictures cannot be used."""


class TrainingError(AtomdiffError):
    """Training cannot start, cannot go on, or cannot be resumed as asked."""


class Interrupted(AtomdiffError):
    """The user stopped a run; its state was saved, and the message says how to go on."""


def sentence_of(error: BaseException) -> str | None:
    """What to tell whoever caused the error, in one sentence; None for a defect, whose traceback is to be
    shown instead."""
    if isinstance(error, AtomdiffError):
        return " ".join(str(error).split())
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and re.search("out of memory|allocate memory", str(error))
    ):
        return "There is not enough memory: try smaller pictures, fewer at a time, or fp16."
    if isinstance(error, OSError) and error.strerror is not None and error.filename is not None:
        return refused_by_system(error)
    return None


def reason_of(error: BaseException) -> str:
    """What a library says of its own error, on one line and not endless; its kind where it says nothing."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def refused_by_hub(error: BaseException, what: str) -> str | None:
    """A sentence for what the Hugging Face hub refuses of `what`, "dataset 'user/name'" say; None where the
    error is another. By name: this module loads no client."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in kinds:
        return (
            f"The {what} asks for its terms to be accepted on its hub page: accept them there and log in "
            "with `hf auth login`."
        )
    if "RepositoryNotFoundError" in kinds:
        return (
            f"The hub has no {what} that you may see: check the name, or log in with `hf auth login` if it "
            "is private."
        )
    if "RevisionNotFoundError" in kinds:
        return f"The hub has no such revision of the {what}: check the revision."
    return None


def refused_by_system(error: OSError) -> str:
    """A sentence for a file or folder that the system refuses: no permission, a name too long, a full disk.

    Raises the error again where it names none: then it is a defect, or a library's own.
    """
    if error.strerror is None or error.filename is None:
        raise error
    name = str(error.filename)
    shown = name if len(name) <= 100 else f"{name[:60]}...{name[-30:]}"
    return (
        f"'{shown}' cannot be used: {error.strerror}; check the path, its permissions and the free space, or "
        "choose another."
    )
