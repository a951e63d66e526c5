"""The fields that hold several values: what they may say, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomdiff.core.spec import AtomSpec
from atomdiff.errors import ConceptError
from atomdiff.files.query_string import spec_of, spec_text, training_of, training_text

TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=40)


@given(st.dictionaries(TEXTS.filter(bool), TEXTS | st.integers(-(10**30), 10**30) | st.floats(-1e9, 1e9)))
def test_training_is_kept_with_its_types(training):
    again = training_of(training_text(training))
    assert again == training
    assert [type(value) for value in again.values()] == [type(value) for value in training.values()]


def test_only_digits_of_ascii_are_numbers():
    assert training_of("a=%D9%A3&b=3&c=%223%22") == {"a": "٣", "b": 3, "c": "3"}
    with pytest.raises(ConceptError, match="num_atoms"):
        spec_of("num_atoms=%D9%A3")


@pytest.mark.parametrize("spec", [AtomSpec(), AtomSpec(num_atoms=6, conv_layers="^down|mid$", coef_block=4)])
def test_a_spec_comes_back(spec):
    assert spec_of(spec_text(spec)) == spec


@pytest.mark.parametrize(
    "text", ["a=1&a=2", "a", "a=1&&b=2", "a=%FF", "&".join(f"a{i}=1" for i in range(101))]
)
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(ConceptError, match=r"cannot be read|says something twice"):
        training_of(text)


@pytest.mark.parametrize(
    "text", ["new=1", "num_atoms=9&num_atoms=9", "num_atoms=-1", "basis=pca", "num_atoms=9.5"]
)
def test_a_spec_that_is_not_known_whole_is_refused(text):
    with pytest.raises(ConceptError):
        spec_of(text)
