"""The benchmarks' own arithmetic: what is asked for, how it is scored, when --check fails."""

import sys

import pytest
import torch

from atomdiff.pocket import world
from atomdiff.pocket.corpus import HEADS
from atomdiff.pocket.judge import Verdict
from benchmarks import mixed_batch, report, step_time
from benchmarks.pocket_quality import Request, requests, score
from benchmarks.report import Target, markdown, verdict
from benchmarks.shapes import TOY_SD15, random_unet


def test_requests_name_what_they_want():
    for several in (False, True):
        asked = requests(256, several, seed=3)
        assert {r.wanted["class"] for r in asked} == set(world.CLASSES)
        assert {r.wanted["context"] for r in asked} == set(world.CONTEXTS)
        for r in asked:
            assert r.wanted["class"] in r.prompt and world.CONTEXTS[r.wanted["context"]] in r.prompt
            assert r.wanted.get("colour", "") in r.prompt and r.wanted.get("second", "") in r.prompt
            assert ("accessory" not in r.wanted) or r.wanted["class"] in world.WEARERS
    assert all("colour" in r.wanted and "pattern" in r.wanted for r in asked)


def test_requests_are_reproducible():
    assert requests(64, True, seed=1) == requests(64, True, seed=1) != requests(64, True, seed=2)


def test_scores_count_only_what_was_asked():
    asked = [
        Request("a dog at night", {"class": "dog", "context": "night"}),
        Request("a red cat", {"class": "cat", "colour": "red"}),
    ]
    said = {"class": ("dog", "dog"), "context": ("night", "beach"), "colour": ("blue", "red")}
    answers = {h: torch.tensor([HEADS[h].index(v) for v in values]) for h, values in said.items()}
    result = score(asked, Verdict(answers, torch.zeros(2, 64)))
    assert result == {"all": 0.5, "class": 0.5, "context": 1.0, "colour": 1.0}


def test_check_names_what_was_missed(capsys):
    targets = [Target("fast", 2.0, high=1.0, unit="s"), Target("good", 0.9, low=0.8)]
    verdict(targets, check=False)
    with pytest.raises(SystemExit) as stop:
        verdict(targets, check=True)
    assert stop.value.code == 1
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == "missed: fast 2 (wanted ≤ 1)"
    verdict([targets[1], Target("small", None, high=3)], check=True)
    shown = capsys.readouterr().out.strip().splitlines()
    assert shown[-1] == "1 targets met; 1 not measured" and any("not measured" in line for line in shown[:-1])


def test_steps_and_batches_are_timed_at_toy_size(monkeypatch, capsys, tmp_path):
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(step_time, "SD15", TOY_SD15)
    monkeypatch.setattr(mixed_batch, "SD15", TOY_SD15)
    step_time.main(["--size", "64", "--rounds", "1", "--no-memory", "--docs"])
    told, page = capsys.readouterr().out, (tmp_path / "docs/results.md").read_text()
    assert all(name in told and f"| {name} |" in page for name in step_time.VARIANTS)
    assert "attaching" in told and "The floor is the same UNet frozen" in page
    mixed_batch.main(["--size", "64", "--batch", "2", "--rounds", "1", "--docs"])
    told = capsys.readouterr().out
    assert "swap of one" in (tmp_path / "docs/scale.md").read_text()
    for figure in ("2 concepts, first step", "swap of one", "trainings: together", "1,000 resident concepts"):
        assert figure in told
    with pytest.raises(SystemExit):
        step_time.main(["--size", "100"])


def test_weights_are_the_same_in_every_dtype():
    exact, half = (random_unet(TOY_SD15, "cpu", dtype) for dtype in (torch.float32, torch.float16))
    pairs = zip(exact.parameters(), half.parameters(), strict=True)
    assert all(torch.equal(one.half(), other) for one, other in pairs)


def test_markdown_tables():
    assert markdown(("a", "b"), [("x", 1)]) == "| a | b |\n|---|---:|\n| x | 1 |\n"


def test_a_page_names_the_command_that_wrote_it(monkeypatch):
    said = ["/x/benchmarks/method/__main__.py", "--methods", "the tool's", "a b", "--out", "/x/y", "--docs"]
    monkeypatch.setattr(sys, "argv", said)
    assert report.written().startswith(
        "`python -m benchmarks.method --methods \"the tool's\" 'a b' --docs` wrote this on "
    )
    monkeypatch.setattr(sys, "argv", ["benchmarks/size.py", "--docs"])
    assert report.written().startswith("`python -m benchmarks.size --docs` wrote")
