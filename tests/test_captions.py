"""Captions from wherever people keep them, in any encoding, and variants of them."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atomdiff.errors import ImageError
from atomdiff.training.captions import LIST, Variation, beside, of_folder, read_caption, read_list

TAGS = st.lists(st.text("abcdefg", min_size=1, max_size=5), min_size=1, max_size=8, unique=True)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_a_caption_is_read_in_one_line_whatever_its_encoding(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("eine sks Hündin,\r\n am Fluß\r\n".encode(encoding))
    assert read_caption(tmp_path / "a.txt") == "eine sks Hündin, am Fluß"


def test_a_caption_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(256)))
    with pytest.raises(ImageError, match=r"The caption 'a\.txt' is no text; write a sentence into it"):
        read_caption(tmp_path / "a.txt")
    with pytest.raises(ImageError, match=r"'b\.txt' cannot be read: No such file"):
        read_caption(tmp_path / "b.txt")
    (tmp_path / "c.txt").write_bytes(b"a" * (1 << 20) + b"b")
    with pytest.raises(ImageError, match=r"'c\.txt' is no text"):
        read_caption(tmp_path / "c.txt")


def listed(folder, *entries):
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / LIST).write_text("\n".join(lines) + "\n\n", encoding="utf-8-sig")


def test_a_list_of_captions(tmp_path):
    assert read_list(tmp_path) == {}
    (tmp_path / "a.png").touch()
    listed(tmp_path, {"file_name": "a.png", "text": "a  sks dog", "style": "of oil"})
    assert read_list(tmp_path) == {"a.png": "a sks dog"}
    assert read_list(tmp_path, "style") == {"a.png": "of oil"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r"Line 2 of '.*' is not JSON"),
        ({"text": "a"}, r"Line 2 of '.*' has no file_name"),
        (
            {"file_name": "a.png", "tags": "x"},
            r"no text under text or caption or prompt \(it has: tags\); name",
        ),
        ({"file_name": "b.png", "text": "x"}, r"Line 2 of '.*' names 'b\.png', which is not in the folder"),
    ],
)
def test_a_broken_list_is_refused_by_its_line(tmp_path, line, said):
    (tmp_path / "a.png").touch()
    listed(tmp_path, {"file_name": "a.png", "text": "x"}, line)
    with pytest.raises(ImageError, match=said):
        read_list(tmp_path)


def test_a_text_beside_a_picture_goes_before_the_list(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    (tmp_path / "a.caption").write_text("by text")
    of_list = {"a.png": "by list", "b.png": "by list"}
    assert of_folder(paths, of_list, ".caption") == {paths[0]: "by text", paths[1]: "by list"}
    assert of_folder(paths, of_list, "")[paths[0]] == "by list"
    assert beside(paths[0], "txt").name == "a.txt"


@given(TAGS, st.integers(0, 3), st.booleans(), st.sampled_from([0.0, 0.5, 1.0]))
def test_variants_keep_the_first_tags_and_lose_or_move_only_others(tags, keep, shuffle, dropout):
    variation = Variation(shuffle, keep, dropout)
    made = variation.of(", ".join(tags), torch.Generator().manual_seed(0))
    assert made[0] == ", ".join(tags)
    assert 1 <= len(made) <= variation.count and len(set(made)) == len(made)
    for text in made:
        found = text.split(", ")
        assert len(set(found)) == len(found) and set(found) <= set(tags)
        assert found[:keep] == tags[:keep]
        if not dropout:
            assert sorted(found) == sorted(tags)
        if not shuffle:
            assert found == [tag for tag in tags if tag in found]


def test_captions_without_variation_stay_as_they_are():
    assert Variation().of("a sks dog,on grass ", torch.Generator()) == ("a sks dog,on grass ",)
    assert Variation(shuffle=True).of("a sks dog", torch.Generator()) == ("a sks dog",)
