"""The optimiser and its parts: schedules, moments as data, means over the steps."""

import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from atomdiff.errors import SettingsError
from atomdiff.training.optimiser import (
    LastMean,
    MovingMean,
    moments_of,
    optimiser_for,
    rate_factor,
    schedule_free_mean,
    set_moments,
    set_rates,
)
from atomdiff.training.settings import TrainingSettings


def test_rate_schedules_are_those_of_diffusers():
    from diffusers.optimization import get_scheduler

    for name in ("constant", "constant_with_warmup", "linear", "cosine"):
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        theirs = get_scheduler(name, optimizer, num_warmup_steps=3, num_training_steps=10)
        for step in range(10):
            assert rate_factor(name, step, 3, 10) == pytest.approx(theirs.get_last_lr()[0]), (name, step)
            optimizer.step()
            theirs.step()
    assert rate_factor("polynomial", 10, 0, 10) == 0
    restarts = [rate_factor("cosine_with_restarts", step, 0, 9) for step in range(10)]
    assert restarts[0] == restarts[3] == restarts[6] == 1.0
    assert restarts[9] == 0.0


def test_moments_go_through_data_and_back():
    trained = {name: torch.nn.Parameter(torch.ones(3)) for name in ("a", "b")}
    adam = torch.optim.AdamW(trained.values())
    assert moments_of(adam, trained) == {}
    trained["a"].grad = torch.arange(3.0)  # "b" was never reached
    adam.step()
    kept = moments_of(adam, trained)
    assert sorted(kept) == ["exp_avg/a", "exp_avg_sq/a", "step/a"]
    other = torch.optim.AdamW(trained.values())
    set_moments(other, trained, kept)
    adam.step()  # moves its own moments, not the copies
    again = moments_of(other, trained)
    assert sorted(again) == sorted(kept) and all(torch.equal(again[name], kept[name]) for name in kept)


@given(st.floats(0, 1), st.integers(1, 30), st.data())
def test_the_mean_is_that_of_the_last_steps_wherever_it_is_taken_up_again(share, total, data):
    values = [torch.tensor([float(step), -3.0]) for step in range(1, total + 1)]
    kept, broken = LastMean(share, total), data.draw(st.integers(0, total))
    resumed = kept
    for step, value in enumerate(values, 1):
        parameter = {"a": torch.nn.Parameter(value)}
        kept.count(parameter, step)
        if resumed is not kept:
            resumed.count(parameter, step)
        if step == broken:
            resumed = LastMean(share, total)
            resumed.restore(kept.tensors(), parameter)
    if not share:
        assert kept.means == {}
        return
    last = values[-max(1, round(share * total)) :]
    torch.testing.assert_close(kept.means["a"], torch.stack(last).mean(0))
    assert torch.equal(kept.means["a"], resumed.means["a"])


# --------------------------------------------------------------------------- optimisers by name


class _Layer:
    """What `optimiser_for` asks of an attached layer."""

    def __init__(self, parameter):
        self.family = SimpleNamespace(trained=lambda: {"a": parameter})


def made(name, **settings):
    """An optimiser by name on one linear layer and one vector, and the parameters."""
    trained = {key: torch.nn.Parameter(torch.zeros(4)) for key in ("layer", "#token")}
    attached = SimpleNamespace(layers={"layer": _Layer(trained["layer"])})
    chosen = TrainingSettings(
        optimizer=name,
        **{"learning_rate": 1.0, "linear_learning_rate": 0.1, "token_learning_rate": 0.2} | settings,
    )
    return optimiser_for(chosen, attached, [trained["#token"]], 1), trained, chosen


def stepped(optimiser, trained, settings, steps, start=0):
    """Towards (1, 2, 3, 4) by gradients of (p - target)² / 2 plus a little that depends on the step."""
    for step in range(start, start + steps):
        set_rates(optimiser, settings, step, 40)
        for parameter in trained.values():
            parameter.grad = parameter.detach() - torch.arange(1.0, 5.0) + 0.01 * step
        optimiser.step()


@pytest.mark.parametrize("name", ["adamw", "prodigy", "schedulefree"])
def test_every_optimiser_goes_on_from_its_state_bit_for_bit(name):
    whole, trained, settings = made(name, adam_weight_decay=0.01)
    stepped(whole, trained, settings, 7)
    state = {key: value.clone() for key, value in moments_of(whole, trained).items()}
    kept = {key: parameter.detach().clone() for key, parameter in trained.items()}
    stepped(whole, trained, settings, 6, start=7)
    resumed, again, _ = made(name, adam_weight_decay=0.01)
    with torch.no_grad():
        for key, parameter in again.items():
            parameter.copy_(kept[key])
    set_moments(resumed, again, load(save(state)))
    stepped(resumed, again, settings, 6, start=7)
    assert all(torch.equal(again[key], trained[key]) for key in trained)
    other, theirs = moments_of(resumed, again), moments_of(whole, trained)
    assert all(torch.equal(other[key], theirs[key]) for key in theirs)


def test_prodigy_finds_a_rate_and_tells_it():
    prodigy, trained, settings = made("prodigy", lr_scheduler="constant")
    before = set_rates(prodigy, settings, 1, 40)
    stepped(prodigy, trained, settings, 80)
    assert set_rates(prodigy, settings, 1, 40) > 10 * before
    assert {group["lr"] for group in prodigy.param_groups} == {prodigy.param_groups[0]["lr"]}


def test_the_schedule_free_mean_is_what_its_own_eval_gives_and_changes_nothing():
    free, trained, settings = made("schedulefree")
    assert schedule_free_mean(free, trained) == {}
    stepped(free, trained, settings, 5)
    before = {key: parameter.detach().clone() for key, parameter in trained.items()}
    means = schedule_free_mean(free, trained)
    assert all(torch.equal(trained[key], before[key]) for key in trained)
    free.eval()
    for key, parameter in trained.items():
        torch.testing.assert_close(means[key], parameter.detach())
        assert not torch.equal(means[key], before[key])


def test_the_moving_mean_follows_slowly_and_starts_where_the_numbers_are():
    moving, parameter = MovingMean(0.5), torch.nn.Parameter(torch.tensor([4.0]))
    moving.count({"a": parameter}, 1)
    assert moving.means["a"].item() == 4.0
    parameter.data.fill_(8.0)
    moving.count({"a": parameter}, 2)
    assert moving.means["a"].item() == pytest.approx(4.0 * 3 / 12 + 8.0 * 9 / 12)
    moving.count({"a": parameter}, 100)
    assert moving.means["a"].item() == pytest.approx(7.0 / 2 + 8.0 / 2)


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(SettingsError, match=r"needs the package prodigyopt.* install atomdiff\[optimizers\]"):
        made("prodigy")
