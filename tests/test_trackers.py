"""A log that cannot be opened is refused; one that breaks off is told once; neither loses a run."""

import sys

import pytest
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image

from atomdiff.errors import SettingsError
from atomdiff.training import trackers
from atomdiff.training.reporting import Reporter, StepRecord
from atomdiff.training.settings import TrainingSettings
from atomdiff.training.trackers import check_installed, open_logs, sheet_of

RECORD = StepRecord(3, 9, 0.5, 0.4, 0.1, 1e-3, 2.0, 0.1)


class Heard(Reporter):
    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


class Fake:
    """Looks like a tracker of accelerate's."""

    requires_logging_directory = False
    fails = ""

    def __init__(self, name):
        self.heard = {"name": name}

    def start(self):
        if self.fails == "start":
            raise ConnectionError("no route to the service")

    def store_init_configuration(self, values):
        self.heard["config"] = values

    def log(self, values, step):
        if self.fails == "log":
            raise ConnectionError("the service went away")
        self.heard[step] = values

    def log_images(self, values, step):
        self.heard["images"] = values

    def finish(self):
        self.heard["over"] = True


@pytest.fixture
def fake(monkeypatch):
    PartialState()
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Fake)
    monkeypatch.setattr(trackers, "_installed", lambda name: name == "wandb")
    monkeypatch.setattr(Fake, "fails", "")
    return Fake


def opened(folder, heard, **settings):
    return open_logs(TrainingSettings(**settings), folder, 0, heard)


def test_figures_settings_and_the_sheet_reach_a_tracker(fake, tmp_path):
    logs = opened(tmp_path, Heard(), report_to="all", validation_prompts=("a", "b"), seed=7)
    logs.step(RECORD)
    pictures = tuple(Image.new("RGB", (64, 64), c) for c in ("red", "blue", "green", "black"))
    logs.step(StepRecord(4, 9, 0.5, 0.4, 0.1, 1e-3, 2.0, 0.1, pictures=pictures))
    heard = logs._logs[0]._tracker.heard
    logs.close()
    assert heard["config"]["seed"] == 7 and heard[3]["train/loss"] == 0.5 and heard["over"]
    assert [sheet.size for sheet in heard["images"]["validation"]] == [sheet_of(pictures, ("a", "b")).size]
    assert sheet_of((), ("a",)) is None


def test_a_tracker_that_cannot_be_reached_is_refused_before_the_run(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(Fake, "fails", "start")
    with pytest.raises(
        SettingsError, match=r"--report_to wandb cannot be used \(no route to the service\); log in"
    ):
        opened(tmp_path, Heard(), report_to="wandb")


def test_a_tracker_that_goes_away_is_told_once(fake, tmp_path, monkeypatch):
    heard = Heard()
    logs = opened(tmp_path, heard, report_to="wandb")
    monkeypatch.setattr(Fake, "fails", "log")
    for _ in range(3):
        logs.step(RECORD)
    assert heard.warnings == ["The log in wandb broke off at step 3 (the service went away)."]
    logs.close()


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "aim", None)
    with pytest.raises(SettingsError, match="--report_to aim needs the package aim, which is not installed"):
        check_installed("aim")
    check_installed("none")


def test_tensorboard_needs_no_other_package(tmp_path):
    pytest.importorskip("tensorboard")
    PartialState()
    logs = opened(tmp_path / "logs", Heard(), report_to="tensorboard")
    logs.step(RECORD)
    logs.close()
    assert any(path.name.startswith("events.out") for path in (tmp_path / "logs").iterdir())
