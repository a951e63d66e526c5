"""One way from an error to the sentence that the command line, the HTTP APIs and the studio tell."""

from __future__ import annotations

import pytest

from atomdiff.errors import ConceptError, sentence_of


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConceptError("It is\n  broken: get it again."), "It is broken: get it again."),
        (MemoryError(), "not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 99 bytes"), "not enough memory"),
        (
            PermissionError(13, "Permission denied", "/x/dog.safetensors"),
            "'/x/dog.safetensors' cannot be used",
        ),
    ],
)
def test_what_a_user_can_cause_has_a_sentence(error, told):
    assert told in sentence_of(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), OSError("odd"), KeyError("x"), ValueError("x")]
)
def test_a_defect_has_none(error):
    assert sentence_of(error) is None
