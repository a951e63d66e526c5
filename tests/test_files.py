"""The concept file: the same bytes for the same content, and no harm from anybody's bytes."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from hostile.concept_files import join, parts
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from atomdiff.concept.concept import Concept
from atomdiff.concept.passport import BasePassport
from atomdiff.core.inject import AtomSpec
from atomdiff.errors import AtomdiffError, ConceptError, SettingsError
from atomdiff.files.quantization import PRECISIONS
from atomdiff.files.safetensors_file import from_bytes, load_concept, save_concept, sha256, to_bytes


def concept(**changes) -> Concept:
    generator = torch.Generator().manual_seed(0)
    values = {
        "atoms": {
            "linear": 0.1 * torch.randn(3, 16, 16, generator=generator),
            "conv": 0.1 * torch.randn(2, 9, 9, generator=generator),
        },
        "layers": "0badcafe",
        "spec": AtomSpec(),
        "base": BasePassport("sd1-1a2b3c4d", tuple(i / 10 for i in range(16)), "sd15"),
        "trigger": "sks",
        "class_word": "dog",
        "name": "my dog",
        "training": {"steps": 300, "learning_rate": 0.001, "prompt": "a sks dog & co = 5%", "seed": "0"},
    }
    return Concept(**(values | changes))


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_concept_keeps_to_the_file_it_came_from(tmp_path, dtype):
    file = save_concept(concept(), tmp_path / "a.safetensors", dtype)
    again = load_concept(file)
    assert again.precision == dtype
    assert sha256(again) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert save_concept(again, tmp_path / "b.safetensors").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_save_load_save_gives_the_same_bytes(tmp_path, dtype):
    first = save_concept(concept(), tmp_path / "a.safetensors", dtype)
    again = load_concept(first)
    second = save_concept(again, tmp_path / "b.safetensors", dtype)
    assert first.read_bytes() == second.read_bytes()
    assert again.training == concept().training
    assert (again.base, again.base.name, again.spec, again.layers) == (
        concept().base,
        "sd15",
        AtomSpec(),
        "0badcafe",
    )
    assert (again.trigger, again.class_word, again.name) == ("sks", "dog", "my dog")
    for key, values in concept().atoms.items():
        expected = values.half().float() if dtype == "fp16" else values
        assert torch.equal(again.atoms[key], expected)


def test_header_order_is_fixed_and_the_library_can_read_the_file(tmp_path):
    from safetensors import safe_open

    data = to_bytes(concept(extra={"zeta": "1", "alpha": "2"}))
    header, _ = parts(data)
    assert list(header) == ["__metadata__", "conv", "linear"]
    assert list(header["__metadata__"]) == [
        "format", "name", "trigger", "class_word", "base", "base_name", "base_sketch", "spec", "layers",
        "training", "alpha", "zeta",
    ]  # fmt: skip
    assert header["__metadata__"]["format"] == "atomdiff/1"
    assert header["__metadata__"]["spec"] == "num_atoms=9&basis=dct&linear_atoms=attn2&linear_block=4"
    (tmp_path / "x.safetensors").write_bytes(data)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("conv").float(), from_bytes(data).atoms["conv"])


def test_equal_content_gives_equal_bytes_however_it_was_put_together():
    swapped = concept(atoms=dict(reversed(list(concept().atoms.items()))))
    assert to_bytes(swapped) == to_bytes(concept())


def test_unknown_metadata_is_kept():
    again = from_bytes(to_bytes(concept(extra={"modelspec.license": "CC0", "emoji": "🐕"})))
    assert again.extra == {"modelspec.license": "CC0", "emoji": "🐕"}


def test_patterns_with_odd_letters_survive():
    spec = AtomSpec(
        conv_layers=r"^(down|up)_blocks\.\d.*conv[12]$", linear_atoms=r"attn2\.to_(k|v) & +%", linear_block=4
    )
    assert from_bytes(to_bytes(concept(spec=spec))).spec == spec


def test_a_stored_basis_comes_back():
    spec = AtomSpec(num_atoms=2, basis="svd", linear_atoms="none")
    basis = torch.rand(3, 2, 9).half().float()
    made = concept(spec=spec, atoms={"conv": torch.ones(3, 2, 9)}, bases={"conv": basis})
    assert torch.equal(from_bytes(to_bytes(made)).bases["conv"], basis)


@settings(max_examples=20)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=20),
        st.one_of(
            st.integers(-(10**12), 10**12),
            st.floats(allow_nan=False, allow_infinity=False),
            st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=30),
        ),
        max_size=5,
    )
)
def test_any_training_summary_survives(training):
    again = from_bytes(to_bytes(concept(training=training))).training
    assert list(again.items()) == list(training.items())
    assert [type(value) for value in again.values()] == [type(value) for value in training.values()]


def test_files_honour_the_umask_and_replace_whole(tmp_path):
    path = tmp_path / "new" / "dog.safetensors"
    old = os.umask(0o027)
    try:
        save_concept(concept(), path)
    finally:
        os.umask(old)
    if sys.platform != "win32":
        assert path.stat().st_mode & 0o777 == 0o640
    save_concept(concept(name="other"), path)
    assert load_concept(path).name == "other"
    assert [file.name for file in path.parent.iterdir()] == ["dog.safetensors"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_concept(concept(), tmp_path / "dog.safetensors")
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ConceptError, match=r"No space left.*free some space"):
        save_concept(concept(name="other"), path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_numbers_too_large_for_fp16_are_refused_but_fit_fp32():
    large = concept(atoms={"conv": torch.full((1, 9, 9), 1e5)}, spec=AtomSpec(linear_atoms="none"))
    with pytest.raises(ConceptError, match="save as fp32"):
        to_bytes(large)
    assert from_bytes(to_bytes(large, "fp32")).atoms["conv"].max() == 1e5
    with pytest.raises(SettingsError, match="fp32, fp16, int8 or int4, not 'int3'"):
        to_bytes(large, "int3")


@pytest.mark.parametrize("pattern", ["(a+)+$", "(conv|x)*y", r"(a)\1", "a*b*c*d*e*", "x" * 2000])
def test_patterns_that_no_reader_would_run_are_not_written(pattern):
    with pytest.raises(SettingsError, match="could take for ever"):
        to_bytes(concept(spec=AtomSpec(conv_layers=pattern)))


@cache
def hostile_files() -> dict[str, tuple[bytes, str]]:
    good = to_bytes(concept())
    header, data = parts(good)

    def tensor(**changes) -> bytes:
        return join(header | {"conv": header["conv"] | changes}, data)

    def meta(**changes) -> bytes:
        return join(header | {"__metadata__": header["__metadata__"] | changes}, data)

    text = json.dumps(header)
    twice = text[:-1] + ', "linear": ' + json.dumps(header["linear"]) + "}"
    conv_bytes = header["conv"]["data_offsets"][1]
    nan, infinite = (struct.pack("<e", value) + data[2:] for value in (float("nan"), float("inf")))
    zeros = {"dtype": "F16", "shape": [0], "data_offsets": [len(data), len(data)]}
    lacking = {key: value for key, value in header["__metadata__"].items() if key != "layers"}
    return {
        "empty": (b"", "cut off or empty"),
        "header cut": (good[:100], "ends within its header"),
        "data cut": (good[:-3], "ends before its last number"),
        "trailing bytes": (good + b"\0" * 10, "belong to no tensor"),
        "not safetensors": (b"PK\x03\x04" * 100, "over 1 MiB"),
        "huge header": (struct.pack("<Q", 2**20 + 1) + b" " * 100, "over 1 MiB"),
        "not JSON": (join("{nope", data), "not JSON"),
        "not UTF-8": (struct.pack("<Q", 8) + b"\xff" * 8, "not JSON"),
        "deep JSON": (join("[" * 100_000, b""), "not JSON"),
        "endless number": (join('{"a": ' + "9" * 10_000 + "}", b""), "not JSON"),
        "JSON NaN": (join('{"a": NaN}', b""), "not JSON"),
        "a list": (join("[]", b""), "wrong form"),
        "metadata not text": (join({"__metadata__": {"format": 1}}, b""), "wrong form"),
        "duplicate tensor": (join(twice, data), "names something twice"),
        "duplicate metadata": (join(text.replace('"name"', '"trigger"', 1), data), "names something twice"),
        "NaN": (join(header, nan), "NaN or infinity"),
        "infinity": (join(header, infinite), "NaN or infinity"),
        "next version": (meta(format="atomdiff/2"), "newer than this version"),
        "no version": (meta(format="pt"), "not an atomdiff concept"),
        "huge shape": (tensor(shape=[2**62, 9, 9]), "cannot be right"),
        "empty shape": (tensor(shape=[2**62, 0, 9]), "cannot be right"),
        "5000 dimensions": (tensor(shape=[1] * 5000), "cannot be right"),
        "negative shape": (tensor(shape=[-2, -9, 9]), "cannot be right"),
        "boolean shape": (tensor(shape=[True, 9, 9]), "cannot be right"),
        "unknown dtype": (tensor(dtype="F4"), "cannot be right"),
        "dtype is a list": (tensor(dtype=["F16"]), "cannot be right"),
        "no shape": (join(header | {"conv": {"dtype": "F16"}}, data), "cannot be right"),
        "other shape": (tensor(shape=[9, 2, 9]), "contradicts"),
        "integers": (tensor(dtype="I16"), "does not know"),
        "overlap": (tensor(data_offsets=[2, conv_bytes + 2]), "does not follow"),
        "gap": (
            join(header, b"\0\0" + data).replace(b'"data_offsets": [0,', b'"data_offsets": [2,'),
            "cannot be right",
        ),
        "many tensors": (join(header | {f"t{i}": zeros for i in range(2000)}, data), "too many"),
        "unknown tensor": (
            join(
                {"__metadata__": header["__metadata__"], "conv": header["conv"], "linear2": header["linear"]},
                data,
            ),
            "does not know: update atomdiff",
        ),
        "lacks layers": (join(header | {"__metadata__": lacking}, data), "lacks layers"),
        "wrong digest": (meta(layers="../../etc"), "8 hex digits"),
        "wrong base": (meta(base="<script>"), "never writes"),
        "base is a path": (meta(base_name="../../secret"), "never writes"),
        "wrong sketch": (meta(base_sketch="AAAA"), "fingerprint"),
        "unknown spec": (meta(spec="num_atoms=9&rank=4"), "'rank' that is unknown"),
        "wrong spec": (meta(spec="num_atoms=-1"), "cannot be right"),
        "spec is noise": (meta(spec="%%%"), "cannot be read"),
        "slow pattern": (meta(spec="num_atoms=9&conv_layers=(a%2B)%2B$"), "take for ever"),
        "terminal escape": (meta(name="\x1b]0;owned\x07"), "control characters"),
        "lone surrogate": (join(text.replace("my dog", "\\ud800"), data), "control characters"),
    }


@pytest.mark.parametrize("kind", list(hostile_files()))
def test_hostile_files_give_one_sentence(kind, tmp_path):
    data, message = hostile_files()[kind]
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    for read in (lambda: from_bytes(data), lambda: load_concept(path)):
        with pytest.raises(ConceptError, match=message) as caught:
            read()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lora_unet_mid_block_attn.lora_up.weight", "a LoRA"),
        ("model.diffusion_model.out.0.weight", "a whole checkpoint"),
        ("emb_params", "a textual-inversion embedding"),
        ("down_blocks.0.resnets.0.conv1.weight", "the weights of a model"),
        ("whatever", "another kind of safetensors file"),
    ],
)
def test_foreign_files_are_named(tmp_path, name, kind):
    save_file({name: torch.zeros(4)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConceptError, match=f"This is {kind}.*not an atomdiff concept"):
        load_concept(tmp_path / "x.safetensors")


def test_a_large_foreign_file_is_not_read(tmp_path):
    path = tmp_path / "big.safetensors"
    header = save({"model.diffusion_model.x": torch.zeros(1)})[8:-4]
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(2**33)  # sparse
    with pytest.raises(ConceptError, match="whole checkpoint"):
        load_concept(path)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(ConceptError, match="No such file"):
        load_concept(tmp_path / "none.safetensors")
    with pytest.raises(ConceptError, match="cannot be read"):
        load_concept(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConceptError, match="cannot be written"):
        save_concept(concept(), Path(tmp_path / "file" / "x.safetensors"))


@settings(max_examples=60)
@given(st.data())
def test_flipped_bytes_never_crash(data):
    good = bytearray(to_bytes(concept()))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, 900))] = data.draw(st.integers(0, 255))
    try:
        from_bytes(bytes(good))
    except AtomdiffError as error:
        assert isinstance(error, ConceptError)


# ------------------------------------------------------------------- docs/format.md, and a reader by it alone

PAGE = (Path(__file__).parent.parent / "docs" / "format.md").read_text("utf-8")


def vector(kind: str, precision: str) -> str:
    return PAGE.split(f"```{kind} {precision}\n")[1].split("```")[0]


def read_by_the_page(data: bytes) -> tuple[dict[str, str], dict[str, list[float]]]:
    """Metadata and flat numbers of a sound file, knowing nothing but the page."""
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__")
    raw = {
        name: data[8 + size :][slice(*about["data_offsets"])]
        for name, about in header.items()
    }  # fmt: skip
    found = {}
    for name, about in header.items():
        if name.endswith(".scale"):
            continue
        letter = {"F32": "f", "F16": "e", "I8": "b", "U8": "B"}[about["dtype"]]
        numbers = [number for (number,) in struct.iter_unpack("<" + letter, raw[name])]
        shape = about["shape"]
        if letter == "B":
            numbers = [((half ^ 8) - 8) for byte in numbers for half in (byte & 15, byte >> 4)]
            shape = [int(side) for side in dict(
                item.split("=") for item in metadata["int4"].split("&"))[name].split("x")]  # fmt: skip
            numbers = numbers[: shape[0] * shape[1] * shape[2]]
        if letter in "bB":
            scales = [scale for (scale,) in struct.iter_unpack("<e", raw[name + ".scale"])]
            numbers = [scales[i // (shape[1] * shape[2])] * number for i, number in enumerate(numbers)]
        found[name] = numbers
    return metadata, found


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_the_vectors_of_the_page(precision):
    data = bytes.fromhex(vector("hex", precision))
    said = json.loads(vector("json", precision))
    made = from_bytes(data)
    assert to_bytes(made, precision) == data
    assert {name: tensor.tolist() for name, tensor in made.atoms.items()} == said["tensors"]
    for field in ("name", "trigger", "class_word", "layers", "training", "extra"):
        assert getattr(made, field) == said[field]
    assert (made.base.architecture, made.base.name) == (said["base"], said["base_name"])
    for field in ("num_atoms", "linear_atoms", "linear_block"):
        assert getattr(made.spec, field) == said[field]
    metadata, numbers = read_by_the_page(data)
    assert metadata["trigger"] == said["trigger"]
    for name, nested in said["tensors"].items():
        assert numbers[name] == torch.tensor(nested).flatten().tolist()


def test_the_text_of_the_page():
    from atomdiff.files.text import from_text, to_text

    data = bytes.fromhex(vector("hex", "int4"))
    assert to_text(data) == vector("text", "int4").strip()
    assert from_text(vector("text", "int4")) == data


@cache
def hostile_quantised() -> dict[str, tuple[bytes, str]]:
    int8, int4 = (bytes.fromhex(vector("hex", kind)) for kind in ("int8", "int4"))
    header, data = parts(int8)
    packed, nibbles = parts(int4)

    def without(name: str) -> bytes:
        left = {key: value for key, value in packed.items() if key != name}
        return join(left, nibbles)

    def meta(text: str) -> bytes:
        return join(packed | {"__metadata__": packed["__metadata__"] | {"int4": text}}, nibbles)

    infinite, negative, zero = (struct.pack("<e", x) + data[2:] for x in (float("inf"), -1.0, -0.0))
    swapped = dict(reversed(list(header.items())))
    swapped["conv"] = header["conv"] | {"data_offsets": [0, 9]}
    swapped["conv.scale"] = header["conv.scale"] | {"data_offsets": [9, 11]}
    swapped["linear.scale"] = header["linear.scale"] | {"data_offsets": [11, 15]}
    return {
        "infinite scale": (join(header, infinite), "NaN, infinite or negative"),
        "negative scale": (join(header, negative), "NaN, infinite or negative"),
        "minus zero": (join(header, zero), "NaN, infinite or negative"),
        "-128": (join(header, data[:-1] + b"\x80"), "hold a -128"),
        "-8": (join(packed, nibbles[:-1] + b"\x08"), "not packed as they must be"),
        "padding not zero": (join(packed, nibbles[:8] + b"\xf0" + nibbles[9:]), "not packed as they must be"),
        "no shapes": (meta(""), "not of one of the precisions"),
        "odd shapes": (meta("conv=1x1x9&linear=1x4xfour"), "cannot be read"),
        "twice a shape": (meta("conv=1x1x9&conv=1x1x9"), "cannot be read"),
        "huge shapes": (meta("conv=1x999999x999999&linear=1x4x4"), "not packed as they must be"),
        "other shapes": (meta("conv=1x3x3&linear=1x4x4"), "contradicts"),
        "other layers": (meta("conv=2x1x9&linear=1x4x4"), "not of one of the precisions"),
        "too many shapes": (meta("conv=1x1x9&linear=1x4x4&basis=1x1x1"), "not of one of the precisions"),
        "scale is gone": (without("linear"), "cannot be|belong to no tensor"),
        "shapes in int8": (
            join(header | {"__metadata__": header["__metadata__"] | {"int4": "conv=1x1x9"}}, data),
            "not of one of the precisions",
        ),
        "scale of nothing": (
            join({"__metadata__": header["__metadata__"], "conv.scale": header["conv.scale"]}, data[:2]),
            "not of one of the precisions",
        ),
        "other order": (join(swapped, data), "canonical order"),
    }


@pytest.mark.parametrize("kind", list(hostile_quantised()))
def test_hostile_quantised_files_give_one_sentence(kind):
    data, message = hostile_quantised()[kind]
    with pytest.raises(ConceptError, match=message) as caught:
        from_bytes(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@settings(max_examples=100)
@given(st.data())
def test_flipped_bytes_of_quantised_files_never_crash(data):
    good = bytearray.fromhex(vector("hex", data.draw(st.sampled_from(["int8", "int4"]))))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        from_bytes(bytes(good))
    except AtomdiffError as error:
        assert isinstance(error, ConceptError)
