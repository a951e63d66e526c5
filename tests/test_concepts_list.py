"""A list of subjects is found sound as a whole before anything is trained."""

import json

import pytest
import tiny_models

from atomdiff.cli.train_flags import field_names
from atomdiff.errors import AtomdiffError
from atomdiff.training.concepts_list import read
from atomdiff.training.settings import TrainingSettings


@pytest.fixture
def listed(tmp_path):
    for name in ("dog", "cat"):
        tiny_models.save_pictures(tmp_path / name, 1, 20, 20)

    def write(*entries, common=None):
        text = entries[0] if isinstance(entries[0], str) else json.dumps(list(entries))
        (tmp_path / "list.json").write_text(text)
        return read(str(tmp_path / "list.json"), common or TrainingSettings(output_dir="out"), field_names())

    return write


def test_each_subject_has_settings_of_its_own_and_the_common_ones(listed, tmp_path):
    dog, cat = listed(
        {"instance_data_dir": "dog", "instance_prompt": "a zwx dog", "class_prompt": "a dog"},
        {"instance_data_dir": str(tmp_path / "cat"), "max_train_steps": 7, "name": "Mia"},
        common=TrainingSettings(output_dir="out", seed=5, max_train_steps=9),
    )
    assert (dog.name, dog.trigger, dog.output_dir, dog.seed, dog.max_train_steps) == (
        "dog", "zwx", "out/dog", 5, 9,
    )  # fmt: skip
    assert dog.instance_data_dir == str(tmp_path / "dog")
    assert (cat.name, cat.class_word, cat.output_dir, cat.max_train_steps) == ("Mia", "cat", "out/Mia", 7)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (("[",), "is no JSON"),
        (("[]",), "must be a JSON list of subjects"),
        (({"class_prompt": "x"},), r"Entry 1 of '.*' has no instance_data_dir"),
        (
            ({"instance_data_dir": "dog"}, {"instance_data_dir": "nowhere"}),
            r"Entry 2 of '.*': The picture folder",
        ),
        (({"instance_data_dir": "dog", "base": "sdxl"},), "has 'base', which is of the run as a whole"),
        (({"instance_data_dir": "dog", "prediction_type": "v_prediction"},), "is of the run as a whole"),
        (({"instance_data_dir": "dog", "concepts_list": "x"},), "is of the run as a whole"),
        (({"instance_data_dir": "dog", "colour": "x"},), "has 'colour', which is no setting"),
        (({"instance_data_dir": "dog", "seed": -1},), r"Entry 1 of '.*': --seed must be at least 0"),
        (
            ({"instance_data_dir": "dog"}, {"instance_data_dir": "dog"}),
            "2 subjects of '.*' are called 'dog'",
        ),
    ],
)
def test_a_broken_list_is_one_sentence_that_names_the_entry(listed, entries, said):
    with pytest.raises(AtomdiffError, match=said):
        listed(*entries)


def test_a_list_beside_a_folder_and_a_missing_list_are_refused(listed, tmp_path):
    with pytest.raises(AtomdiffError, match="--concepts_list names the picture folders; drop --instance_dir"):
        listed({"instance_data_dir": "dog"}, common=TrainingSettings(instance_data_dir="dog"))
    with pytest.raises(AtomdiffError, match=r"The list '.*' cannot be read: No such file"):
        read(str(tmp_path / "none.json"), TrainingSettings(), field_names())
    with pytest.raises(
        AtomdiffError, match=r"none\.jsonl' cannot be read: .*; give a \.json or \.jsonl file\.$"
    ):
        read(str(tmp_path / "none.jsonl"), TrainingSettings(), field_names())
