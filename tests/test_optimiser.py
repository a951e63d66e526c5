"""The optimiser's parts: schedules, moments as data, the mean over the last steps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atomdiff.training.optimiser import LastMean, moments_of, rate_factor, set_moments


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
            resumed.means = {name: mean.clone() for name, mean in kept.means.items()}
    if not share:
        assert kept.means == {}
        return
    last = values[-max(1, round(share * total)) :]
    torch.testing.assert_close(kept.means["a"], torch.stack(last).mean(0))
    assert torch.equal(kept.means["a"], resumed.means["a"])
