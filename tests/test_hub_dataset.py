"""Pictures from a dataset on a hub that really answers, on loopback: files and tables."""

import errno
import io
import json
import os

import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest
from hub_server import Repo
from PIL import Image
from test_hub import hub  # noqa: F401

from atomdiff.errors import SettingsError
from atomdiff.training.hub_dataset import with_dataset
from atomdiff.training.pictures import Reading, load_folder
from atomdiff.training.settings import TrainingSettings

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def png(colour="red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def served(hub, monkeypatch, tmp_path):  # noqa: F811
    """`served(files, ...)` -> the settings with the dataset ada/dog6-example of these files."""
    monkeypatch.setenv("ATOMDIFF_CACHE", str(tmp_path / "own"))

    def serve(files, **settings):
        hub.repos["ada/dog6-example"] = Repo(False, [files])
        return with_dataset(TrainingSettings(dataset_name="ada/dog6-example", **settings))

    return serve


def table(rows) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def read(settings, **how):
    return load_folder(settings.instance_data_dir, Reading(32, 8, **how))[0]


def test_picture_files_with_their_texts_and_a_class_from_the_name(served):
    found = served(
        {"0.png": png(), "1.png": png("blue"), "1.txt": b"a sks dog", "README.md": b"-", "x.py": b"-"}
    )
    assert (found.name, found.class_word, found.dataset_name) == ("dog6-example", "dog", "")
    assert [(p.path.name, p.caption) for p in read(found, caption_extension="txt")] == [
        ("0.png", ""), ("1.png", "a sks dog"),
    ]  # fmt: skip


def test_one_folder_of_several_is_chosen_by_name(served):
    files = {"dog/0.png": png(), "cat/0.png": png("blue"), "cat/1.png": png("blue")}
    with pytest.raises(SettingsError, match=r"pictures in 2 folders \(cat, dog \.\.\.\); choose one with"):
        served(files)
    assert len(read(served(files, dataset_config_name="cat"))) == 2
    with pytest.raises(SettingsError, match="has no pictures in 'bird'"):
        served(files, dataset_config_name="bird")


def test_a_table_of_pictures_with_captions(served, tmp_path):
    rows = [{"image": {"bytes": png(), "path": f"{i}.png"}, "text": f"a sks dog {i}"} for i in range(2)]
    found = served({"data/train-0.parquet": table(rows), "data/test-0.parquet": b"never read"})
    assert [p.caption for p in read(found)] == ["a sks dog 0", "a sks dog 1"]
    again = served({"data/train-0.parquet": table(rows)})
    assert again.instance_data_dir == found.instance_data_dir  # written once
    with pytest.raises(SettingsError, match=r"no pictures in the column 'img' \(it has: image, text\)"):
        served({"data/train-0.parquet": table(rows)}, image_column="img")
    assert not list((tmp_path / "own" / "datasets").glob(".part-*"))


def test_a_disk_that_fills_up_is_one_sentence_and_leaves_nothing_half_written(served, tmp_path, monkeypatch):
    rows = [{"image": {"bytes": png(), "path": f"{i}.png"}, "text": "x"} for i in range(3)]
    written, sync = [], os.fsync

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SettingsError, match=r"A picture of 'ada/dog6-example' .*No space left"):
        served({"a.parquet": table(rows)})
    assert not list((tmp_path / "own" / "datasets").iterdir())
    monkeypatch.setattr(os, "fsync", sync)
    assert len(read(served({"a.parquet": table(rows)}))) == 3


def test_what_cannot_be_used_is_one_sentence(served, hub, monkeypatch):  # noqa: F811
    with pytest.raises(SettingsError, match="neither pictures nor Parquet tables"):
        served({"README.md": b"-"})
    with pytest.raises(SettingsError, match="A table of 'ada/dog6-example' cannot be read"):
        served({"a.parquet": b"no table"})
    with pytest.raises(SettingsError, match=r"has 1,001 pictures, more than the 1,000 of one subject"):
        served({f"{i}.png": b"" for i in range(1001)})
    with pytest.raises(SettingsError, match="The hub has no dataset 'ada/nothing'"):
        with_dataset(TrainingSettings(dataset_name="ada/nothing"))
    with pytest.raises(SettingsError, match=r"must be user/name or a folder, but 'x y' was given"):
        with_dataset(TrainingSettings(dataset_name="x y"))
    with pytest.raises(SettingsError, match="--dataset_name and --instance_dir were both given"):
        with_dataset(TrainingSettings(dataset_name="ada/dog", instance_data_dir="dog"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SettingsError, match="'ada/dog6-example' cannot be had from the hub"):
        served({"0.png": png()})


def test_a_local_folder_is_a_dataset_too(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "x"}))
    found = with_dataset(TrainingSettings(dataset_name=str(tmp_path), dataset_config_name="cat"))
    assert found.instance_data_dir == str(tmp_path / "cat") and found.dataset_name == ""
