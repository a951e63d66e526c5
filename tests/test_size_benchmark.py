"""The benchmark of the capacity dial, without its trainings."""

from dataclasses import fields

import pytest

from atomdiff.concepts.concept import Concept
from atomdiff.core.spec import AtomSpec
from atomdiff.training import sizing
from benchmarks import size
from benchmarks.size import out_of_order


def test_rungs_are_out_of_order_by_what_they_fall_behind():
    assert out_of_order([0.8, 0.7, 0.7, 0.2]) == 0
    assert out_of_order([0.7, 0.5, 0.8]) == pytest.approx(0.3)
    assert out_of_order([]) == 0


def test_rungs_are_judged_from_their_files_and_kept(tiny_base, tmp_path, monkeypatch, capsys):
    base, judged, trained = tiny_base("sd1"), [], []

    class Court:
        def __init__(self, *_):
            pass

        def try_case(self, base, concepts, prompt):
            judged.append(len(concepts))
            return dict.fromkeys(("colour", "identity", "context", "leak", "drift"), 0.25), []

    def with_concept(base, kind, out, options):
        spec = AtomSpec(**{item.name: options[item.name] for item in fields(AtomSpec)})
        trained.append(out.name)
        return Concept.of(base.unet, spec, sizing.zeros(base.unet, spec), base.passport, name=kind)

    monkeypatch.setattr(size, "load_base", lambda name: base)
    monkeypatch.setattr(size.Judge, "load", lambda path: None)
    monkeypatch.setattr(size, "Court", Court)
    monkeypatch.setattr(size, "with_concept", with_concept)
    monkeypatch.setattr(size, "bytes_on_sd15", lambda rungs: [1000 for _ in rungs])
    asked = ["--subjects", "dog", "--rungs", "3", "5", "11", "--out", str(tmp_path), "--check"]
    for _ in range(2):  # the second time everything is known
        size.main(asked)
        shown = capsys.readouterr().out
        assert shown.count("1,000") == 3 and "all targets met" in shown
    assert judged == [0, 1, 1, 1]
    assert trained == ["rung-3", "rung-11"]  # 3 and 5 differ in precision alone
