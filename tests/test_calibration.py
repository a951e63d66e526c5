"""The calibration: the order it asks for, and that a finished run is not done again."""

from dataclasses import replace

import pytest

from atomdiff.pocket.judge import Judge, JudgeNet
from benchmarks import bench, calibration
from benchmarks.calibration import Row, targets
from benchmarks.ledger import Outcome


def row(name, likeness, leak, context):
    figures = dict.fromkeys(("colour", "second", "pattern", "identity"), likeness)
    figures |= {"leak": leak, "context": context, "accessory": context, "drift": leak, "class": 1.0}
    return Row(name, 1e-3, (Outcome(figures),))


KNOWN = (
    row("base", 0.2, 0.1, 1.0),
    row("textual inversion", 0.5, 0.1, 0.9),
    row("LoRA", 0.6, 0.15, 0.9),
    row("DreamBooth", 0.7, 0.2, 0.9),
    row("longer", 0.8, 0.3, 0.7),
    row("no prior", 0.75, 0.8, 0.9),
)


def test_what_is_known_of_stable_diffusion_meets_every_target():
    assert all(target.met for target in targets(KNOWN))


@pytest.mark.parametrize(
    ("place", "wrong", "missed"),
    [
        (1, row("textual inversion", 0.1, 0.1, 0.9), "textual inversion above the base"),
        (2, row("LoRA", 0.75, 0.1, 0.9), "DreamBooth above LoRA"),
        (3, row("DreamBooth", 0.7, 0.7, 0.9), "with prior"),
        (4, row("longer", 0.8, 0.3, 0.95), "lost by 3 times the steps"),
        (5, row("no prior", 0.75, 0.2, 0.9), "without prior above the base"),
    ],
)
def test_a_wrong_order_is_told(place, wrong, missed):
    rows = [*KNOWN[:place], wrong, *KNOWN[place + 1 :]]
    assert any(missed in target.name for target in targets(rows) if not target.met)


def test_a_share_of_nothing_is_all_of_it():
    assert calibration._share(0.1, 0.0) == 1.0 and calibration._share(-0.1, 0.5) == 0.0


def test_a_finished_run_is_not_done_again(tmp_path, tiny_base, monkeypatch, capsys):
    """With one step of everything."""
    rates = {method: tried[:1] for method, tried in calibration.RATES.items()}
    small = replace(bench.POCKET, train_batch_size=1, num_class_images=1)
    monkeypatch.setattr(calibration, "RATES", rates)
    monkeypatch.setattr(calibration, "LONGER", 2)
    monkeypatch.setattr(bench, "load_base", lambda *given, **named: tiny_base())
    monkeypatch.setattr(bench, "POCKET", small)
    monkeypatch.setenv("ATOMDIFF_CACHE", str(tmp_path / "cache"))
    Judge(JudgeNet()).save(tmp_path / "judge.safetensors")
    command = ["--out", str(tmp_path / "out"), "--base", str(tmp_path), "--subjects", "1", "--steps", "1"]
    command += ["--each", "1", "--draw-steps", "1"]
    calibration.main(command)
    first = capsys.readouterr().out
    assert "DreamBooth, text encoder too, no prior" in first and "Targets" in first
    monkeypatch.setattr(bench.Bench, "_outcome", lambda *given: pytest.fail("done again"))
    calibration.main(command)
    assert "DreamBooth, text encoder too, no prior" in capsys.readouterr().out
