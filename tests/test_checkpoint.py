"""A saved state is complete or absent, and says what is wrong with it."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from atomdiff.errors import TrainingError
from atomdiff.training import checkpoint
from atomdiff.training.checkpoint import (
    Checkpoint,
    differences,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def a_state(step: int = 7) -> Checkpoint:
    tensors = {"atoms/a": torch.arange(6.0).reshape(2, 3) + step, "exp_avg/a": torch.randn(2, 3).double()}
    return Checkpoint(step, tensors, {"settings": {"seed": 3}})


def test_round_trip_is_exact(tmp_path):
    state = a_state()
    path = save_checkpoint(tmp_path / "out", state)
    assert path == tmp_path / "out" / "checkpoint-7"
    loaded = load_checkpoint(path)
    assert loaded.step == 7
    assert loaded.state["settings"] == {"seed": 3}
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in state.tensors.items())
    assert names(tmp_path / "out") == ["checkpoint-7"]


def test_only_the_newest_are_kept_and_latest_is_the_one_saved_last(tmp_path):
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, a_state(step), keep=2)
    assert names(tmp_path) == ["checkpoint-20", "checkpoint-30"]
    again = save_checkpoint(tmp_path, a_state(10), keep=2)  # a run started anew counts from 1
    assert find_checkpoint(tmp_path, "latest") == again
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-30"]


def test_saving_over_a_state_of_the_same_step(tmp_path):
    save_checkpoint(tmp_path, a_state())
    second = Checkpoint(7, {"atoms/a": torch.ones(1)}, {})
    save_checkpoint(tmp_path, second)
    assert list(load_checkpoint(tmp_path / "checkpoint-7").tensors) == ["atoms/a"]
    assert names(tmp_path) == ["checkpoint-7"]


@pytest.mark.parametrize("at", ["_write", "_replace"])
def test_a_full_disk_leaves_the_older_states_and_no_rubbish(tmp_path, monkeypatch, at):
    save_checkpoint(tmp_path, a_state(1))

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, at, full)
    with pytest.raises(
        TrainingError, match=r"step 2 could not be written .*No space left on device; free some space"
    ):
        save_checkpoint(tmp_path, a_state(2))
    assert names(tmp_path) == ["checkpoint-1"]
    assert load_checkpoint(tmp_path / "checkpoint-1").step == 1


def test_what_a_full_disk_refuses_is_kept_in_the_temporary_folder(tmp_path, monkeypatch):
    rescue, out, write = tmp_path / "tmp", tmp_path / "out", checkpoint._write
    rescue.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(rescue))

    def full(path, data):
        if out in path.parents:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(TrainingError, match=r"No space left on device; .*--resume_from_checkpoint") as told:
        save_checkpoint(out, a_state(2))
    kept = next(rescue.glob("atomdiff-*/checkpoint-2"))
    assert f"--resume_from_checkpoint {kept}, where" in str(told.value)
    assert load_checkpoint(kept).step == 2
    assert names(out) == []


def test_leftovers_of_a_killed_writer_are_ignored_and_cleared(tmp_path):
    (tmp_path / ".checkpoint-5.part").mkdir()
    (tmp_path / ".checkpoint-5.part" / "state.safetensors").write_bytes(b"half")
    (tmp_path / "checkpoint-9").mkdir()  # no state inside: not one of ours
    assert find_checkpoint(tmp_path, "latest") is None
    save_checkpoint(tmp_path, a_state(6))
    assert names(tmp_path) == ["checkpoint-6", "checkpoint-9"]


def test_latest_without_any_state_is_none_and_a_wrong_name_lists_what_is_there(tmp_path):
    assert find_checkpoint(tmp_path / "nowhere", "latest") is None
    path = save_checkpoint(tmp_path, a_state())
    assert find_checkpoint(tmp_path, "checkpoint-7") == find_checkpoint(tmp_path, str(path)) == path
    with pytest.raises(TrainingError, match=r"no saved state 'checkpoint-8'; .* holds: checkpoint-7\."):
        find_checkpoint(tmp_path, "checkpoint-8")


def test_damage_is_told(tmp_path):
    path = save_checkpoint(tmp_path, a_state())
    tensors, state = path / "state.safetensors", path / "state.json"
    whole, text = tensors.read_bytes(), state.read_text()
    tensors.write_bytes(whole[:-4])
    with pytest.raises(TrainingError, match=r"state\.safetensors was changed or cut"):
        load_checkpoint(path)
    tensors.write_bytes(whole)
    state.write_text(text[: len(text) // 2])
    with pytest.raises(TrainingError, match="is not JSON"):
        load_checkpoint(path)
    state.write_text(json.dumps({"format": "atomdiff-checkpoint/9"}))
    with pytest.raises(
        TrainingError, match="of the format 'atomdiff-checkpoint/9', not atomdiff-checkpoint/1"
    ):
        load_checkpoint(path)
    tensors.unlink()
    with pytest.raises(TrainingError, match="cannot be read: No such file"):
        load_checkpoint(path)


def test_differences_name_both_values():
    assert differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "d": 4}) == [
        "b: 2 -> 5",
        "c: 3 -> not set",
        "d: not set -> 4",
    ]
