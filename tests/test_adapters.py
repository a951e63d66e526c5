"""LoRAs and textual inversions of others beside concepts, by the real loaders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_files import save_embedding, save_lora
from safetensors.torch import save_file
from tiny_concepts import concept
from typer.testing import CliRunner

import atomdiff
from atomdiff.cli import app
from atomdiff.errors import ConceptError, SettingsError
from atomdiff.files.safetensors_file import save_concept
from atomdiff.sampling import adapters, infotext
from atomdiff.sampling.settings import DrawingSettings

FAST: dict[str, Any] = {"steps": 2, "seed": 3, "sampler": "ddim"}


def state(base: Any) -> dict[str, Any]:
    """Everything that drawing with other people's files could leave changed."""
    parts = {name: getattr(base.pipe, name, None) for name in ("unet", "text_encoder", "text_encoder_2")}
    parts = {name: model for name, model in parts.items() if model is not None}
    held = {f"{name}.{key}": own for name, model in parts.items() for key, own in model.named_parameters()}
    return {
        "objects": {key: id(value) for key, value in held.items()},
        "bits": {key: value.detach().clone() for key, value in held.items()},
        "trained": {key: value.requires_grad for key, value in held.items()},
        "tokenizer": (id(base.pipe.tokenizer), len(base.pipe.tokenizer)),
        "size": [model.config.vocab_size for name, model in parts.items() if name != "unet"],
        "modules": [type(module) for model in parts.values() for module in model.modules()],
        "adapters": base.pipe.get_list_adapters(),
    }


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    bits = all(torch.equal(own, after["bits"][key]) for key, own in before["bits"].items())
    return bits and all(before[key] == after[key] for key in before if key != "bits")


def pixels(images: list[Any]) -> Any:
    return np.stack([np.asarray(image, np.int16) for image in images])


@pytest.fixture
def files(tiny_base: Callable[..., Any], tmp_path: Path) -> dict[str, Any]:
    base = tiny_base("sd1")
    lora, word = save_lora(base, tmp_path / "paint.safetensors"), tmp_path / "easy-word.safetensors"
    return {"loras": [(lora, 0.7)], "embeddings": [save_embedding(base, word)]}


def test_drawn_as_diffusers_draws_with_its_own_loaders(
    tiny_base: Callable[..., Any], files: dict[str, Any]
) -> None:
    base, prompt = tiny_base("sd1"), "a sks dog, easy-word"
    dog, before = concept(base), state(base)
    drawn = atomdiff.draw(base, prompt, concepts=[(dog, 0.5)], **files, **FAST)
    assert same(before, state(base))
    (lora, strength), embedding = files["loras"][0], files["embeddings"][0]
    pipe = tiny_base("sd1").pipe
    pipe.load_lora_weights(str(lora), adapter_name="paint")
    pipe.set_adapters("paint", strength)
    pipe.load_textual_inversion(str(embedding), token="<word>")
    atomdiff.load(pipe, dog, 0.5)
    wanted = pipe(
        "a sks dog, <word>", num_inference_steps=2, guidance_scale=7.5, height=64, width=64,
        generator=torch.Generator().manual_seed(3),
    ).images  # fmt: skip
    assert np.abs(pixels(drawn) - pixels(wanted)).max() <= 1
    for left_out in ({"loras": []}, {"embeddings": []}, {"concepts": []}):
        other = atomdiff.draw(base, prompt, **({"concepts": [(dog, 0.5)]} | files | left_out), **FAST)
        assert np.abs(pixels(other) - pixels(drawn)).max() > 1


@pytest.mark.parametrize("kind", ["pocket", "sdxl"])
def test_other_bases_are_as_before(tiny_base: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    base = atomdiff.load_base("pocket") if kind == "pocket" else tiny_base(kind)
    given: dict[str, Any] = {
        "loras": [(save_lora(base, tmp_path / f"{i}.safetensors", seed=i), 0.5 - i) for i in range(2)],
        "embeddings": [save_embedding(base, tmp_path / "word.safetensors")],
    }
    before, plain = state(base), pixels(atomdiff.draw(base, "a word", **FAST))
    for acting in ("plain", "gated"):
        made = atomdiff.draw(base, "a sks word", concepts=[concept(base)], acting=acting, **given, **FAST)
        assert same(before, state(base)) and not np.array_equal(pixels(made), plain)
    assert np.array_equal(plain, pixels(atomdiff.draw(base, "a word", **FAST)))


def test_the_text_of_a_picture_tells_them(tiny_base: Callable[..., Any], files: dict[str, Any]) -> None:
    """In A1111's form, also of a second pass and from a picture; and is read back."""
    base = tiny_base("sd1")
    (lora, _), embedding = files["loras"][0], files["embeddings"][0]
    start = atomdiff.draw(base, "a dog", **FAST)[0]
    for begun in ({}, {"hires": 1.5}, {"image": start}):
        text = atomdiff.draw(base, "a dog", negative="easy-word", **files, **begun, **FAST)[0].info[
            "parameters"
        ]
        assert text.startswith("a dog <lora:paint:0.7>\nNegative prompt: easy-word\n")
        read = DrawingSettings.of(infotext.parse(text))
        assert read.prompt == "a dog" and read.negative == "easy-word"
        assert [(used.name, strength) for used, strength in read.loras] == [("paint", 0.7)]
        assert [used.name for used in read.embeddings] == ["easy-word"]
        named = DrawingSettings("", loras=((lora, 0.7),), embeddings=(embedding,)).with_files_named()
        assert (read.loras, read.embeddings) == (named.loras, named.embeddings)
        assert f'Lora hashes: "paint: {named.loras[0][0].sha256}"' in text


def test_what_cannot_be_used_is_one_sentence(
    tiny_base: Callable[..., Any], files: dict[str, Any], tmp_path: Path
) -> None:
    base, other = tiny_base("sd1"), tiny_base("sdxl")
    (lora, _), embedding = files["loras"][0], files["embeddings"][0]
    cut, pickled, odd = (tmp_path / name for name in ("cut.safetensors", "old.pt", "odd.safetensors"))
    cut.write_bytes(lora.read_bytes()[:-100])
    pickled.write_bytes(b"\x80\x04")
    save_file({"a": torch.ones(3, 3, 3), "b": torch.ones(2)}, odd)
    nan = save_embedding(base, tmp_path / "nan.safetensors", fill=float("nan"))
    for given, kind, sentence in (
        ({"loras": [(cut, 1.0)]}, ConceptError, "broken or cut short"),
        ({"embeddings": [cut]}, ConceptError, "broken or cut short"),
        ({"loras": [(pickled, 1.0)]}, ConceptError, "may run programs"),
        ({"embeddings": [pickled]}, ConceptError, "may run programs"),
        ({"loras": [(tmp_path / "none.safetensors", 1.0)]}, ConceptError, "cannot be read"),
        ({"loras": [(odd, 1.0)]}, ConceptError, "does not fit|another base"),
        ({"embeddings": [odd]}, ConceptError, "has vectors of"),
        ({"embeddings": [nan]}, ConceptError, "not finite"),
        ({"loras": [(lora, float("nan"))]}, SettingsError, "is a number, not nan"),
        ({"loras": [(lora, 1.0), (lora, 0.5)]}, SettingsError, "Two LoRAs are called 'paint'"),
        ({"embeddings": [embedding, embedding]}, SettingsError, "Two embeddings are called"),
        (
            {"loras": [(lora, 1.0), (save_lora(other, tmp_path / "xl.safetensors"), 1.0)]},
            ConceptError, "does not fit|another base",
        ),
        ({"embeddings": [save_embedding(other, tmp_path / "xle.safetensors")]}, ConceptError, "needs 32"),
    ):  # fmt: skip
        before = state(base)
        with pytest.raises(kind, match=sentence) as raised:
            atomdiff.draw(base, "a dog", **given, **FAST)
        assert "\n" not in str(raised.value) and same(before, state(base))
    with pytest.raises(ConceptError, match="neither a LoRA nor"):
        adapters.kind_of(odd)
    assert (adapters.kind_of(lora), adapters.kind_of(embedding)) == ("lora", "embedding")
    with pytest.raises(SettingsError, match="take no LoRAs"):
        atomdiff.draw(base, ["a dog"], concepts=[[]], **files, **FAST)
    base.pipe.load_lora_weights(str(lora))
    with pytest.raises(SettingsError, match="LoRAs of its own"):
        atomdiff.draw(base, "a dog", loras=[(lora, 1.0)], **FAST)


def test_the_command(
    tiny_folder: Callable[..., Path], tiny_base: Callable[..., Any], files: dict[str, Any], tmp_path: Path
) -> None:
    dog = save_concept(concept(tiny_base("sd1")), tmp_path / "dog.safetensors")
    (lora, _), embedding = files["loras"][0], files["embeddings"][0]
    common = ["--base", str(tiny_folder("sd1")), "--steps", "1", "--out", str(tmp_path / "a.png")]

    def run(*flags: str) -> Any:
        return CliRunner().invoke(app, ["generate", "a sks dog", *flags, *common])

    done = run("--concept", str(dog), "--lora", f"{lora}:0.4", "--embedding", str(embedding))
    assert done.exit_code == 0, done.output
    assert "no prompt says 'easy-word'" in done.output
    text = infotext.of_picture(tmp_path / "a.png")
    assert text.startswith("a sks dog <lora:paint:0.4>\n") and "TI hashes:" in text
    for flags, sentence in (
        (("--lora", str(tmp_path / "x.ckpt")), "is no .safetensors file"),
        (("--lora", f"{lora}:down=1"), "is one number"),
        (("--lora", f"{lora}:many"), "is not a number"),
        (("--region", f"{dog}:0,0,1,1", "--lora", str(lora)), "Regions take concepts that act"),
    ):
        done = run(*flags)
        assert done.exit_code == 2 and sentence in " ".join(done.output.split()), done.output
