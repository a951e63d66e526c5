"""Exports, each read back by the library it is for, and what is drawn with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_concepts import concept
from torch import Tensor
from typer.testing import CliRunner

import atomdiff
from atomdiff.base import textual_inversion
from atomdiff.base.stable_diffusion import encode_prompts, load_base
from atomdiff.cli import app
from atomdiff.core.inject import AtomSpec, fold
from atomdiff.errors import BaseError, ConceptError, SettingsError
from atomdiff.files.modelspec import annotated
from atomdiff.files.safetensors_file import save_concept
from atomdiff.integrations.exports import weights
from atomdiff.integrations.exports.write import ExportSettings, export, prediction_error

PROMPT = "a sks dog"


def _eps(unet: Any, base: Any, prompt: str = "a dog") -> Tensor:
    """ε̂ of a UNet for fixed noise; the prompt is encoded by the base."""
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return unet(noise, 500, encode_prompts(base, [prompt]).hidden, return_dict=False)[0]


def _relative(made: Tensor, wanted: Tensor) -> float:
    return float((made - wanted).norm() / wanted.norm())


def _exported(dog: Any, base: Any, out: Path, kind: str, **given: Any) -> tuple[dict[str, Tensor], str]:
    told: list[str] = []
    export(dog, base, ExportSettings(kind, dtype="fp32", **given), out, told.append)
    return (load_file(out) if out.is_file() else {}), "\n".join(told)


# ---------------------------------------------------------------------------------------- embedding


@pytest.mark.parametrize("vectors", [1, 2])
def test_an_embedding_is_diffusers_textual_inversion(
    tiny_base: Callable[..., Any], tmp_path: Path, vectors: int
) -> None:
    base = tiny_base("sd1")
    dog = annotated(concept(base, vectors=vectors), author="Ada")
    learned = textual_inversion.embeddings_of(base, [(dog, 0.5)])
    with textual_inversion.added(base, learned):
        wanted = encode_prompts(base, [textual_inversion.convert_prompt(PROMPT, learned)]).hidden
    tensors, _ = _exported(dog, base, tmp_path / "dog.safetensors", "embedding", strength=0.5)
    assert {key: tuple(values.shape) for key, values in tensors.items()} == {"sks": (vectors, 32)}
    base.pipe.load_textual_inversion(tmp_path, weight_name="dog.safetensors", token="zz-word")
    torch.testing.assert_close(encode_prompts(base, ["a zz-word dog"]).hidden, wanted)
    with safe_open(tmp_path / "dog.safetensors", "pt") as file:
        said = {key.removeprefix("modelspec."): text for key, text in file.metadata().items()}
    size = int.from_bytes((data := (tmp_path / "dog.safetensors").read_bytes())[:8], "little")
    assert said.pop("hash_sha256") == "0x" + hashlib.sha256(data[8 + size :]).hexdigest()
    assert json.loads(said.pop("atomdiff.concept"))["export"] == "embedding"
    assert said == {
        "sai_model_spec": "1.0.0", "architecture": "stable-diffusion-v1/textual-inversion",
        "implementation": "diffusers", "title": "dog", "trigger_phrase": "sks", "resolution": "64x64",
        "prediction_type": "epsilon", "author": "Ada",
    }  # fmt: skip


def test_an_embedding_of_sdxl_has_both_encoders(tiny_base: Callable[..., Any], tmp_path: Path) -> None:
    base = tiny_base("sdxl")
    dog = concept(base)
    learned = textual_inversion.embeddings_of(base, [(dog, 1.0)])
    with textual_inversion.added(base, learned):
        wanted = encode_prompts(base, [textual_inversion.convert_prompt(PROMPT, learned)])
    tensors, _ = _exported(dog, base, tmp_path / "dog.safetensors", "embedding")
    assert set(tensors) == {"clip_l", "clip_g"}
    for key, number in (("clip_l", ""), ("clip_g", "_2")):
        base.pipe.load_textual_inversion(
            tensors[key], token="zz-word", text_encoder=getattr(base.pipe, f"text_encoder{number}"),
            tokenizer=getattr(base.pipe, f"tokenizer{number}"),
        )  # fmt: skip
    made = encode_prompts(base, ["a zz-word dog"])
    torch.testing.assert_close(made.hidden, wanted.hidden)
    torch.testing.assert_close(made.pooled, wanted.pooled)


# ------------------------------------------------------------------------------------- whole models


def test_a_folder_draws_without_atomdiff(tiny_base: Callable[..., Any], tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    base = tiny_base("sd1")
    dog = concept(base)
    _exported(dog, base, tmp_path / "out", "diffusers", strength=0.7)
    assert atomdiff.concepts(base.pipe) == {}
    atomdiff.load(base.pipe, dog, 0.7)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "out", safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "latent"}
    drawn = [
        pipe(PROMPT, generator=torch.Generator().manual_seed(1), **call).images
        for pipe in (base.pipe, loaded)
    ]
    assert _relative(drawn[1], drawn[0]) < 1e-5


def test_a_checkpoint_keeps_its_names(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    folder = tiny_folder("sd1")
    file = tiny_models.save_single_file(tiny_models.pipeline("sd1"), tmp_path / "base.safetensors")
    (tmp_path / "base").symlink_to(folder)
    base = load_base(str(file))
    dog = concept(base)
    tensors, told = _exported(dog, base, tmp_path / "new.safetensors", "checkpoint", checkpoint=file)
    before = load_file(file)
    shapes = [{key: (v.shape, v.dtype) for key, v in some.items()} for some in (tensors, before)]
    assert shapes[0] == shapes[1]
    changed = [key for key, own in before.items() if not torch.equal(tensors[key], own)]
    assert len(changed) == len(dog.deltas(base.unet))
    assert "'sks' is a learned word: load new-sks.safetensors" in told
    with fold(base.unet, [(dog.deltas(base.unet), 1.0)]):
        wanted = _eps(base.unet, base)
    loaded = StableDiffusionPipeline.from_single_file(
        str(tmp_path / "new.safetensors"), config=str(folder), local_files_only=True, safety_checker=None
    )
    assert _relative(_eps(loaded.unet, base), wanted) < 1e-5
    with pytest.raises(BaseError, match=r"single \.safetensors file, and .* is none"):
        _exported(dog, base, tmp_path / "x.safetensors", "checkpoint")


# ------------------------------------------------------------------------------------- diffs and LoRAs


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_diff_is_exact_in_lycoris(tiny_base: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    from lycoris.modules import get_module, make_module

    base = tiny_base(kind)
    dog = concept(base)
    tensors, told = _exported(dog, base, tmp_path / "dog.safetensors", "diff", strength=0.5)
    assert set(tensors) == {f"{weights.kohya_name(name)}.diff" for name in dog.deltas(base.unet)}
    assert "a diff holds every changed weight" in told
    for name, delta in dog.deltas(base.unet).items():
        wanted = 0.5 * delta(base.unet.get_submodule(name).weight)
        torch.testing.assert_close(tensors[f"{weights.kohya_name(name)}.diff"], wanted)
    for name, delta in dog.deltas(base.unet).items():  # as LyCORIS reads kohya's names
        layer, key = base.unet.get_submodule(name), weights.kohya_name(name)
        pristine = layer.weight.detach().clone()
        kind_of, parts = get_module(tensors, key)
        make_module(kind_of, parts, key, layer).merge_to(1.0)
        torch.testing.assert_close(layer.weight, pristine + 0.5 * delta(pristine))


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize("given", [{"rank": 4}, {"max_error": 0.3}], ids=["rank", "error"])
def test_a_lora_is_what_diffusers_loads(
    tiny_base: Callable[..., Any], tmp_path: Path, kind: str, given: dict[str, Any]
) -> None:
    """Its layers have one rank, or each its own."""
    base = tiny_base(kind)
    dog = concept(base, AtomSpec(linear_atoms="attn2_kv"))
    out = tmp_path / "dog.safetensors"
    tensors, told = _exported(dog, base, out, "lora", **given)
    ranks = {len(tensors[key]) for key in tensors if key.endswith("lora_down.weight")}
    assert f"ranks {min(ranks)} to {max(ranks)}; ΔW is missed by" in told
    assert ranks == {4} if "rank" in given else len(ranks) > 1
    made = weights.lora(weights.changed_weights(dog, base.unet), torch.float32, **given)
    wanted = {name: base.unet.get_submodule(name).weight + change for name, change in made.changes.items()}
    base.pipe.load_lora_weights(tmp_path, weight_name="dog.safetensors", adapter_name="dog")
    base.pipe.fuse_lora(components=["unet"])
    base.pipe.unload_lora_weights()
    for name, weight in wanted.items():
        torch.testing.assert_close(base.unet.get_submodule(name).weight, weight, rtol=1e-4, atol=1e-5)


def test_a_loras_error_is_kept_and_told(tiny_base: Callable[..., Any], tmp_path: Path) -> None:
    base = tiny_base("sd1")
    dog = concept(base)
    changes = dict(weights.changed_weights(dog, base.unet))
    whole = sum(float(change.square().sum()) for change in changes.values())
    errors = []
    for bound in (0.9, 0.5, 0.1):
        made = weights.lora(iter(changes.items()), torch.float32, max_error=bound)
        for name, change in changes.items():
            assert _relative(made.changes[name], change) <= bound + 1e-3
        lost = sum(float((made.changes[name] - change).square().sum()) for name, change in changes.items())
        assert abs(made.error - (lost / whole) ** 0.5) < 1e-4
        errors.append(prediction_error(dog, base, made.changes))
    assert 1.5 > errors[0] > errors[1] > errors[2] and errors[2] < 0.2
    full = weights.lora(iter(changes.items()), torch.float32, rank=10**6)
    assert full.error < 1e-4 and prediction_error(dog, base, full.changes) < 1e-3


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**20))
@settings(max_examples=40)
def test_low_rank_is_the_best_there_is(rows: int, columns: int, rank: int, seed: int) -> None:
    change = torch.randn(rows, columns, 3, 3, generator=torch.Generator().manual_seed(seed))
    made = weights.low_rank(change, rank)
    U, S, V = torch.linalg.svd(change.flatten(1), full_matrices=False)
    best = (U[:, :rank] * S[:rank]) @ V[:rank]
    assert made.rank == min(rank, len(S))
    torch.testing.assert_close(made.change.norm(), best.norm(), rtol=1e-3, atol=1e-3)
    lost = float((change.flatten(1) - made.change).norm())
    assert (
        abs(lost - made.lost) < 2e-2 * made.whole and abs(lost - float(S[rank:].norm())) < 2e-2 * made.whole
    )
    bounded = weights.low_rank(change, max_error=0.3)
    assert float((change.flatten(1) - bounded.change).norm()) <= 0.31 * made.whole


# ------------------------------------------------------------------------------------------ commands


def test_the_command(tiny_folder: Callable[..., Path], tiny_base: Callable[..., Any], tmp_path: Path) -> None:
    dog = save_concept(concept(tiny_base("sd1")), tmp_path / "dog.safetensors")
    base = ["--base", str(tiny_folder("sd1"))]

    def run(*flags: str) -> Any:
        return CliRunner().invoke(app, ["export", str(dog), *flags])

    out = tmp_path / "out" / "lora.safetensors"
    done = run("--to", "lora", "--rank", "2", "--out", str(out), *base)
    assert done.exit_code == 0, done.output
    assert "no small LoRA is the concept" in " ".join(done.output.split())
    with safe_open(out, "pt") as file:
        said = file.metadata()
    assert (
        said["modelspec.trigger_phrase"] == "sks" and json.loads(said["atomdiff.concept"])["export"] == "lora"
    )
    assert (out.parent / "lora-sks.safetensors").is_file()
    assert out.stat().st_mode & 0o044
    for flags, sentence in (
        (("--to", "gguf", "--out", "x.safetensors"), "exported to embedding, diffusers"),
        (("--to", "lora", "--out", "x.safetensors"), "--rank or of --max-error"),
        (("--to", "diff", "--rank", "4", "--out", "x.safetensors"), "are a LoRA's"),
        (("--to", "diff", "--out", "x.bin"), "is a .safetensors file, not 'x.bin'"),
        (("--to", "diff"), "needs --out"),
        (("--to", "diff", "--text"), "run it twice"),
        (("--to", "checkpoint", "--out", "x.safetensors"), "single .safetensors file"),
    ):
        done = run(*flags, *base)
        assert done.exit_code == 2 and sentence in done.output, done.output


def test_refusals(tiny_base: Callable[..., Any], tmp_path: Path) -> None:
    base = tiny_base("sd1")
    with pytest.raises(ConceptError, match="no learned word"):
        _exported(concept(base, vectors=0), base, tmp_path / "x.safetensors", "embedding")
    with pytest.raises(ConceptError, match="cannot be used on"):
        _exported(concept(tiny_base("sdxl")), base, tmp_path / "x.safetensors", "diff")
    for bad in ({"rank": 0}, {"max_error": 2.0}):
        with pytest.raises(SettingsError):
            _exported(concept(base), base, tmp_path / "x.safetensors", "lora", **bad)
    with pytest.raises(SettingsError, match="finite number"):
        ExportSettings("diff", strength=float("nan"))
    assert not list(tmp_path.iterdir())
