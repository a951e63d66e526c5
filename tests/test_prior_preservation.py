"""Class pictures are drawn once, by whoever's turn it is, and never taken for another prompt's."""

import errno
import os
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from atomdiff.concept.passport import BasePassport
from atomdiff.errors import TrainingError
from atomdiff.files.atomic import write_atomically
from atomdiff.training import prior_preservation
from atomdiff.training.prior_preservation import ClassRequest, class_pictures, default_folder

ALONE = SimpleNamespace(process_index=0, num_processes=1, wait_for_everyone=lambda: None)
BASE = SimpleNamespace(passport=BasePassport("sd1-00000000", (0.5,) * 16), dtype=torch.float32)
DOG = ClassRequest("a dog", 5, 32)


@pytest.fixture
def drawn(monkeypatch):
    """Stands in for sampling; a picture's grey tells its seed. Holds the calls as (first seed, count)."""
    calls: list[tuple[int, int]] = []

    def draw(base, prompt, *, count, seed, steps, size, batch_size):
        calls.append((seed - prior_preservation.SEED, count))
        return [
            Image.new("RGB", (size, size), (seed - prior_preservation.SEED + i,) * 3) for i in range(count)
        ]

    monkeypatch.setattr(prior_preservation, "draw", draw)
    return calls


def greys(pictures):
    return [picture.image.getpixel((0, 0))[0] for picture in pictures]


def test_drawn_once_and_kept(tmp_path, drawn):
    heard = []
    pictures, skipped = class_pictures(
        BASE, DOG, tmp_path, ALONE, lambda *now: heard.append(now), batch_size=2
    )
    assert drawn == [(0, 2), (2, 2), (4, 1)]
    assert heard == [(0, 5), (2, 5), (4, 5), (5, 5)]
    assert greys(pictures) == [0, 1, 2, 3, 4]
    assert skipped == []
    again, _ = class_pictures(BASE, DOG, tmp_path, ALONE)
    assert len(drawn) == 3
    assert greys(again) == [0, 1, 2, 3, 4]


def test_more_draws_only_the_missing_and_damage_is_mended(tmp_path, drawn):
    class_pictures(BASE, DOG, tmp_path, ALONE)
    key = DOG.key(BASE)
    (tmp_path / f"class-{key}-00001.png").write_bytes(b"\x89PNG")
    drawn.clear()
    pictures, _ = class_pictures(BASE, ClassRequest("a dog", 7, 32), tmp_path, ALONE)
    assert drawn == [(1, 1), (5, 2)]
    assert greys(pictures) == list(range(7))


@pytest.mark.parametrize(
    "other",
    [ClassRequest("a cat", 5, 32), ClassRequest("a dog", 5, 64), ClassRequest("a dog", 5, 32, seed=1)],
)
def test_another_prompt_size_or_seed_never_meets_them(tmp_path, drawn, other):
    class_pictures(BASE, DOG, tmp_path, ALONE)
    drawn.clear()
    class_pictures(BASE, other, tmp_path, ALONE, batch_size=5)
    assert [count for _, count in drawn] == [5]


def test_another_base_or_dtype_has_another_key():
    keys = {DOG.key(BASE)}
    keys.add(
        DOG.key(SimpleNamespace(passport=BasePassport("sd1-00000000", (0.25,) * 16), dtype=torch.float32))
    )
    keys.add(DOG.key(SimpleNamespace(passport=BASE.passport, dtype=torch.float16)))
    assert len(keys) == 3


def test_ones_own_class_pictures_come_first(tmp_path, drawn):
    Image.new("RGB", (40, 40), (200, 200, 200)).save(tmp_path / "own.png")
    (tmp_path / "notes.txt").write_text("x")
    pictures, skipped = class_pictures(BASE, DOG, tmp_path, ALONE)
    assert greys(pictures) == [200, 0, 1, 2, 3]
    assert [item.path.name for item in skipped] == ["notes.txt"]


def test_shared_out_over_processes(tmp_path, drawn):
    """While the first process waits, the second (here: run inside the wait) does its share."""
    second = SimpleNamespace(process_index=1, num_processes=2, wait_for_everyone=lambda: None)
    waits = []

    def wait():
        waits.append(1)
        if len(waits) == 2:
            runs = list(prior_preservation._runs(list(range(5)), 2))[1::2]
            for run in runs:
                prior_preservation._draw(BASE, DOG, tmp_path, DOG.key(BASE), run)

    first = SimpleNamespace(process_index=0, num_processes=2, wait_for_everyone=wait)
    pictures, _ = class_pictures(BASE, DOG, tmp_path, first, batch_size=2)
    assert drawn == [(0, 2), (4, 1), (2, 2)]
    assert greys(pictures) == [0, 1, 2, 3, 4]
    assert greys(class_pictures(BASE, DOG, tmp_path, second)[0]) == [0, 1, 2, 3, 4]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, drawn):
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(TrainingError, match=r"cannot be written: .*; choose another with --class_data_dir"):
        class_pictures(BASE, DOG, blocked / "inside", ALONE)
    assert drawn == []


def test_a_disk_that_fills_up_is_one_sentence_and_keeps_what_is_whole(tmp_path, drawn, monkeypatch):
    written = []

    def write(path, data):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path.name)
        write_atomically(path, data)

    monkeypatch.setattr(prior_preservation, "write_atomically", write)
    with pytest.raises(TrainingError, match="could not be written: No space left on device; free some space"):
        class_pictures(BASE, DOG, tmp_path, ALONE, batch_size=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == written


def test_runs_are_consecutive_and_short():
    assert [list(run) for run in prior_preservation._runs([0, 1, 2, 3, 5, 6, 9], 3)] == [
        [0, 1, 2],
        [3],
        [5, 6],
        [9],
    ]
    assert list(prior_preservation._runs([], 3)) == []


def test_default_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("ATOMDIFF_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "atomdiff" / "class_pictures"
    monkeypatch.setenv("ATOMDIFF_CACHE", str(tmp_path / "here"))
    assert default_folder() == tmp_path / "here" / "class_pictures"


def test_the_base_is_asked_about_the_class_about_nothing_and_about_other_things():
    asked = prior_preservation.prompts("a {} dog", 14)
    assert asked[:7] == asked[7:] == ["a {} dog", "a {} dog", "", "a cat", "a {} dog", "a tree", "a boat"]
    assert prior_preservation.prompts("a dog", 0) == []
