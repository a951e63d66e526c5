"""Four precisions: how many bytes, how near, and the same bytes when quantised again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_files import concept

from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import BasePassport
from atomdiff.core import inject, subspace
from atomdiff.core.inject import AtomSpec
from atomdiff.errors import ConceptError
from atomdiff.files import quantization
from atomdiff.files.header import parse_header
from atomdiff.files.safetensors_file import from_bytes, load_concept, save_concept, size_report, to_bytes
from benchmarks.shapes import SD15, empty_unet

QUANTISED = ("int8", "int4")


@pytest.mark.parametrize(("dtype", "limit"), [("fp16", 9000), ("int8", 5200), ("int4", 3000)])
def test_a_concept_of_stable_diffusion_keeps_to_its_size(tmp_path, dtype, limit):
    unet, spec = empty_unet(SD15), AtomSpec(linear_atoms="none")
    generator = torch.Generator().manual_seed(0)
    atoms = {name: torch.randn(9, 9, generator=generator) for name in inject.select(unet, spec).conv}
    base = BasePassport("sd1-1a2b3c4d", (0.1,) * 16, "stable-diffusion-v1-5/stable-diffusion-v1-5")
    training = {
        "steps": 600,
        "learning_rate": 0.0015,
        "pictures": 5,
        "class_pictures": 100,
        "resolution": 512,
    }
    training |= {"seed": 0, "instance_prompt": "a sks dog", "class_prompt": "a dog"}
    made = Concept.of(
        unet, spec, atoms, base, trigger="sks", class_word="dog", name="my dog", training=training
    )
    file = save_concept(made, tmp_path / "dog.safetensors", dtype)
    assert file.stat().st_size <= limit
    report = size_report(file.read_bytes())
    assert sum(report.values()) == file.stat().st_size
    width = {"fp16": 2, "int8": 1, "int4": 0.5}[dtype]
    assert report["conv atoms"] == 52 * 81 * width
    assert report["scales"] == (52 * 2 if dtype in QUANTISED else 0)
    again = load_concept(file).bind(unet)["conv_in"]
    tolerance = {"fp16": 1e-3, "int8": 0.02, "int4": 0.2}[dtype]
    assert torch.linalg.norm(again - atoms["conv_in"]) < tolerance * torch.linalg.norm(atoms["conv_in"])


@pytest.mark.parametrize("dtype", quantization.PRECISIONS)
def test_quantising_again_gives_the_same_bytes(dtype):
    data = to_bytes(concept(), dtype)
    assert to_bytes(from_bytes(data), dtype) == data
    assert quantization.of(parse_header(data)[1]) == dtype


@pytest.mark.parametrize("dtype", quantization.PRECISIONS)
def test_a_stored_basis_survives_in_every_precision(dtype):
    generator = torch.Generator().manual_seed(1)
    spec = AtomSpec(num_atoms=3, basis="svd", linear_atoms="none")
    atoms, basis = (torch.randn(3, 3, 9, generator=generator) for _ in range(2))
    data = to_bytes(concept(spec=spec, atoms={"conv": atoms}, bases={"conv": basis}), dtype)
    again = from_bytes(data)
    assert to_bytes(again, dtype) == data
    assert torch.linalg.norm(again.bases["conv"] - basis) < 0.02 * torch.linalg.norm(basis)
    kinds = {entry.name: entry.dtype for entry in parse_header(data)[1]}
    if dtype == "int4":
        assert kinds == {"conv": "U8", "conv.scale": "F16", "basis": "I8", "basis.scale": "F16"}


def test_kernels_of_several_sizes_and_odd_counts_survive():
    atoms = {
        "conv.1x3": torch.randn(3, 3, 3),
        "conv.3x3": torch.randn(1, 9, 9),
        "conv.5x5": torch.randn(2, 25, 25),
    }
    many = concept(spec=AtomSpec(num_atoms=25, linear_atoms="none"), atoms=atoms)
    for dtype in quantization.PRECISIONS:
        data = to_bytes(many, dtype)
        assert to_bytes(from_bytes(data), dtype) == data


numbers = arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.sampled_from([1, 3, 4, 9, 16])),
    elements=st.floats(-1e4, 1e4, width=32),
)


@settings(max_examples=300)
@given(numbers, st.integers(-60, 0), st.sampled_from(QUANTISED), st.sampled_from(["conv", "linear"]))
def test_any_numbers_are_quantised_once_and_for_all(given_numbers, exponent, dtype, name):
    values = (given_numbers * 2.0**exponent).astype(np.float32)
    scales, whole = quantization.quantise(name, values, dtype)
    assert np.abs(whole).max() <= quantization.LARGEST[dtype]
    read = scales.astype(np.float32)[:, None, None] * whole.astype(np.float32)
    again_scales, again = quantization.quantise(name, read, dtype)
    assert again_scales.tobytes() == scales.tobytes()
    assert again.tobytes() == whole.tobytes()


@settings(max_examples=100)
@given(
    arrays(
        np.int8,
        st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
        elements=st.integers(-7, 7),
    )
)
def test_two_numbers_fit_into_a_byte(whole):
    packed = quantization.pack(whole)
    assert len(packed) == (whole.size + 1) // 2
    assert np.array_equal(quantization.unpack(packed, whole.shape), whole)


@pytest.mark.parametrize(
    ("packed", "shape"), [(b"\x08", (1, 1, 2)), (b"\x10", (1, 1, 1)), (b"\0\0", (1, 1, 2))]
)
def test_packed_numbers_that_were_altered_are_refused(packed, shape):
    with pytest.raises(ConceptError, match="not packed as they must be"):
        quantization.unpack(packed, shape)


def test_a_layer_of_zeros_and_very_small_numbers():
    zeros = np.zeros((1, 9, 9), np.float32)
    scales, whole = quantization.quantise("conv", zeros, "int8")
    assert scales.tolist() == [0]
    assert not whole.any()
    small = np.full((1, 9, 9), 1e-6, np.float32)
    read = np.multiply(*quantization.quantise("conv", small, "int8")[::-1], dtype=np.float32)
    assert np.abs(read - small).max() < 2.0**-23


def smooth_fields(generator: torch.Generator) -> torch.Tensor:
    """Fields (1, 16, 32, 32) whose amplitudes fall as 1/frequency, as those of pictures do."""
    frequency = torch.fft.fftfreq(32)
    radius = torch.sqrt(frequency[:, None] ** 2 + frequency**2).clamp(min=1 / 32)
    fields = torch.fft.ifft2(torch.fft.fft2(torch.randn(16, 32, 32, generator=generator)) / radius).real
    return (fields / fields.std((1, 2), keepdim=True))[None]


@pytest.mark.parametrize("dtype", QUANTISED)
def test_error_feedback_helps_where_inputs_are_smooth(dtype, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    basis = subspace.dct_basis((3, 3), 9)
    totals = {}
    cases = [
        (
            smooth_fields(generator),
            torch.randn(24, 16, 3, 3, generator=generator),
            torch.randn(1, 9, 9, generator=generator),
        )
        for _ in range(12)
    ]
    for name in ("conv", "linear"):  # the latter without feedback
        errors = []
        for fields, weight, atoms in cases:
            scales, whole = quantization.quantise(name, atoms.numpy(), dtype)
            read = torch.from_numpy(scales.astype(np.float32)[:, None, None] * whole)
            deltas = [
                subspace.apply_spatial_map(weight, subspace.spatial_map(basis, a))
                for a in (atoms[0], (read - atoms)[0])
            ]
            wanted, wrong = (torch.nn.functional.conv2d(fields, delta) for delta in deltas)
            errors.append(float(wrong.norm() / wanted.norm()))
        totals[name] = np.mean(errors)
    assert totals["conv"] < 0.85 * totals["linear"]


@pytest.mark.parametrize(
    ("max_bytes", "expected"), [(10**6, "fp32"), (3000, "fp16"), (1700, "int8"), (1400, "int4")]
)
def test_max_bytes_takes_the_best_that_fits(tmp_path, max_bytes, expected):
    file = save_concept(concept(), tmp_path / "x.safetensors", "fp32", max_bytes=max_bytes)
    assert file.stat().st_size <= max_bytes
    assert file.read_bytes() == to_bytes(concept(), expected)


def test_max_bytes_starts_from_the_precision_asked_for():
    assert to_bytes(concept(), "int8", max_bytes=10**6) == to_bytes(concept(), "int8")


def test_max_bytes_that_nothing_fits():
    with pytest.raises(
        ConceptError, match=r"'my dog' takes 1,\d\d\d bytes in its smallest form, more than the 500"
    ):
        to_bytes(concept(), "fp32", max_bytes=500)


def test_numbers_beyond_fp16_fit_int8_but_not_beyond_its_scale():
    for value, fits in ((1e5, True), (1e7, False)):
        large = concept(atoms={"conv": torch.full((1, 9, 9), value)}, spec=AtomSpec(linear_atoms="none"))
        for dtype in QUANTISED:
            if fits:
                again = from_bytes(to_bytes(large, dtype)).atoms["conv"]
                assert torch.allclose(again, large.atoms["conv"], rtol=1e-3)
            else:
                with pytest.raises(ConceptError, match="save as fp32"):
                    to_bytes(large, dtype)
