"""The benchmarks of the capacity dial and of single tricks, without their trainings."""

import math
from dataclasses import fields, replace

import pytest

from atomdiff.concept.concept import Concept
from atomdiff.core.spec import AtomSpec
from atomdiff.training import sizing
from benchmarks import recipes, size, tricks
from benchmarks.court import Drawing
from benchmarks.method import tasks
from benchmarks.method.ledger import Outcome
from benchmarks.size import out_of_order


def test_rungs_are_out_of_order_by_what_they_fall_behind():
    assert out_of_order([0.8, 0.7, 0.7, 0.2]) == 0
    assert out_of_order([0.7, 0.5, 0.8]) == pytest.approx(0.3)
    assert out_of_order([]) == 0


@pytest.fixture
def untrained(tiny_base, monkeypatch):
    """Benchmarks of recipes on a tiny base, without training and drawing: the settings that would have been
    trained with, and for each case that was judged its number of concepts and branches."""
    base, judged, trained = tiny_base("sd1"), [], []

    class Court:
        def __init__(self, base, judge, subject, drawing, pictures):
            self.drawing = drawing

        def try_case(self, base, concepts, prompt):
            judged.append((len(concepts), self.drawing.branches))
            figures = ("colour", "second", "pattern", "identity", "class", "context", "leak", "drift")
            return dict.fromkeys(figures, 0.25), []

    def train(base, task, out, settings):
        trained.append(settings)
        spec = AtomSpec(**{f.name: settings[f.name] for f in fields(AtomSpec) if f.name in settings})
        return Concept.of(base.unet, spec, sizing.zeros(base.unet, spec), base.passport, name="dog")

    monkeypatch.setattr(recipes, "load_base", lambda name: base)
    monkeypatch.setattr(recipes.Judge, "load", lambda path: None)
    monkeypatch.setattr(tasks, "Court", Court)
    monkeypatch.setattr(recipes, "train", train)
    monkeypatch.setattr(size, "bytes_on_sd15", lambda rungs: [1000 for _ in rungs])
    return trained, judged


def test_rungs_are_judged_from_their_files_and_kept(untrained, tmp_path, capsys, monkeypatch):
    trained, judged = untrained
    coarse, other = size.LADDER[5], size.LADDER[8]
    monkeypatch.setattr(size, "LADDER", (replace(coarse, precision="int8"), coarse, other))
    asked = ["--subjects", "1", "--out", str(tmp_path), "--check"]
    for _ in range(2):  # the second time everything is known
        size.main(asked)
        shown = capsys.readouterr().out
        assert shown.count("1,000") == 3 and "all targets met" in shown
    assert [concepts for concepts, _ in judged] == [0, 1, 1, 1]
    assert len(trained) == 2  # the first two differ in precision alone


def test_tricks_of_drawing_share_a_training_and_chance_decides_nothing(untrained, tmp_path, capsys):
    trained, judged = untrained
    asked = ["the default", "mirrored pictures", "concept on both branches"]
    tricks.main(["--tricks", *asked, "--subjects", "1", "--out", str(tmp_path), "--check"])
    assert "all targets met" in capsys.readouterr().out
    assert sorted(judged) == [(0, "conditional"), (1, "both"), *[(1, "conditional")] * 2]
    assert trained == [{"seed": 0}, {"random_flip": True, "seed": 0}]


def test_every_seed_is_trained_and_a_lead_has_its_error(untrained, tmp_path, capsys):
    trained, _ = untrained
    asked = ["--tricks", "mirrored pictures", "--subjects", "1", "2", "--seeds", "2"]
    tricks.main([*asked, "--out", str(tmp_path)])
    assert sorted(settings["seed"] for settings in trained) == [0] * 4 + [1] * 4
    assert "+0.000 │ 0.000" in capsys.readouterr().out


def test_a_lead_is_the_mean_of_its_cases_with_their_standard_error(untrained, tmp_path):
    bench = recipes.Bench("tricks", tmp_path, Drawing(1, 1), {}, seeds=2)
    mine, others = recipes.Recipe("mine"), recipes.Recipe("others", {"snr_gamma": 0.0})
    task = tasks.tuning_subjects(1)[0]
    for recipe, likenesses in ((mine, (0.5, 0.7)), (others, (0.4, 0.4))):
        for seed, likeness in enumerate(likenesses):
            bench.ledger.add(recipe.case(task, seed), Outcome({"identity": likeness}, 1, 0, 1, 0.0))
    assert bench.lead(mine, others, [task]) == pytest.approx((0.2, 0.1))
    bench.seeds = range(1)
    assert bench.lead(mine, others, [task]) == (pytest.approx(0.1), pytest.approx(math.nan, nan_ok=True))
