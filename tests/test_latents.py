"""Cached latents are the autoencoder's own, and every sample of a run is a function of (seed, number)."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from atomdiff.base.stable_diffusion import PromptEmbeds, encode_prompts
from atomdiff.training import latents
from atomdiff.training.batches import Sampler, by_shape, sample_number, seeded
from atomdiff.training.latents import (
    LatentCache,
    PromptTable,
    encode_pictures,
    encode_table,
    release_encoders,
    to_pixels,
)

ALONE = SimpleNamespace(process_index=0, num_processes=1, device="cpu")


def noise_picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8))


@pytest.fixture(scope="module")
def base(tiny_base):
    return tiny_base("sd1")


def test_mean_and_deviation_are_the_autoencoders_in_the_unets_scale(base):
    pictures = [noise_picture(0), noise_picture(1)]
    heard = []
    cache = encode_pictures(base, pictures, [0, 1], ALONE, progress=lambda *now: heard.append(now))
    assert [mean.shape for mean in cache.mean] == [(1, 4, 8, 8)] * 2
    assert cache.prompts == (0, 1)
    assert heard == [(0, 2), (1, 2), (2, 2)]
    with torch.no_grad():
        normal = base.vae.encode(to_pixels(pictures[1])[None]).latent_dist
    scale = base.vae.config.scaling_factor
    torch.testing.assert_close(cache.mean[1], normal.mean * scale)
    torch.testing.assert_close(cache.std[1], normal.std * scale)
    noise = torch.randn(4, 8, 8)
    torch.testing.assert_close(cache.sample(1, 0, noise), cache.mean[1][0] + cache.std[1][0] * noise)


def test_mirrored_pictures_are_cached_when_asked_for(base):
    picture = noise_picture(0)
    cache = encode_pictures(base, [picture], [0], ALONE, flips=True)
    mirrored = encode_pictures(base, [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)], [0], ALONE)
    assert [mean.shape for mean in cache.mean] == [(2, 4, 8, 8)]
    torch.testing.assert_close(cache.mean[0][1], mirrored.mean[0][0])


def test_a_half_precision_autoencoder_encodes_in_fp32_and_stays_half(tiny_base, base):
    half = tiny_base("sd1", dtype=torch.bfloat16)
    cache = encode_pictures(half, [noise_picture(0)], [0], ALONE)
    assert half.vae.dtype == torch.bfloat16
    assert cache.mean[0].dtype == torch.float32
    reference = encode_pictures(base, [noise_picture(0)], [0], ALONE)
    torch.testing.assert_close(cache.mean[0], reference.mean[0], rtol=0.1, atol=0.02)


def test_processes_encode_a_share_each_and_all_get_everything(base):
    pictures = [*(noise_picture(i) for i in range(2)), noise_picture(2).resize((80, 48))]
    whole = encode_pictures(base, pictures, [0] * 3, ALONE)
    sums: list[torch.Tensor] = []

    def process(index):
        def reduce(tensor, reduction):
            sums.append(tensor)
            return tensor

        return SimpleNamespace(process_index=index, num_processes=2, device="cpu", reduce=reduce)

    for index in (0, 1):
        encode_pictures(base, pictures, [0] * 3, process(index))
    assert whole.mean[2].shape == (1, 4, 6, 10)
    assert torch.equal(sums[0] + sums[2], torch.cat([mean.flatten() for mean in whole.mean]))
    assert torch.equal(sums[1] + sums[3], torch.cat([std.flatten() for std in whole.std]))


def test_each_prompt_is_embedded_once(tiny_base):
    base = tiny_base("sdxl")
    table = encode_table(base, ["a dog", "a sks dog", "a dog"])
    assert table.prompts == ("a dog", "a sks dog")
    rows = table.rows([1, 0, 1], "cpu")
    direct = encode_prompts(base, ["a sks dog"])
    torch.testing.assert_close(rows.hidden[0], direct.hidden[0])
    torch.testing.assert_close(rows.pooled[2], direct.pooled[0])
    release_encoders(base)
    assert base.pipe.text_encoder is None
    assert base.pipe.text_encoder_2 is None
    assert base.pipe.vae is None


def test_a_table_without_pooled_embeddings():
    table = PromptTable(("a",), PromptEmbeds(torch.ones(1, 3, 2), None))
    assert table.rows([0, 0], "cpu").pooled is None


# ------------------------------------------------------------------------------------------- batches


def cache(n: int = 3, flips: int = 1) -> LatentCache:
    mean = torch.arange(float(n))[:, None, None, None, None].expand(n, flips, 4, 2, 2)
    return LatentCache(mean, torch.full_like(mean, 0.001), tuple(range(10, 10 + n)))


def test_every_picture_once_a_round_in_changing_order():
    sampler = Sampler(cache(5), 0, "instance", 1000)
    rounds = [[sampler.picture(5 * r + i) for i in range(5)] for r in range(6)]
    assert all(sorted(each) == [0, 1, 2, 3, 4] for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1


def test_a_batch_is_the_same_however_it_is_cut():
    sampler = Sampler(cache(), 7, "instance", 1000, noise_offset=0.1)
    whole = sampler.batch(8, 4)
    parts = [sampler.batch(8, 1), sampler.batch(9, 3)]
    for name in ("latents", "noise", "timesteps"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
    assert whole.prompts == parts[0].prompts + parts[1].prompts
    assert all(
        prompt == 10 + round(float(x.mean())) for prompt, x in zip(whole.prompts, whole.latents, strict=True)
    )


def test_processes_and_turns_share_out_the_joint_batch():
    """2 processes x 3 turns x 2 samples cover the samples 24..35 of step 2 once each."""
    numbers = [
        sample_number(2, turn, process, batch=2, turns=3, processes=2) + i
        for turn in range(3)
        for process in range(2)
        for i in range(2)
    ]
    assert numbers == list(range(24, 36))


def test_sets_seeds_and_numbers_draw_apart():
    one = Sampler(cache(), 0, "instance", 1000).batch(0, 2)
    others = [
        Sampler(cache(), 0, "class", 1000).batch(0, 2),
        Sampler(cache(), 1, "instance", 1000).batch(0, 2),
    ]
    assert not any(torch.equal(one.noise, other.noise) for other in others)
    assert not torch.equal(one.noise[0], one.noise[1])


def test_timesteps_and_flips_cover_their_range():
    sampler = Sampler(cache(1, flips=2), 0, "instance", 10)
    batch = sampler.batch(0, 200)
    assert set(batch.timesteps.tolist()) == set(range(10))
    assert abs(float(batch.noise.mean())) < 0.1
    assert abs(float(batch.noise.std()) - 1) < 0.1


def test_draws_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    Sampler(cache(), 0, "instance", 1000).batch(0, 4)
    assert torch.equal(before, torch.random.get_rng_state())
    assert latents.to_pixels(noise_picture(0)).shape == (3, 64, 64)
    assert (
        torch.randn(2, generator=seeded(1, "a")).tolist() == torch.randn(2, generator=seeded(1, "a")).tolist()
    )


def mixed() -> LatentCache:
    """Three pictures of two shapes; the second has a mask, and captions to draw from."""
    shapes = [(2, 4, 2, 2), (2, 4, 2, 4), (2, 4, 2, 4)]
    mean = tuple(torch.full(shape, float(i)) for i, shape in enumerate(shapes))
    mask = torch.tensor([[[1.0, 0.5, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1]]])
    return LatentCache(mean, tuple(map(torch.zeros_like, mean)), (0, (1, 2, 3), 4), (None, mask, None))


def test_samples_of_many_shapes_are_one_batch_a_shape_with_the_subjects_first():
    sampler = Sampler(mixed(), 0, "instance", 10)
    own, others = sampler.samples(0, 6), Sampler(cache(2), 0, "class", 10).samples(0, 3)
    groups = by_shape(own, others)
    assert {batch.latents.shape[1:]: (len(batch.latents), count) for batch, count in groups} == {
        (4, 2, 2): (2 + 3, 2),
        (4, 2, 4): (4, 4),
    }
    for batch, _ in groups:
        assert batch.noise.shape == batch.latents.shape
        assert len(batch.timesteps) == len(batch.prompts) == len(batch.latents)


def test_a_mask_is_mirrored_with_its_picture_and_others_count_alike():
    masked = mixed()
    assert masked.weight(0, 1) is None
    assert torch.equal(masked.weight(1, 1), masked.weights[1].flip(-1))
    wide = next(
        batch
        for batch, _ in by_shape(Sampler(masked, 0, "a", 10).samples(0, 9), [])
        if batch.weights is not None
    )
    plain = [float(w.min()) == 1 for w in wide.weights]
    assert wide.weights.shape == (6, 1, 2, 4) and sorted(plain) == [False] * 3 + [True] * 3


def test_captions_are_drawn_and_dropped_as_often_as_asked():
    sampler = Sampler(replace(mixed(), dropout=0.25, empty=9), 0, "instance", 10)
    rows = Counter(sample.prompt for sample in sampler.samples(0, 900))
    assert set(rows) == {0, 1, 2, 3, 4, 9}
    assert abs(rows[9] / 900 - 0.25) < 0.04
    assert all(abs(rows[row] / 900 - 0.25 / 3) < 0.03 for row in (1, 2, 3))
    assert sampler.samples(40, 2)[0].prompt == sampler.samples(39, 2)[1].prompt
