"""The history of what was drawn: restarts, search, people kept apart, deletion."""

from __future__ import annotations

import threading

import pytest
from PIL import Image

from atomdiff.errors import SettingsError
from atomdiff.studio.history import History


def picture(prompt: str, seed: int = 1) -> Image.Image:
    image = Image.new("RGB", (8, 8))
    image.info["parameters"] = f"{prompt}\nSteps: 2, Seed: {seed}, Size: 8x8"
    return image


def test_pictures_survive_a_restart_newest_first(tmp_path):
    first = History(tmp_path)
    kept = [first.keep("me", picture(f"dog {i}", i)) for i in range(3)]
    found = History(tmp_path).find("me")
    assert [entry.id for entry in found] == [entry.id for entry in reversed(kept)]
    assert found[0] == kept[2]
    with Image.open(found[0].file) as saved:
        assert saved.info["parameters"] == found[0].text
    assert found[0].file.name.startswith("dog-2-2-")


def test_search_wants_every_word_and_takes_no_wildcards(tmp_path):
    history = History(tmp_path)
    for prompt in ("a red dog", "a red cat", "100% wool_"):
        history.keep("me", picture(prompt))
    assert history.count("me", "red") == 2
    assert [entry.text.split("\n")[0] for entry in history.find("me", "RED dog")] == ["a red dog"]
    assert history.count("me", "%") == 1
    assert history.count("me", "_") == 1
    assert history.count("me", "'; drop table pictures") == 0
    assert len(history.find("me", limit=2)) == 2
    assert [entry.text[:9] for entry in history.find("me", limit=1, start=2)] == ["a red dog"]


def test_people_see_and_delete_only_their_own(tmp_path):
    history = History(tmp_path)
    mine, yours = history.keep("me", picture("mine")), history.keep("you", picture("yours"))
    assert mine.file.parent != yours.file.parent
    assert "me" not in mine.file.parent.name
    with pytest.raises(SettingsError, match="no picture"):
        history.get("me", yours.id)
    assert history.delete("me", [mine.id, yours.id, 999]) == 1
    assert not mine.file.exists()
    assert yours.file.exists()
    assert history.count("me") == 0


def test_folders_cannot_be_guessed_from_names(tmp_path):
    one, other = History(tmp_path / "a"), History(tmp_path / "b")
    assert one.keep("me", picture("x")).file.parent.name != other.keep("me", picture("x")).file.parent.name
    assert (tmp_path / "a" / "secret").stat().st_mode & 0o077 == 0


def test_names_of_files_are_tame(tmp_path):
    entry = History(tmp_path).keep("../../etc", picture("../../etc/passwd\x00 <b>"))
    assert entry.file.is_relative_to(tmp_path / "pictures")
    assert entry.file.name.startswith("etc-passwd-b-1-")


def test_many_threads_write_at_once(tmp_path):
    history = History(tmp_path)

    def write() -> None:
        for _ in range(5):
            history.keep("me", picture("x"))

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert history.count("me") == 30


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot hold the studio's pictures"):
        History(tmp_path / "file")
