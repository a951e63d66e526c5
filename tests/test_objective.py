"""The loss against the formulas written out, for both prediction types."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from atomdiff.training.objective import diffusion_loss, snr_weights, target


def scheduler(prediction_type: str = "epsilon") -> DDPMScheduler:
    return DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction_type
    )


def batch(b: int = 4):
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(b, 4, 8, 8, generator=generator) for _ in range(2))
    return latents, noise, torch.tensor([1, 250, 500, 999])[:b]


def constant_unet(answer):
    def unet(noisy, timesteps, embeds, added_cond_kwargs=None, return_dict=True):
        return (answer,)

    return unet


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_target_agrees_with_the_schedulers_own(kind):
    latents, noise, timesteps = batch()
    noise_maker = scheduler(kind)
    wanted = noise if kind == "epsilon" else noise_maker.get_velocity(latents, noise, timesteps)
    noisy = {}

    def perfect(z, t, embeds, added_cond_kwargs=None, return_dict=True):
        noisy["z"] = z
        return (wanted,)

    losses = diffusion_loss(
        perfect,
        noise_maker,
        latents,
        torch.zeros(4, 3, 2),
        None,
        noise,
        timesteps,
        instances=2,
        prior_weight=1.0,
    )
    assert float(losses.total) < 1e-11
    torch.testing.assert_close(noisy["z"], noise_maker.add_noise(latents, noise, timesteps))


def test_instance_and_prior_are_averaged_apart():
    latents, noise, timesteps = batch()
    answer = noise.clone()
    answer[:1] += 2.0
    answer[1:] += 3.0
    losses = diffusion_loss(
        constant_unet(answer), scheduler(), latents, torch.zeros(4, 1, 1), None, noise, timesteps,
        instances=1, prior_weight=0.5,
    )  # fmt: skip
    assert [round(float(x), 4) for x in losses] == [4.0 + 0.5 * 9.0, 4.0, 9.0]


def test_without_prior_the_prior_loss_is_zero():
    latents, noise, timesteps = batch()
    losses = diffusion_loss(
        constant_unet(noise + 1),
        scheduler(),
        latents,
        torch.zeros(4, 1, 1),
        None,
        noise,
        timesteps,
        instances=4,
    )
    assert float(losses.total) == pytest.approx(1.0)
    assert float(losses.prior) == 0.0


def test_the_class_is_held_to_the_bases_own_answers():
    """Not to the noise: where nothing has changed the prior loss is zero, and so is its gradient."""
    latents, noise, timesteps = batch()
    answers, asked = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1)), {}
    change = torch.zeros((), requires_grad=True)

    def unet(noisy, t, embeds, added_cond_kwargs=None, return_dict=True):
        return (answers + change,)

    def base(noisy, t, embeds, added_cond_kwargs=None, return_dict=True):
        asked.update(t=t, added=added_cond_kwargs)
        return (answers[3:],)

    added = {"time_ids": torch.arange(4)}
    given = (scheduler(), latents, torch.zeros(4, 1, 1), added, noise, timesteps)
    losses = diffusion_loss(unet, *given, instances=3, prior_weight=1.0, base_answer=base)
    assert float(losses.prior) == 0 and float(losses.instance) > 0
    assert asked["t"].tolist() == [999] and asked["added"]["time_ids"].tolist() == [3]
    (gradient,) = torch.autograd.grad(losses.total - losses.instance, change, allow_unused=True)
    instance = diffusion_loss(unet, *given, instances=3, base_answer=base)
    assert gradient == torch.autograd.grad(instance.total, change)[0]
    with torch.no_grad():
        change += 2.0
    assert float(diffusion_loss(unet, *given, instances=3, base_answer=base).prior) == pytest.approx(4.0)


def test_min_snr_weights_by_hand():
    a, s = torch.tensor([0.9, 0.5, 0.1]), (1 - torch.tensor([0.9, 0.5, 0.1]) ** 2).sqrt()
    snr = (a / s) ** 2
    small = torch.minimum(snr, torch.tensor(0.3))
    torch.testing.assert_close(snr_weights("epsilon", a, s, 0.3), small / snr)
    torch.testing.assert_close(snr_weights("v_prediction", a, s, 0.3), small / (snr + 1))
    assert snr_weights("epsilon", a, s, None).tolist() == [1, 1, 1]


def test_pure_noise_at_the_last_step_gives_a_finite_weight():
    noise_maker = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    kept = noise_maker.alphas_cumprod[-1:]
    for kind in ("epsilon", "v_prediction"):
        assert torch.isfinite(snr_weights(kind, kept.sqrt(), (1 - kept).sqrt(), 5.0)).all()


def test_an_unknown_prediction_type_is_named():
    with pytest.raises(ValueError, match="unknown prediction type 'flow'"):
        target("flow", *[torch.zeros(1)] * 4)


def test_the_mean_of_a_learned_variance_unet_is_used():
    latents, noise, timesteps = batch()
    both = torch.cat([noise, torch.full_like(noise, 7.0)], dim=1)
    losses = diffusion_loss(
        constant_unet(both), scheduler(), latents, torch.zeros(4, 1, 1), None, noise, timesteps, instances=4
    )
    assert float(losses.total) == 0.0


def test_a_mask_says_what_counts_and_by_its_share_nothing_else():
    latents, noise, timesteps = batch()
    answer = noise.clone()
    answer[..., 0] += 2.0  # wrong in the first column only
    weights = torch.zeros(4, 1, *latents.shape[2:])
    weights[:2, ..., 0] = 1.0  # of the first two the first column counts, of the others the rest
    weights[2:, ..., 1:] = 0.5
    losses = [
        diffusion_loss(
            constant_unet(answer[own]), scheduler(), latents[own], torch.zeros(2, 1, 1), None, noise[own],
            timesteps[own], instances=2, weights=weights[own],
        )
        for own in (slice(0, 2), slice(2, 4))
    ]  # fmt: skip
    assert [float(loss.total) for loss in losses] == [pytest.approx(4.0), pytest.approx(0.0)]


def test_the_losses_of_parts_add_up_to_the_joint_batchs():
    latents, noise, timesteps = batch()
    answer = noise + torch.arange(4.0)[:, None, None, None]

    def loss(own, instances, of=None):
        return diffusion_loss(
            constant_unet(answer[own]), scheduler(), latents[own], torch.zeros(len(own), 1, 1), None,
            noise[own], timesteps[own], instances=instances, of=of, prior_weight=0.5,
        )  # fmt: skip

    whole = loss([0, 1, 2, 3], 3)
    parts = [loss([0], 1, (3, 1)), loss([1, 2, 3], 2, (3, 1))]
    for i in range(3):
        assert float(whole[i]) == pytest.approx(sum(float(part[i]) for part in parts))
