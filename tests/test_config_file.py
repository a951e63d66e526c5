"""Settings in TOML files: read, written, and read again."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomdiff.cli.train_flags import as_file, field_names
from atomdiff.errors import SettingsError
from atomdiff.training.config_file import presets, read
from atomdiff.training.flag_aliases import FLAG_ALIASES
from atomdiff.training.settings import TrainingSettings

NAMES = field_names()


def settings_in(path, text, encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return read(str(path), NAMES, FLAG_ALIASES)


def test_sections_and_other_names_of_a_setting_are_taken(tmp_path):
    text = """
    instance_dir = "dog"
    [optimizer_arguments]
    learning_rate = 1e-3
    optimizer_type = "prodigy"
    validation_prompts = ["a sks dog", "a sks dog in space"]
    [saving]
    push_to_hub = true
    """
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        assert settings_in(tmp_path / "a.toml", text, encoding) == {
            "instance_data_dir": "dog",
            "learning_rate": 1e-3,
            "optimizer": "prodigy",
            "validation_prompts": ("a sks dog", "a sks dog in space"),
            "push_to_hub": True,
        }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed = ", "are no TOML"),
        ("sed = 1", r"There is no setting 'sed', which '.*a\.toml' has: the flags in --help"),
        (
            "network_dim = 4",
            "There is no setting 'network_dim'.*: how much is trained is one choice, --recipe",
        ),
    ],
)
def test_what_is_no_setting_is_named(tmp_path, text, said):
    with pytest.raises(SettingsError, match=said):
        settings_in(tmp_path / "a.toml", text)


def test_a_missing_file_is_one_sentence():
    with pytest.raises(
        SettingsError, match=r"'nowhere\.toml' cannot be read: No such file.* or one of sd15, "
    ):
        read("nowhere.toml", NAMES, FLAG_ALIASES)


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)


@given(
    st.builds(
        dict,
        instance_data_dir=TEXTS,
        logging_dir=TEXTS,
        validation_prompts=st.lists(TEXTS, max_size=3).map(tuple),
        learning_rate=st.none() | st.floats(1e-30, 1e30),
        seed=st.integers(0, 2**63 - 1),
        center_crop=st.booleans(),
    )
)
def test_what_is_printed_is_read_again_as_the_same_settings(tmp_path_factory, values):
    settings = TrainingSettings(**values)
    again = settings_in(tmp_path_factory.getbasetemp() / "again.toml", as_file(settings))
    assert TrainingSettings(**again) == settings
    assert {*again} | {n for n, v in dataclasses.asdict(settings).items() if v is None} >= {*values}


@pytest.mark.parametrize("name", presets())
def test_presets_are_settings_of_their_base(name):
    settings = TrainingSettings(**read(name, NAMES, FLAG_ALIASES))
    assert settings.base == name
