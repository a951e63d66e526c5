"""A concept: packing, binding to a model, what it weighs, and which bases it accepts."""

from __future__ import annotations

import subprocess
import sys

import pytest
import tiny_models
import torch
from torch import nn

from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import BasePassport, passport_of
from atomdiff.core import inject
from atomdiff.core.inject import AtomSpec
from atomdiff.errors import ConceptError
from atomdiff.files.safetensors_file import load_concept, save_concept, size_report
from benchmarks.shapes import SHAPES, empty_unet

PASSPORT = BasePassport("sd1-1a2b3c4d", (0.5,) * 16, "sd15")


def trained(model: nn.Module, spec: AtomSpec, seed: int = 0, scale: float = 0.05) -> dict[str, torch.Tensor]:
    """Random atoms for every layer that `spec` selects."""
    generator = torch.Generator().manual_seed(seed)
    attached = inject.attach(model, spec)
    shapes = {name: atoms.shape for name, atoms in attached.named_atoms().items()}
    attached.detach()
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def small_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 5), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(4, 4)
        )


SPECS = [
    AtomSpec(),
    AtomSpec(num_atoms=4, linear_atoms="none"),
    AtomSpec(num_atoms=0, linear_atoms="attn2_kv", linear_block=2),
    AtomSpec(num_atoms=5, basis="svd", linear_atoms="none"),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_atoms_come_back_by_layer(spec):
    unet = tiny_models.unet()
    atoms = trained(unet, spec)
    concept = Concept.of(unet, spec, atoms, PASSPORT, trigger="sks", class_word="dog")
    bound = concept.bind(unet)
    assert bound.keys() == atoms.keys()
    assert all(torch.equal(bound[name], values) for name, values in atoms.items())
    assert concept.num_parameters() == sum(values.numel() for values in atoms.values())


def test_packing_an_attached_model_gives_the_same_concept():
    unet = tiny_models.unet()
    attached = inject.attach(unet, AtomSpec())
    for index, parameter in enumerate(attached.parameters()):
        parameter.data.fill_(index / 100)
    concept = Concept.of(unet, AtomSpec(), attached.read(), PASSPORT)
    deltas = {name: layer.delta_weight() for name, layer in attached.layers.items()}
    attached.detach()
    functions = concept.deltas(unet)
    for name, delta in deltas.items():
        torch.testing.assert_close(functions[name](unet.get_submodule(name).weight), delta)


def test_kernels_of_several_sizes_are_packed_apart():
    net, spec = small_net(), AtomSpec(num_atoms=12, linear_atoms="all", linear_block=2)
    atoms = trained(net, spec)
    concept = Concept.of(net, spec, atoms, PASSPORT)
    assert {key: tuple(value.shape) for key, value in concept.atoms.items()} == {
        "conv.3x3": (1, 9, 9),
        "conv.5x5": (1, 12, 25),
        "linear": (2, 4, 4),
    }
    assert all(torch.equal(concept.bind(net)[name], values) for name, values in atoms.items())


def test_full_rank_svd_is_kept_as_dct_and_means_the_same():
    unet, spec = tiny_models.unet(), AtomSpec(basis="svd", linear_atoms="none")
    atoms = trained(unet, spec)
    concept = Concept.of(unet, spec, atoms, PASSPORT)
    assert concept.spec.basis == "dct"
    assert not concept.bases
    expected = inject.delta_functions(unet, spec, atoms)
    for name, delta in concept.deltas(unet).items():
        weight = unet.get_submodule(name).weight
        torch.testing.assert_close(delta(weight), expected[name](weight), rtol=1e-4, atol=1e-6)


def test_a_data_driven_subspace_is_kept_with_the_concept():
    unet, spec = tiny_models.unet(), AtomSpec(num_atoms=3, basis="svd", linear_atoms="none")
    atoms = trained(unet, spec)
    concept = Concept.of(unet, spec, atoms, PASSPORT)
    expected = {
        n: d(unet.get_submodule(n).weight) for n, d in inject.delta_functions(unet, spec, atoms).items()
    }
    cousin = tiny_models.unet(seed=0)
    cousin.conv_in.weight.mul_(torch.linspace(0.5, 2, 9).view(3, 3))  # its own svd basis would be another
    moved = concept.deltas(cousin)["conv_in"](unet.conv_in.weight)
    torch.testing.assert_close(moved, expected["conv_in"])


def test_other_models_are_refused_by_their_layers():
    unet, spec = tiny_models.unet("sd1"), AtomSpec()
    concept = Concept.of(unet, spec, trained(unet, spec), PASSPORT, name="dog")
    for other in (tiny_models.unet("sdxl"), small_net(), nn.Linear(2, 2)):
        with pytest.raises(
            ConceptError, match=r"'dog' belongs to \d+ layers of 'sd15' .* this model has others"
        ):
            concept.bind(other)


def test_bases_are_judged_by_their_passport():
    unet = tiny_models.unet("sd1")
    passport = passport_of(unet, "sd1", "mine")
    concept = Concept.of(unet, AtomSpec(), trained(unet, AtomSpec()), passport, name="dog")
    assert concept.check_base(passport) == ""
    for weight in unet.parameters():
        weight.add_(
            0.05 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        )
    warning = concept.check_base(passport_of(unet, "sd1", "finetuned"))
    assert "'finetuned'" in warning
    assert "% away" in warning
    with pytest.raises(ConceptError, match=r"'dog' was made for 'mine' \(sd1-\w+\).* 'xl' \(sdxl-\w+\)"):
        concept.check_base(passport_of(tiny_models.unet("sdxl"), "sdxl", "xl"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"atoms": {"conv": torch.full((2, 9, 9), float("nan"))}}, "NaN or infinity"),
        ({"atoms": {"conv": torch.zeros(2, 8, 9)}}, "contradicts"),
        ({"atoms": {"conv": torch.zeros(9, 9)}}, "three dimensions"),
        ({"atoms": {"linear": torch.zeros(2, 4, 4)}}, "contradicts"),
        ({"atoms": {}}, "contradicts"),
        ({"spec": AtomSpec(basis="svd", linear_atoms="none")}, "contradicts"),
        ({"bases": {"conv": torch.zeros(2, 9, 9)}}, "contradicts"),
        ({"trigger": "sks\x1b[31m"}, "control characters"),
        ({"name": "x" * 2000}, "2000 characters long"),
        ({"training": {"loss": float("inf")}}, "finite numbers"),
        ({"training": {"settings": [1]}}, "finite numbers"),
    ],
)
def test_contradictions_are_refused_where_a_concept_is_made(change, message):
    sound = {
        "atoms": {"conv": torch.zeros(2, 9, 9)},
        "layers": "00000000",
        "spec": AtomSpec(linear_atoms="none"),
        "base": PASSPORT,
    }
    Concept(**sound)
    with pytest.raises(ConceptError, match=message):
        Concept(**(sound | change))


def test_atoms_of_another_spec_are_refused():
    unet = tiny_models.unet()
    atoms = trained(unet, AtomSpec(linear_atoms="none"))
    with pytest.raises(ConceptError, match="pack with the spec that was trained"):
        Concept.of(unet, AtomSpec(), atoms, PASSPORT)


@pytest.mark.parametrize(("kind", "layers", "limit"), [("sd15", 52, 9000), ("sdxl", 40, 7100)])
def test_conv_concepts_of_real_models_fit_into_a_few_kilobytes(tmp_path, kind, layers, limit):
    unet, spec = empty_unet(SHAPES[kind]), AtomSpec(linear_atoms="none")
    atoms = {name: torch.rand(9, 9) for name in inject.select(unet, spec).conv}
    assert len(atoms) == layers
    concept = Concept.of(
        unet,
        spec,
        atoms,
        BasePassport("sd1-1a2b3c4d", (0.1,) * 16, "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        trigger="sks",
        class_word="dog",
        name="dog",
        training={
            "steps": 300,
            "learning_rate": 0.0015,
            "linear_learning_rate": 0.0005,
            "pictures": 5,
            "class_pictures": 100,
            "resolution": 512,
            "seed": 0,
            "instance_prompt": "a sks dog",
            "class_prompt": "a dog",
        },
    )
    file = save_concept(concept, tmp_path / "dog.safetensors")
    assert file.stat().st_size <= limit
    report = size_report(file.read_bytes())
    assert sum(report.values()) == file.stat().st_size
    assert report["conv atoms"] == layers * 81 * 2
    assert torch.equal(load_concept(file).bind(unet)["conv_in"], atoms["conv_in"].half().float())


def test_importing_concepts_does_not_import_diffusers():
    code = "import sys, atomdiff.concept.concept, atomdiff.files.safetensors_file; "
    code += "print('diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
