"""Drawing with concepts folded in: same seeds, same pictures; nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

from atomdiff.base.stable_diffusion import Base, Choice, load_base
from atomdiff.base.textual_inversion import token_ids
from atomdiff.concept.concept import Concept
from atomdiff.core import inject
from atomdiff.core.inject import AtomSpec
from atomdiff.errors import AtomdiffError, ConceptError, ImageError, SettingsError
from atomdiff.files.safetensors_file import load_concept, save_concept, sha256
from atomdiff.sampling import infotext, pipeline, sheets
from atomdiff.sampling.draw import CousinWarning, draw
from atomdiff.sampling.settings import SAMPLERS, DrawingSettings

QUICK = {"steps": 2, "guidance": 2.0}


def concept_for(base: Base, scale: float = 0.2, seed: int = 0, name: str = "dog") -> Concept:
    generator = torch.Generator().manual_seed(seed)
    selection = inject.select(base.unet, AtomSpec())
    shapes = dict.fromkeys(selection.conv, (9, 9)) | dict.fromkeys(selection.linear, (16, 16))
    atoms = {layer: scale * torch.randn(shape, generator=generator) for layer, shape in shapes.items()}
    return Concept.of(base.unet, AtomSpec(), atoms, base.passport, trigger="sks", name=name)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def gap(one: list[Image.Image], other: list[Image.Image]) -> float:
    """Mean difference in 8-bit levels."""
    return float(np.mean([np.abs(pixels(a) - pixels(b)).mean() for a, b in zip(one, other, strict=True)]))


@pytest.fixture(scope="module")
def base(tiny_base: Callable[..., Base]) -> Base:
    """Shared: drawing must leave it as it was."""
    return tiny_base("sd1")


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_every_family_draws_with_a_concept(tiny_base, kind):
    base = tiny_base(kind)
    plain = draw(base, "a sks dog", **QUICK)
    changed = draw(base, "a sks dog", concepts=[concept_for(base)], **QUICK)
    assert plain[0].size == changed[0].size == (64, 64)
    assert gap(plain, changed) > 0.5


def test_a_picture_depends_on_its_own_seed_only(base):
    together = draw(base, "a sks dog", count=3, seed=5, batch_size=3, **QUICK)
    apart = draw(base, "a sks dog", count=3, seed=5, batch_size=1, **QUICK)
    alone = draw(base, "a sks dog", seed=6, **QUICK)
    assert all(np.abs(pixels(a) - pixels(b)).max() <= 1 for a, b in zip(together, apart, strict=True))
    assert np.array_equal(pixels(apart[1]), pixels(alone[0]))
    assert gap(together[:1], together[1:2]) > 0.5


def test_strength_zero_and_removal_give_the_base_bit_for_bit(base):
    concept = concept_for(base)
    before = draw(base, "a sks dog", count=2, **QUICK)
    weights = {name: (parameter, parameter.clone()) for name, parameter in base.unet.named_parameters()}
    changed = draw(base, "a sks dog", count=2, concepts=[concept], **QUICK)
    off = draw(base, "a sks dog", count=2, concepts=[(concept, 0)], **QUICK)
    after = draw(base, "a sks dog", count=2, **QUICK)
    assert gap(before, changed) > 0.5
    for images in (off, after):
        assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(before, images, strict=True))
    for name, parameter in base.unet.named_parameters():
        assert parameter is weights[name][0]
        assert torch.equal(parameter, weights[name][1])


def test_strengths_of_several_concepts_add(base):
    one, two = concept_for(base, 0.1, 1), concept_for(base, 0.1, 2)
    twice = draw(base, "a sks dog", concepts=[(one, 0.5), (one, 0.5)], **QUICK)
    assert gap(twice, draw(base, "a sks dog", concepts=[one], **QUICK)) < 0.5
    both = draw(base, "a sks dog", concepts=[one, two], **QUICK)
    assert gap(both, draw(base, "a sks dog", concepts=[two, one], **QUICK)) < 0.5
    assert gap(both, twice) > 0.5


def test_gated_concepts_act_where_the_prompt_says_their_trigger(base):
    rex, tom = concept_for(base, 0.2, 1), replace(concept_for(base, 0.2, 2), trigger="qwe")
    told: list[tuple[int, int]] = []
    prompts = ["a qwe cat", "a dog", "A SKS dog", "a sksy dog", "a sks dog by a qwe cat"]
    options = {"batch_size": 1, "callback": lambda *at: told.append(at), "acting": "gated", **QUICK}
    drawn = draw(base, prompts, concepts=[rex, tom], seed=3, **options)
    assert told == [(i + 1, 10) for i in range(10)]
    for i, concepts in enumerate([[tom], [], [rex], [], [rex, tom]]):
        alone = draw(base, prompts[i], concepts=concepts, seed=3 + i, acting="gated", **QUICK)
        assert np.array_equal(pixels(drawn[i]), pixels(alone[0]))
        assert drawn[i].info["parameters"].startswith(prompts[i])
    unnamed = draw(base, "a dog", concepts=[replace(rex, trigger="")], acting="gated", **QUICK)
    assert gap(unnamed, draw(base, "a dog", **QUICK)) > 0.5


def test_plain_concepts_act_on_everything(base):
    """As any tool draws that has the weights: folded by hand, and the stock pipeline called."""
    rex, own = concept_for(base, 0.2, 1), base.pipe.scheduler
    plain = draw(base, "a dog", concepts=[rex], acting="plain", **QUICK)
    base.pipe.scheduler = DPMSolverMultistepScheduler.from_config(own.config)
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "width": 64, "height": 64}
    with inject.fold(base.unet, [(rex.deltas(base.unet), 1.0)]):
        stock = base.pipe("a dog", generator=torch.Generator().manual_seed(0), **options).images
    base.pipe.scheduler = own
    assert np.array_equal(pixels(plain[0]), pixels(stock[0]))
    assert gap(plain, draw(base, "a dog", **QUICK)) > 0.5
    assert "Concepts act: plain" in plain[0].info["parameters"]


def with_token(base: Base, concept: Concept) -> Concept:
    """The concept with a learned trigger."""
    vectors = {key: torch.ones(len(ids), 1, 32) for key, ids in token_ids(base, concept.trigger).items()}
    return replace(concept, atoms={**concept.atoms, **vectors})


def first_noise(base: Base, steps: int = 2, **settings: Any) -> tuple[torch.Tensor, ...]:
    """What the UNet answers at the first step of so many for the negative prompts, and for the prompts."""
    answers: list[torch.Tensor] = []
    handle = base.unet.register_forward_hook(lambda unet, args, out: answers.append(out[0]))
    try:
        draw(base, "a sks dog", count=2, steps=steps, guidance=3.0, negative="sks rain", **settings)
    finally:
        handle.remove()
    return answers[0].chunk(2)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_on_the_conditional_branch_alone_the_other_one_is_the_plain_base(tiny_base, kind):
    base = tiny_base(kind)
    weights = dict(base.unet.named_parameters())
    concepts = [with_token(base, concept_for(base))]
    plain, both = first_noise(base), first_noise(base, concepts=concepts, acting="plain")
    alone = first_noise(base, concepts=concepts, acting="gated")
    torch.testing.assert_close(alone[0], plain[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone[1], both[1], rtol=1e-4, atol=1e-5)
    assert min(float((both[i] - plain[i]).abs().max()) for i in (0, 1)) > 1e-2
    assert all(parameter is weights[name] for name, parameter in base.unet.named_parameters())
    assert not any("forward" in vars(layer) for layer in base.unet.modules())


def test_in_the_last_step_what_guidance_amplifies_is_halved(base):
    """A picture of one step has no other."""
    concept = concept_for(base)
    last = first_noise(base, 1, concepts=[concept], acting="gated")
    half, whole = (first_noise(base, 1, concepts=[(concept, s)], acting="plain") for s in (0.5, 1.0))
    torch.testing.assert_close(last[0], first_noise(base, 1)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last[1], half[1], rtol=1e-4, atol=1e-5)
    assert float((whole[1] - half[1]).abs().max()) > 1e-2


def test_the_conditional_branch_without_guidance_or_strength(base):
    concept = with_token(base, concept_for(base))
    alone = {"steps": 2, "count": 2, "acting": "gated"}
    for before, strength, guidance in (([], 0, 3.0), ([concept], 1, 1.0)):
        usual = draw(base, "a sks dog", concepts=before, steps=2, count=2, guidance=guidance, acting="plain")
        drawn = draw(base, "a sks dog", concepts=[(concept, strength)], guidance=guidance, **alone)
        assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(usual, drawn, strict=True))
    with pytest.raises(SettingsError, match="Concepts act plain or gated, not 'always'"):
        draw(base, "a sks dog", acting="always")


def test_in_the_first_steps_gated_concepts_leave_the_unet_to_the_base(base):
    weights = dict(base.unet.named_parameters())
    concept = concept_for(base)

    def noises(**settings):
        """What the UNet answers at each of twelve steps."""
        answers: list[torch.Tensor] = []
        handle = base.unet.register_forward_hook(lambda unet, args, out: answers.append(out[0]))
        try:
            draw(base, "a sks dog", steps=12, guidance=1.0, **settings)
        finally:
            handle.remove()
        return answers

    own, plain = noises(), noises(concepts=[concept], acting="plain")
    gated = noises(concepts=[concept], acting="gated")
    assert torch.equal(gated[0], own[0]) and not torch.equal(gated[1], own[1])
    assert not torch.equal(plain[0], own[0])
    assert all(parameter is weights[name] for name, parameter in base.unet.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_another_dtype_changes_a_concepts_pictures_no_more_than_the_bases(base, tiny_base, tmp_path, dtype):
    concept = load_concept(save_concept(concept_for(base, 0.1), tmp_path / "x.safetensors"))
    other = tiny_base("sd1", dtype=dtype)
    settings = {"count": 3, "steps": 3, "guidance": 1.0}
    by_dtype = gap(draw(base, "a sks dog", **settings), draw(other, "a sks dog", **settings))
    with_concept = gap(
        draw(base, "a sks dog", concepts=[concept], **settings),
        draw(other, "a sks dog", concepts=[concept], **settings),
    )
    assert with_concept <= 1.5 * by_dtype + 0.1


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_every_sampler_draws_reproducibly_and_the_base_keeps_its_own(base, sampler):
    own = base.scheduler
    first = draw(base, "a sks dog", steps=3, sampler=sampler)
    assert np.array_equal(pixels(first[0]), pixels(draw(base, "a sks dog", steps=3, sampler=sampler)[0]))
    assert base.scheduler is own


def test_drawing_begins_in_pure_noise_where_the_schedule_ends_there(tiny_folder):
    base = load_base(str(tiny_folder("sd2")), choice=Choice(zero_terminal_snr=True))
    usual = draw(load_base(str(tiny_folder("sd2"))), "a dog", **QUICK)
    for sampler in set(SAMPLERS) - {"heun"}:
        with pipeline.with_scheduler(base, DrawingSettings("", sampler=sampler)):
            base.pipe.scheduler.set_timesteps(5)
            assert base.pipe.scheduler.timesteps[0] == 999
            assert float(base.pipe.scheduler.alphas_cumprod[-1]) < 1e-6
    assert gap(draw(base, "a dog", **QUICK), usual) > 0.1
    with pytest.raises(SettingsError, match=r"'heun' cannot begin in pure noise.*dpm"):
        draw(base, "a dog", sampler="heun", **QUICK)


def test_a_base_may_be_spent_on_pictures_that_are_the_same(tiny_base, tiny_folder):
    file = tiny_folder("sd1") / "unet" / "diffusion_pytorch_model.safetensors"
    on_disk = file.read_bytes()
    base, kept = tiny_base("sd1"), tiny_base("sd1")
    concept, weights = concept_for(base), dict(base.unet.named_parameters())
    wanted = draw(kept, "a sks dog", concepts=[concept], count=2, **QUICK)
    drawn = draw(base, "a sks dog", concepts=[concept], count=2, spend=True, **QUICK)
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(drawn, wanted, strict=True))
    assert dict(base.unet.named_parameters()) == weights  # no second copy is held
    assert file.read_bytes() == on_disk  # which the weights may be mapped from
    with pytest.raises(AtomdiffError, match="drawn with for good, to save memory; load it again"):
        draw(base, "a sks dog", concepts=[concept], **QUICK)
    for needed in ({"acting": "gated"}, {"hires": 2.0}):  # the weights as they were are needed for these
        draw(kept, "a sks dog", concepts=[concept], spend=True, **needed, **QUICK)
        assert np.array_equal(pixels(draw(kept, "a sks dog", concepts=[concept], count=2, **QUICK)[0]),
                              pixels(wanted[0]))  # fmt: skip


def test_sizes_and_progress(base):
    told = []
    images = draw(
        base, "a sks dog", count=3, batch_size=2, size=(72, 40), callback=lambda *at: told.append(at), **QUICK
    )
    assert [image.size for image in images] == [(72, 40)] * 3
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_stopping_in_the_middle_leaves_nothing_behind(base):
    weights = dict(base.unet.named_parameters())
    own = base.scheduler

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(base, "a sks dog", concepts=[concept_for(base)], callback=stop, **QUICK)
    assert all(parameter is weights[name] for name, parameter in base.unet.named_parameters())
    assert base.scheduler is own
    draw(base, "a sks dog", concepts=[concept_for(base)], **QUICK)


def test_pictures_that_turn_into_nan_are_told(base):
    with pytest.raises(SettingsError, match=r"NaN at step 1: lower the concept's strength"):
        draw(base, "a sks dog", concepts=[(concept_for(base), 1e30)], **QUICK)


def test_concepts_of_other_bases(base, tiny_base):
    concept = concept_for(base)
    with pytest.raises(ConceptError, match=r"'dog' was made for 'tiny-sd1'.* cannot be used on 'tiny-sdxl'"):
        draw(tiny_base("sdxl"), "a dog", concepts=[concept], **QUICK)
    cousin = tiny_base("sd1", seed=1)
    with pytest.warns(CousinWarning, match="likeness may suffer"):
        draw(cousin, "a dog", concepts=[concept], **QUICK)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sampler": "magic"}, "no sampler 'magic': choose one of dpm\\+\\+"),
        ({"steps": 0}, "1 to 1000 steps, not 0"),
        ({"seed": -1}, "not -1"),
        ({"seed": 2**63 - 1, "count": 2}, "take a smaller seed"),
        ({"guidance": float("nan")}, "guidance scale is a number"),
        ({"size": 65}, "multiples of 8"),
        ({"size": (64, 0)}, "64 × 0"),
        ({"count": 0}, "count 0"),
        ({"batch_size": 0}, "batch 0"),
    ],
)
def test_settings_that_cannot_work(base, setting, message):
    with pytest.raises(SettingsError, match=message):
        draw(base, "a sks dog", **setting)


def test_pictures_say_how_to_redraw_them(base, tmp_path):
    concept = concept_for(base, name='Rex: "the" dog')
    image = draw(base, "a sks dog", concepts=[(concept, 0.8)], seed=7, negative="blurry", **QUICK)[0]
    checksum = sha256(concept)[:12]
    assert image.info["parameters"] == (
        "a sks dog\nNegative prompt: blurry\nSteps: 2, Sampler: DPM++ 2M, CFG scale: 2, Seed: 7, "
        "Size: 64x64, Model: tiny-sd1, "
        f'Concepts: "Rex the dog:0.8:{checksum}", Concepts act: plain, '
        f'Hashes: {{"atom:Rex the dog": "{checksum}"}}, Version: atomdiff'
    )
    redrawn = draw(base, "a sks dog", concepts=[concept], acting="gated", **QUICK)[0]
    said = infotext.parse(redrawn.info["parameters"])
    assert said.fields["Concepts act"] == "gated" and len(said.concepts) == 1
    for suffix in (".png", ".jpg", ".webp"):
        path = sheets.save_picture(image, tmp_path / f"new/dog{suffix}", image.info["parameters"] + " 🐕")
        with Image.open(path) as opened:
            opened.load()
            if suffix == ".png":
                assert opened.info["parameters"] == image.info["parameters"] + " 🐕"
            else:
                comment = opened.getexif().get_ifd(0x8769)[0x9286]
                assert comment[8:].decode("utf-16-be") == image.info["parameters"] + " 🐕"


def test_the_concepts_checksum_is_that_of_its_file(base, tmp_path):
    import hashlib

    concept = concept_for(base)
    file = save_concept(concept, tmp_path / "dog.safetensors")
    assert sha256(concept) == hashlib.sha256(file.read_bytes()).hexdigest() == sha256(load_concept(file))


def test_pictures_that_cannot_be_written(tmp_path):
    image = Image.new("RGB", (8, 8))
    with pytest.raises(ImageError, match=r"written as \.png.*not '\.gif'"):
        sheets.save_picture(image, tmp_path / "x.gif")
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageError, match="cannot be written"):
        sheets.save_picture(image, tmp_path / "file" / "x.png")


def test_contact_sheets_enlarge_stamps_and_keep_large_pictures():
    small, large = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (256, 128), "blue")
    sheet = sheets.contact_sheet([("before", [small, small]), ("after " * 100, [small, small])])
    assert sheet.width == 3 * sheets.GAP + 2 * 192
    assert sheet.getpixel((sheets.GAP + 96, sheet.height - sheets.GAP - 96)) == (255, 0, 0)
    assert sheets.contact_sheet([("", [large])]).size == (256 + 2 * sheets.GAP, 128 + 2 * sheets.GAP)
    assert sheets.grid([small] * 8).size == (4 * sheets.GAP + 3 * 192, 4 * sheets.GAP + 3 * 192)
    with pytest.raises(ImageError, match="at least one picture"):
        sheets.contact_sheet([("empty", [])])


def test_the_five_lines_of_python_are_there(tmp_path: Path):
    import atomdiff

    assert atomdiff.draw is draw
    assert atomdiff.Concept is Concept
    assert {"train", "load_base", "AtomSpec"} <= set(dir(atomdiff))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = atomdiff.nothing


def test_several_prompts_are_drawn_in_turn(base):
    together = draw(base, ["a dog", "a cat"], count=2, seed=5, steps=2, size=64, batch_size=3)
    alone = [
        draw(base, p, seed=5 + i, steps=2, size=64)[0] for i, p in enumerate(["a dog"] * 2 + ["a cat"] * 2)
    ]
    assert [image.info["parameters"] for image in together] == [image.info["parameters"] for image in alone]
    for a, b in zip(together, alone, strict=True):
        assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 2  # batching rounds differently
