"""Rates that follow from the base: the measure, what it must not depend on, and the watch on the class."""

import copy
import dataclasses
import math

import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atomdiff.base.stable_diffusion import encode_prompts
from atomdiff.concept.concept import Concept
from atomdiff.core.inject import attach, fold
from atomdiff.core.spec import AtomSpec
from atomdiff.errors import Interrupted, SettingsError
from atomdiff.training import calibration, rates
from atomdiff.training.calibration import CHANGE, AdamMove, LoraProbe, calibrate, solve, word_rate
from atomdiff.training.monitor import SLOWER, Brake, Watch
from atomdiff.training.optimiser import groups_of
from atomdiff.training.probes import denoising_probes, noise_prediction, relative_change
from atomdiff.training.reporting import Reporter
from atomdiff.training.run import train
from benchmarks.rates.variants import permute, rescale, widen

SPEC = AtomSpec(num_atoms=9, linear_atoms="attn2", linear_block=4)


class Heard(Reporter):
    def __init__(self):
        self.notices, self.warnings, self.records, self.stages = [], [], [], []

    def notice(self, text):
        self.notices.append(text)

    def warn(self, text):
        self.warnings.append(text)

    def step(self, record):
        self.records.append(record)

    def stage(self, what, done, total):
        self.stages.append(what)


@pytest.fixture(scope="module")
def base(tiny_base):
    return tiny_base("sd1")


def measured(base, spec=SPEC, rate=1e-4):
    prompt, empty = (encode_prompts(base, [text]) for text in ("a dog", ""))
    return calibrate(base, spec, prompt, empty, 64, rate)


# ------------------------------------------------------------------------------------------ the measure


@given(st.lists(st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3), min_size=1, max_size=6))
@settings(max_examples=30)
def test_a_move_is_what_torch_s_adam_does_at_a_vanishing_rate(gradients):
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    adam, move = torch.optim.Adam([parameter], lr=1.0), AdamMove(parameter)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        move.step(parameter.grad)
        adam.step()  # Adam's moves do not depend on where the parameter is
    torch.testing.assert_close(move.total, parameter.detach(), rtol=1e-6, atol=1e-9)


@given(st.floats(1e-6, 1.0), st.floats(1e-6, 1.0), st.floats(0.8, 1.2))
def test_the_rate_is_found_from_wherever_the_search_starts(right, start, power):
    found = solve(lambda rate: CHANGE * (rate / right) ** power, start)
    assert found == pytest.approx(right, rel=0.1)


def test_a_change_that_is_no_number_is_stepped_back_from():
    assert solve(lambda rate: math.nan if rate > 0.1 else CHANGE * rate / 0.01, 5.0) == pytest.approx(0.01)


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_speed_is_linear_in_the_rate_and_the_base_is_left_alone(tiny_base, kind):
    base = tiny_base(kind)
    before = {name: weight.clone() for name, weight in base.unet.state_dict().items()}
    slow, fast = measured(base, rate=1e-4), measured(base, rate=3e-4)
    assert fast.learning_rate == pytest.approx(3 * slow.learning_rate, rel=0.01)
    assert fast.linear_learning_rate == pytest.approx(3 * slow.linear_learning_rate, rel=0.01)
    assert fast.speed == pytest.approx(3 * slow.speed, rel=0.01)
    assert list(base.unet.state_dict()) == list(before)
    assert all(torch.equal(base.unet.state_dict()[name], weight) for name, weight in before.items())
    assert not any(module._forward_hooks for module in base.unet.modules())


def test_small_moves_change_the_prediction_in_proportion(base):
    probes, _ = denoising_probes(base, encode_prompts(base, ["a dog"]), 64)
    before = noise_prediction(base, probes)
    attached = attach(base.unet, SPEC)
    try:
        groups = groups_of(attached)
        moves = {p: torch.randn_like(p).sign() for group in groups.values() for p in group}
        for name in groups:
            changes = []
            for rate in (1e-4, 2e-4):
                with calibration.moved(groups, moves, {name: rate}):
                    changes.append(relative_change(noise_prediction(base, probes), before))
            assert changes[1] / changes[0] == pytest.approx(2, rel=0.02)
        assert relative_change(noise_prediction(base, probes), before) < 1e-5
    finally:
        attached.detach()


def test_groups_together_are_as_fast_as_each_would_be_alone(base):
    both = measured(base)
    conv = measured(base, dataclasses.replace(SPEC, linear_atoms="none"))
    linear = measured(base, dataclasses.replace(SPEC, num_atoms=0))
    assert conv.linear_learning_rate == linear.learning_rate == 0
    shares = (
        both.learning_rate / conv.learning_rate,
        both.linear_learning_rate / linear.linear_learning_rate,
    )
    assert shares[0] == pytest.approx(shares[1], rel=0.1)
    assert 0.45 < shares[0] <= 1.05


@pytest.mark.parametrize(
    "change",
    [
        {"conv_family": "recursive", "channel_groups": 4, "linear_atoms": "none"},
        {"coef_block": 2, "linear_atoms": "none"},
        {"conv_family": "sparse", "linear_atoms": "none", "num_atoms": 12},
    ],
)
def test_every_family_of_convolutions_has_a_rate(base, change):
    found = measured(base, dataclasses.replace(SPEC, **change))
    assert 0 < found.learning_rate < math.inf


# ------------------------------------------------------------------- what the rates must not depend on


@pytest.mark.parametrize("kind", tiny_models.KINDS)
@pytest.mark.parametrize("rewrite", [rescale, permute, widen])
def test_the_same_function_in_other_weights_gets_the_same_rates(tiny_base, kind, rewrite):
    base = tiny_base(kind)
    usual, noise = measured(base), noise_of(base)
    rewrite(base.unet)
    assert relative_change(noise_of(base), noise) < 1e-3  # the eps of the normalisations
    again = measured(base)
    for name in ("learning_rate", "linear_learning_rate", "speed"):
        assert getattr(again, name) == pytest.approx(getattr(usual, name), rel=0.02)


def noise_of(base):
    return noise_prediction(base, denoising_probes(base, encode_prompts(base, ["a dog"]), 64)[0])


def test_without_its_gain_the_probe_would_follow_the_weights(base):
    """What the LoRA of the probe is for: plain LoRA is slower where a normalisation's gain is smaller."""
    rewritten = copy.copy(base)
    rewritten.pipe = copy.copy(base.pipe)
    rewritten.pipe.unet = copy.deepcopy(base.unet)
    rescale(rewritten.unet, 4.0)
    gains = []
    for one in (base, rewritten):
        probe = LoraProbe(one.unet)
        noise_of(one)
        probe.remove()
        gains.append(probe.gains["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"])
    assert float(gains[1] / gains[0]) == pytest.approx(16, rel=1e-3)  # input by 1/4, output by 4


def test_a_word_learns_in_proportion_to_the_embeddings(base):
    table = base.pipe.text_encoder.get_input_embeddings().weight
    rms = float(table.detach().square().mean().sqrt())
    assert word_rate(base) == pytest.approx(5e-4 * rms / (0.4 / 768**0.5), rel=0.01)


# -------------------------------------------------------------------------------------- in a training


@pytest.fixture
def run(base, tmp_path):
    tiny_models.save_pictures(tmp_path / "dog", 2, 70, 70)

    def start(base=base, heard=None, stop=lambda: False, **settings):
        heard = heard or Heard()
        few = {"conv_layers": "mid_block", "max_train_steps": 2, "train_batch_size": 2, "precision": "fp32"}
        few |= {"recipe": "atoms+dc", "lr_scheduler": "constant", "with_prior_preservation": False}
        concept = train(
            tmp_path / "dog", tmp_path / "out", base, reporter=heard, stop=stop, **(few | settings)
        )
        return concept, heard

    return start


def test_rates_are_told_recorded_and_kept_for_the_next_run(run, monkeypatch, tmp_path):
    monkeypatch.setenv("ATOMDIFF_CACHE", str(tmp_path / "cache"))
    concept, heard = run()
    (told,) = [text for text in heard.notices if text.startswith("Learning rates: ")]
    assert "as fast as LoRA r=4 on attention at 0.0001: " in told
    assert f"{concept.training['learning_rate']:g} for conv atoms" in told
    assert concept.training["match_lora_rate"] == 1e-4
    assert "Finding the learning rates" in heard.stages
    again, heard = run()
    assert "Finding the learning rates" not in heard.stages
    assert again.training == concept.training
    (kept,) = (tmp_path / "cache" / "rates").iterdir()
    kept.write_text('{"learning_rate": -1.0}')
    assert "Finding the learning rates" in run()[1].stages


def test_another_lora_rate_is_matched_and_a_rate_by_hand_measures_nothing(run, monkeypatch):
    usual, faster = run()[0], run(match_lora_rate=3e-4)[0]
    assert faster.training["learning_rate"] == pytest.approx(3 * usual.training["learning_rate"], rel=0.02)
    monkeypatch.setattr(rates, "calibrate", None)
    concept, heard = run(learning_rate=0.01)
    assert concept.training["learning_rate"] == concept.training["linear_learning_rate"] == 0.01
    assert "match_lora_rate" not in concept.training
    assert not [text for text in heard.notices if text.startswith("Learning rates")]
    with pytest.raises(SettingsError, match="--learning_rate sets the rate that --match_lora_rate would"):
        run(learning_rate=0.01, match_lora_rate=1e-4)


def test_a_resumed_run_keeps_its_rates_whatever_would_be_measured_now(run, monkeypatch):
    whole, _ = run(max_train_steps=3)
    run(max_train_steps=1)
    monkeypatch.setattr(rates, "cached", None)
    resumed, _ = run(max_train_steps=3, resume_from_checkpoint="latest")
    assert same(whole, resumed)


def same(a: Concept, b: Concept) -> bool:
    return all(torch.equal(a.atoms[name], b.atoms[name]) for name in a.atoms)


# ---------------------------------------------------------------------------- the watch on the class


def test_drift_is_that_of_the_class_and_none_without_training(base):
    watch = Watch.of(base, "a dog", 64)
    assert watch.drift(base) < 1e-6
    attached = attach(base.unet, SPEC)
    try:
        assert watch.drift(base) < 1e-5
        for parameter in attached.parameters():
            parameter.data.fill_(0.05)
        assert watch.drift(base) > 0.01
        for parameter in attached.parameters():
            parameter.data.fill_(math.nan)
        assert watch.drift(base) == math.inf
    finally:
        attached.detach()


def test_a_brake_slows_only_beyond_its_bound():
    brake = Brake(0.5, {})
    assert not brake.exceeded(0.5)
    assert brake.pace == 1.0
    assert brake.exceeded(0.6)
    assert brake.exceeded(math.inf)
    assert brake.pace == SLOWER**2
    assert not brake.spent
    for _ in range(3):
        brake.exceeded(9.0)
    assert brake.spent
    assert not Brake(0.0, {}).exceeded(1e9)


def test_drift_is_in_the_records(run):
    _, heard = run(max_train_steps=5, drift_steps=2)
    assert [record.drift is not None for record in heard.records] == [False, True, False, True, True]
    assert all(record.drift > 0 for record in heard.records if record.drift is not None)
    assert all(record.drift is None for record in run(drift_steps=0)[1].records)


def test_an_absurd_rate_ends_within_the_bound(run, base):
    concept, heard = run(max_train_steps=40, learning_rate=5.0, drift_steps=2, max_drift=0.2)
    assert heard.records[-1].step < 40
    assert heard.records[-1].last
    assert len(heard.warnings) == 5
    assert heard.warnings[0].startswith("After step 2 the base's prediction for 'a dog' had changed by ")
    assert "goes on at a quarter of its rates" in heard.warnings[0]
    assert "ends here with them" in heard.warnings[-1]
    watch = Watch.of(base, "a dog", 64)
    with fold(base.unet, [(concept.deltas(base.unet), 1.0)]):
        assert watch.drift(base) <= 0.2
    assert all(torch.isfinite(tensor).all() for tensor in concept.atoms.values())


def test_a_rate_too_high_is_slowed_until_it_fits(run):
    _, heard = run(max_train_steps=12, learning_rate=0.05, drift_steps=3, max_drift=0.0)
    bound = 0.4 * heard.records[-1].drift
    _, slowed = run(max_train_steps=12, learning_rate=0.05, drift_steps=3, max_drift=bound)
    assert slowed.warnings
    assert slowed.records[-1].step == 12
    within = [r for r in slowed.records if r.drift is not None and r.drift <= bound]
    assert within[-1].learning_rate < 0.05


def test_a_slowed_run_resumes_bit_for_bit(run):
    asked = {"max_train_steps": 12, "learning_rate": 0.05, "drift_steps": 3, "average_last": 0.5}
    _, free = run(**asked)
    asked["max_drift"] = 0.5 * free.records[5].drift
    whole, heard = run(**asked)
    assert heard.warnings
    first = Heard()
    with pytest.raises(Interrupted):
        run(**asked, heard=first, stop=lambda: len(first.records) == 7)
    resumed, rest = run(**asked, resume_from_checkpoint="latest")
    assert [r.drift for r in (*first.records, *rest.records)] == [r.drift for r in heard.records]
    assert same(whole, resumed)
