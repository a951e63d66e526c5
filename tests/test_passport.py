"""Which base a concept meets: the very one in any precision, a fine-tune, or another architecture."""

from __future__ import annotations

import copy

import pytest
import tiny_models
import torch
from torch import nn

from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import BasePassport, Match, passport_of
from atomdiff.core.spec import AtomSpec
from atomdiff.errors import ConceptError


@pytest.fixture(scope="module")
def unet():
    return tiny_models.unet("sd1")


@pytest.fixture(scope="module")
def concept(unet):
    spec = AtomSpec(linear_atoms="none")
    atoms = {name: torch.zeros(9, 9) for name, m in unet.named_modules() if _spatial(m)}
    return Concept.of(unet, spec, atoms, passport_of(unet, "sd1", "mine"), trigger="sks", name="dog")


def _spatial(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)


def tuned(unet: nn.Module, steps: int, rate: float) -> nn.Module:
    """The weights after some real steps of gradient descent on a task."""
    made = copy.deepcopy(unet).requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(made.parameters(), rate)
    for _ in range(steps):
        loss = sum((p * torch.randn(p.shape, generator=generator)).sum() for p in made.parameters())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return made.requires_grad_(False)


def moved(before: nn.Module, after: nn.Module) -> float:
    """The relative change of the weights, layer by layer, root mean square."""
    kinds = (nn.Conv2d, nn.Linear)
    pairs = zip(before.modules(), after.modules(), strict=True)
    shares = [((b.weight - a.weight).norm() / a.weight.norm()) ** 2 for a, b in pairs if isinstance(a, kinds)]
    return float(torch.stack(shares).mean().sqrt())


def met(unet: nn.Module, concept: Concept, name: str) -> tuple[Match, str]:
    passport = passport_of(unet, "sd1", name)
    return concept.base.compare(passport), concept.check_base(passport)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("back", [False, True])
def test_a_copy_in_any_precision_is_the_same_base(unet, concept, dtype, back):
    cast = copy.deepcopy(unet).to(dtype)
    match, said = met(cast.float() if back else cast, concept, "copy")
    assert (match.kind, said) == ("same", "")
    assert match.distance < 2e-3


@pytest.mark.parametrize(("steps", "rate"), [(3, 1e-3), (30, 3e-3)])
def test_a_fine_tune_works_and_is_told_with_how_far(unet, concept, steps, rate):
    other = tuned(unet, steps, rate)
    match, said = met(other, concept, "tuned")
    share = moved(unet, other)
    assert match.kind == "cousin"
    assert share / 2.5 < match.distance < share * 2.5
    assert said.startswith("The concept 'dog' was made for 'mine' (sd1-")
    assert "'tuned' (sd1-" in said and f"{match.distance:.1%} away" in said
    assert concept.bind(other).keys() == concept.bind(unet).keys()


def test_light_and_heavy_fine_tunes_are_in_order(unet, concept):
    light, heavy = (met(tuned(unet, steps, 1e-3), concept, "x")[0].distance for steps in (2, 60))
    assert 4e-3 < light < heavy


def test_a_model_trained_apart_is_no_fine_tune(concept):
    match, said = met(tiny_models.unet("sd1", seed=5), concept, "apart")
    assert match.kind == "cousin" and match.distance > 0.5
    assert "hardly a fine-tune" in said and "'apart'" in said


@pytest.mark.parametrize("kind", ["sd2", "sdxl"])
def test_another_architecture_is_refused_naming_both(concept, kind):
    passport = passport_of(tiny_models.unet(kind), kind, "theirs")
    assert concept.base.compare(passport) == Match("other", float("inf"))
    with pytest.raises(
        ConceptError, match=r"'dog' was made for 'mine' \(sd1-\w{8}\).*'theirs' \(\w+-\w{8}\)"
    ) as caught:
        concept.check_base(passport)
    assert "\n" not in str(caught.value)


def test_a_passport_is_a_few_hundred_bytes_and_the_family_takes_no_part():
    passport = BasePassport("sd1-00c0ffee", tuple(i / 7 - 1 for i in range(16)), "sd15")
    assert len(passport.architecture + passport.sketch_text() + passport.name) < 100
    assert passport.compare(BasePassport("mine-00c0ffee", passport.sketch)).kind == "same"
