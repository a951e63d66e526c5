"""Pictures of different concepts in one batch: each as if drawn alone; concepts held ready, exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import atomdiff
from atomdiff.concept.concept import Concept
from atomdiff.core.inject import AtomSpec, attach, detach
from atomdiff.errors import ConceptError, SettingsError
from atomdiff.files.safetensors_file import from_bytes, to_bytes
from atomdiff.sampling.mixed import mixed_maps, mixer, read
from atomdiff.sampling.resident import Packed, Residents

SPECS = (
    AtomSpec(linear_atoms="attn2"),
    AtomSpec(num_atoms=6, linear_atoms="attn2_kv", linear_block=2),
    AtomSpec(linear_atoms="none", conv_family="recursive", channel_groups=2),
)


def concept_of(base, spec=SPECS[0], seed=0, size=0.05, trigger="sks", token=True) -> Concept:
    attached = attach(base.unet, spec)
    g = torch.Generator().manual_seed(seed)
    atoms = {name: size * torch.randn(a.shape, generator=g) for name, a in attached.read().items()}
    detach(base.unet)
    words = {}
    if token:
        from atomdiff.base.textual_inversion import TriggerToken

        words = {
            key: torch.randn(v.shape, generator=g) for key, v in TriggerToken(base, trigger).read().items()
        }
    made = Concept.of(base.unet, spec, atoms, base.passport, trigger=trigger, class_word="dog", token=words)
    return from_bytes(to_bytes(made, "int8"))


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_each_row_of_a_unet_is_as_if_alone(tiny_base, kind) -> None:
    """One call of the UNet for a batch, guided, equals calls with each row's concepts folded in."""
    base = tiny_base(kind)
    concepts = [concept_of(base, spec, seed) for seed, spec in enumerate(SPECS)]
    each = [
        [(concepts[0], 1.0)],
        [],
        [(concepts[1], 0.7), (concepts[0], {"down": 0.5})],
        [(concepts[2], 1.0)],
    ]
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 4, 8, 8, generator=g).repeat(2, 1, 1, 1)
    held = Residents(base)
    resident = [[(held.add(c), s) for c, s in own] for own in each]
    prompts = ["a sks dog", "a dog", "a sks", "sks"]
    with torch.no_grad(), mixer(base) as mixed:
        told = mixed.told(prompts, resident)
        hidden = torch.cat([told["negative_prompt_embeds"], told["prompt_embeds"]])
        more = _added(told, kind)
        both = [base.unet(latents, 500, hidden, added_cond_kwargs=more).sample for _ in range(2)]
    assert torch.equal(*both)
    for row, own in enumerate(each):
        deltas = [(c.deltas(base.unet), s) for c, s in own if not isinstance(s, dict)]
        deltas += [
            (part, s["down"] if name else 1.0)
            for c, s in own
            if isinstance(s, dict)
            for name, part in _halves(c.deltas(base.unet))
        ]
        alone = read(base, [prompts[row]], resident[row])[0].hidden
        torch.testing.assert_close(told["prompt_embeds"][row : row + 1], alone)
        rows = [row, row + 4]
        with torch.no_grad(), atomdiff.fold(base.unet, deltas):
            some = None if more is None else {key: value[rows] for key, value in more.items()}
            wanted = base.unet(latents[rows], 500, hidden[rows], added_cond_kwargs=some).sample
        error = (both[0][rows] - wanted).norm() / wanted.norm()
        assert error < 1e-5


def _added(told, kind):
    if kind != "sdxl":
        return None
    pooled = torch.cat([told["negative_pooled_prompt_embeds"], told["pooled_prompt_embeds"]])
    return {"text_embeds": pooled, "time_ids": torch.zeros(8, 6)}


def _halves(deltas):
    from atomdiff.core.blocks import block_of

    yield True, {name: d for name, d in deltas.items() if block_of(name) == "down"}
    yield False, {name: d for name, d in deltas.items() if block_of(name) != "down"}


def test_pictures_are_those_of_each_drawn_alone(tiny_base) -> None:
    base = tiny_base("sd1")
    one, two = concept_of(base, seed=1), concept_of(base, seed=2, trigger="ohw")
    prompts, each = ["a sks", "b", "an ohw and a sks"], [[one], [], [(two, 0.5), one]]
    made = atomdiff.draw(base, prompts, concepts=each, seed=5, steps=2, batch_size=2)
    for i, picture in enumerate(made):
        alone = atomdiff.draw(
            base, [prompts[i]], concepts=each[i], seed=5 + i, steps=2,
            acting="plain",
        )[0]  # fmt: skip
        assert np.abs(np.asarray(picture, np.int16) - np.asarray(alone, np.int16)).max() <= 1
        assert picture.info["parameters"] == alone.info["parameters"]


def test_words_are_those_of_the_rows_own_concepts(tiny_base) -> None:
    base = tiny_base("sd1")
    held = Residents(base)
    one, two = (held.add(concept_of(base, seed=seed)) for seed in (1, 2))
    with mixer(base) as mixed:
        told = mixed.told(["a sks"] * 3, [[(one, 1.0)], [(two, 1.0)], []])["prompt_embeds"]
    assert not torch.allclose(told[0], told[1]) and not torch.allclose(told[0], told[2])
    torch.testing.assert_close(told[2:], read(base, ["a sks"], [])[0].hidden)


@pytest.mark.parametrize("precision", ["int4", "int8", "fp16", "fp32"])
def test_a_resident_is_exact_and_small(tiny_base, precision) -> None:
    base = tiny_base("sd1")
    concept = from_bytes(to_bytes(concept_of(base), precision))
    held = Residents(base)
    resident = held.add(concept)
    assert held.add(replace(concept)) is resident and len(held.held) == 1
    wanted = concept.layer_maps(base.unet)
    made = resident.layer_maps()
    assert made.keys() == wanted.keys()
    for name, M in made.items():
        torch.testing.assert_close(M, wanted[name], rtol=1e-6, atol=1e-7)
    words = sum(v.numel() for v in concept.token.values())
    numbers = concept.num_parameters() - words
    each = {"int4": 1, "int8": 1, "fp16": 2, "fp32": 4}[precision]
    assert held.nbytes <= each * numbers + 4 * words + 4 * 200
    held.drop(resident)
    assert held.nbytes == 0


def test_numbers_that_are_not_of_their_precision_are_kept_whole() -> None:
    numbers = torch.randn(3, 9, 9)
    for precision in ("int4", "int8", "fp16", "fp32"):
        assert torch.equal(Packed.of(numbers, precision).read(), numbers)


def test_strengths_add_up_and_zero_is_none(tiny_base) -> None:
    base = tiny_base("sd1")
    held = Residents(base)
    one = held.add(concept_of(base, seed=1))
    assert mixed_maps([(one, 0.0)]) == {}
    name, M = next(iter(one.layer_maps().items()))
    torch.testing.assert_close(mixed_maps([(one, 0.5), (one, 0.25)])[name], 0.75 * M)


def test_refusals(tiny_base) -> None:
    base = tiny_base("sd1")
    concept = concept_of(base)
    with pytest.raises(SettingsError, match="as many lists as prompts"):
        atomdiff.draw(base, ["a", "b"], concepts=[[concept]], steps=1)
    with pytest.raises(SettingsError, match="as many lists as prompts"):
        atomdiff.draw(base, "a", concepts=[[concept]], steps=1)
    with pytest.raises(ConceptError):
        Residents(tiny_base("sd2")).add(concept)
    coef = concept_of(base, AtomSpec(coef_block=2), token=False)
    with pytest.raises(ConceptError, match="not a map"):
        Residents(base).add(coef)
