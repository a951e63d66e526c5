"""Styles of prompts, and words of which each picture takes one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomdiff.errors import SettingsError
from atomdiff.sampling import prompts
from atomdiff.sampling.prompts import Style


def test_a_style_stands_around_the_prompt():
    assert Style("an oil painting of {prompt}").applied("a dog", "") == ("an oil painting of a dog", "")
    assert Style("soft light", "text").applied("a dog", "rain") == ("a dog, soft light", "rain, text")
    assert Style("", "blurry").applied("a dog", "") == ("a dog", "blurry")
    assert prompts.styled("a dog", "rain", "") == ("a dog", "rain")
    with pytest.raises(SettingsError, match="no style 'none such'"):
        prompts.styled("a dog", "", "none such")


def test_styles_of_other_tools_are_read(tmp_path):
    file = tmp_path / "styles.csv"
    assert prompts.load_styles(file) == dict(prompts.STYLES)
    file.write_text('\ufeffname,prompt,negative_prompt\nmine,"{prompt}, in ""neon""",day\n,x,y\n', "utf-8")
    assert prompts.load_styles(file)["mine"] == Style('{prompt}, in "neon"', "day")
    assert "" not in prompts.load_styles(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="a CSV file of name"):
        prompts.load_styles(file)


@given(st.lists(st.text("abc ", min_size=1), min_size=2, max_size=5), st.integers(0, 2**63 - 1))
def test_one_of_the_choices_is_taken_and_the_same_for_a_seed(options, seed):
    prompt = f"a {{{'|'.join(options)}}} dog"
    made = prompts.expanded(prompt, seed)
    assert made == prompts.expanded(prompt, seed)
    assert made[2:-4] in {option.strip() for option in options}


def test_seeds_take_different_words_and_a_plain_prompt_is_one():
    found = {prompts.expanded("a {red|blue} dog", seed) for seed in range(30)}
    assert found == {"a red dog", "a blue dog"}
    assert prompts.for_each("a dog", 1, 4) == "a dog"
    made = prompts.for_each("a {red|blue} {cat|dog}", 7, 3)
    assert made == [prompts.expanded("a {red|blue} {cat|dog}", seed) for seed in (7, 8, 9)]
    assert prompts.expanded("{prompt} and {one}", 0) == "{prompt} and {one}"


def test_words_come_from_files_and_may_have_choices_of_their_own(tmp_path):
    (tmp_path / "animal.txt").write_text("# animals\n{red|blue} dog\n\n", "utf-8")
    assert prompts.expanded("a __animal__", 1, tmp_path) in ("a red dog", "a blue dog")
    with pytest.raises(SettingsError, match="no words for __place__"):
        prompts.expanded("a __place__", 1, tmp_path)
    (tmp_path / "loop.txt").write_text("__loop__ __loop__")
    with pytest.raises(SettingsError, match="never end"):
        prompts.expanded("__loop__", 1, tmp_path)
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(SettingsError, match="has no words"):
        prompts.expanded("__none__", 1, tmp_path)
