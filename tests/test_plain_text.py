"""Text is read in whatever encoding it was saved in, and what is no text is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomdiff.files.plain_text import decode

PRINTABLE = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\ufeff"), max_size=60)
WESTERN = st.text(st.sampled_from("abcdefghij klmnop,äöüßéèñçÅØ€„“–"), max_size=60)


@given(PRINTABLE, st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
def test_unicode_with_a_mark_or_as_utf_8_comes_back(text, encoding):
    assert decode(text.encode(encoding)) == text


@given(
    st.text(st.sampled_from("a sks dog, tür; naïve"), min_size=2), st.sampled_from(["utf-16-le", "utf-16-be"])
)
def test_utf_16_without_a_mark_is_known_by_its_zeros(text, encoding):
    assert decode(text.encode(encoding)) == text


@given(WESTERN)
def test_windows_1252_is_what_remains(text):
    data = text.encode("cp1252")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        assert decode(data) == text
    else:  # plain ASCII, which is both
        assert decode(data) == data.decode("utf-8")


@pytest.mark.parametrize(
    "data",
    [b"\x00\x01\x02\x03", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"a\x1bb", b"\xff\xfea", b"\x81\x8d"],
)
def test_bytes_that_are_no_text_are_refused(data):
    with pytest.raises(ValueError):
        decode(data)


def test_an_empty_file_is_an_empty_text():
    assert decode(b"") == ""
