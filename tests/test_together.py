"""Trainings that share a batch arrive where each would alone; one that fails leaves the others be."""

from __future__ import annotations

import dataclasses

import pytest
import tiny_models
import torch

from atomdiff.errors import Interrupted, SettingsError, TrainingError
from atomdiff.training.reporting import Reporter
from atomdiff.training.run import fit
from atomdiff.training.settings import TrainingSettings
from atomdiff.training.together import _Meeting, train_together


class Heard(Reporter):
    def __init__(self, at=None) -> None:
        self.steps, self.at = [], at

    def notice(self, text): ...

    def warn(self, text): ...

    def stage(self, what, done, total): ...

    def step(self, record):
        self.steps.append(record)
        if self.at:
            self.at(record)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    counts = {"dog": 3, "cat": 2, "dogs": 2}
    return {name: tiny_models.save_pictures(root / name, n, 64, 64) for name, n in counts.items()}


def _settings(folders, out, name, seed, **more) -> TrainingSettings:
    usual = {
        "max_train_steps": 3, "train_batch_size": 2, "precision": "fp32", "num_atoms": 9,
        "linear_atoms": "attn2", "linear_block": 4, "learning_rate": 1e-3, "with_prior_preservation": False,
    }  # fmt: skip
    return TrainingSettings(
        instance_data_dir=str(folders[name]), output_dir=str(out / name), name=name, class_word=name,
        seed=seed, **(usual | more),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_each_is_as_alone(tiny_base, folders, tmp_path, kind) -> None:
    base = tiny_base(kind)
    prior = {
        "with_prior_preservation": True, "class_data_dir": str(folders["dogs"]), "num_class_images": 2,
        "gradient_accumulation_steps": 2,
    }  # fmt: skip
    those = [
        _settings(folders, tmp_path / "joint", "dog", 1),
        _settings(folders, tmp_path / "joint", "cat", 2, max_train_steps=4, trigger="ohw", **prior),
    ]
    before = {name: weight.clone() for name, weight in base.unet.state_dict().items()}
    heard = [Heard(), Heard()]
    made = train_together(those, base, reporters=heard)
    assert [len(own.steps) for own in heard] == [3, 4]
    for concept, own, told in zip(made, those, heard, strict=True):
        alone_told = Heard()
        alone = fit(
            dataclasses.replace(own, output_dir=own.output_dir + "-alone"), base=base, reporter=alone_told
        )
        assert concept.atoms.keys() == alone.atoms.keys() and "token" in concept.atoms
        for key, atoms in alone.atoms.items():
            assert atoms.norm() > 0
            assert (concept.atoms[key] - atoms).norm() < 2e-3 * atoms.norm()
        for a, b in zip(told.steps, alone_told.steps, strict=True):
            assert a.loss == pytest.approx(b.loss, rel=1e-4)
            assert a.gradient_norm == pytest.approx(b.gradient_norm, rel=1e-3)
        assert (tmp_path / "joint" / own.name / f"{own.name}.safetensors").exists()
    after = base.unet.state_dict()
    assert all(torch.equal(before[name], weight) for name, weight in after.items())
    assert not base.unet.training and "forward" not in vars(base.unet.conv_in)


def test_checkpointing_of_activations_changes_nothing(tiny_base, folders, tmp_path) -> None:
    base = tiny_base("sd1")
    made = [
        train_together(
            [
                _settings(folders, tmp_path / str(on), name, 1, gradient_checkpointing=on)
                for name in ("dog", "cat")
            ],
            base,
        )
        for on in (False, True)
    ]
    for a, b in zip(*made, strict=True):
        for key in a.atoms:
            assert (a.atoms[key] - b.atoms[key]).norm() < 2e-3 * b.atoms[key].norm()


def test_one_that_fails_leaves_the_others(tiny_base, folders, tmp_path) -> None:
    good = _settings(folders, tmp_path, "dog", 1)
    bad = _settings(folders, tmp_path, "cat", 1, learning_rate=1e30, max_train_steps=9)
    concept, error = train_together([good, bad], tiny_base("sd1"))
    assert concept.training["steps"] == 3
    assert isinstance(error, TrainingError) and "not a number" in str(error)


def test_too_little_memory_for_the_joint_gradients_is_one_sentence_each(
    tiny_base, folders, tmp_path, monkeypatch
) -> None:
    def tight(meeting) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(_Meeting, "_backward", tight)
    made = train_together(
        [_settings(folders, tmp_path, name, 1) for name in ("dog", "cat")], tiny_base("sd1")
    )
    assert all(isinstance(error, TrainingError) for error in made)
    assert all(str(error).startswith("The GPU's memory is too small for step 1; try --") for error in made)


def test_stopping_saves_all(tiny_base, folders, tmp_path) -> None:
    asked = []
    those = [_settings(folders, tmp_path, name, 1, max_train_steps=50) for name in ("dog", "cat")]
    heard = [Heard(lambda record: asked.append(record) if record.step == 2 else None), Heard()]
    results = train_together(those, tiny_base("sd1"), reporters=heard, stop=lambda: bool(asked))
    assert all(isinstance(result, Interrupted) for result in results)
    assert all((tmp_path / name / "checkpoint-3").exists() or (tmp_path / name / "checkpoint-2").exists()
               for name in ("dog", "cat"))  # fmt: skip


def test_an_error_of_ours_is_raised(tiny_base, folders, tmp_path) -> None:
    def broken(record):
        raise ZeroDivisionError

    those = [_settings(folders, tmp_path, name, 1) for name in ("dog", "cat")]
    with pytest.raises(ZeroDivisionError):
        train_together(those, tiny_base("sd1"), reporters=[Heard(broken), Heard()])


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"conv_family": "recursive", "second_atoms": 2}, "one map"),
        ({"mixed_precision": "fp16"}, "not fp16"),
    ],
)
def test_what_cannot_share_a_batch_is_refused(tiny_base, folders, tmp_path, change, sentence) -> None:
    with pytest.raises(SettingsError, match=sentence):
        train_together([_settings(folders, tmp_path, "dog", 1, **change)], tiny_base("sd1"))


def test_a_size_is_refused_since_it_chooses_what_is_trained(tiny_base, folders, tmp_path) -> None:
    sized = TrainingSettings(instance_data_dir=str(folders["dog"]), output_dir=str(tmp_path), size="8KB")
    with pytest.raises(SettingsError, match="take a --recipe each, not a --size"):
        train_together([sized], tiny_base("sd1"))
