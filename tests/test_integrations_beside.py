"""Concepts beside what else people do with a pipeline: LoRAs, offloading, compiling, copies, embeddings."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_concepts import concept
from torch import Tensor

import atomdiff
from atomdiff.base import textual_inversion
from atomdiff.base.plain_unet import PlainUNet, plain_layers
from atomdiff.core.inject import fold

PROMPT = "a sks dog"


def _eps(base: Any, prompt: str = PROMPT) -> Tensor:
    """ε̂ for a prompt, as the pipeline reads it, and fixed noise."""
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)).to(base.unet.dtype)
    with torch.no_grad():
        hidden = base.pipe.encode_prompt(prompt, "cpu", 1, False)[0]
        return base.pipe.unet(noise, 500, hidden, return_dict=False)[0].float()


def _wanted(base: Any, dog: Any, strength: float) -> Tensor:
    """The same with folded weights, and the learned word as `draw` has it read."""
    known, unet = textual_inversion.embeddings_of(base, [(dog, strength)]), PlainUNet(plain_layers(base.unet))
    with fold(unet, [(dog.deltas(unet), strength)]), textual_inversion.added(base, known):
        return _eps(base, textual_inversion.convert_prompt(PROMPT, known))


def _relative(made: Tensor, wanted: Tensor) -> float:
    return float((made - wanted).norm() / wanted.norm())


def _add_lora(unet: Any) -> None:
    """A LoRA that does something, as PEFT puts it in: on attention and on convolutions."""
    from peft import LoraConfig

    targets = ["to_q", "to_k", "to_v", "to_out.0", "conv1"]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        unet.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))


@pytest.mark.parametrize("first", ["lora", "concept"])
def test_a_lora_before_or_after(tiny_base: Callable[..., Any], first: str) -> None:
    base, alone = tiny_base("sd1"), tiny_base("sd1")
    dog = concept(base)
    _add_lora(alone.unet)
    wanted = _wanted(alone, dog, 0.7)
    plain = _eps(base)
    if first == "lora":
        _add_lora(base.unet)
        atomdiff.load(base.pipe, dog, 0.7)
    else:
        atomdiff.load(base.pipe, dog, 0.7)
        _add_lora(base.unet)
    assert _relative(_eps(base), wanted) < 1e-5
    atomdiff.set_concepts(base.pipe, {"dog": 0})
    only_lora = _eps(base)
    base.unet.disable_adapters()
    assert torch.equal(_eps(base), plain)
    atomdiff.set_concepts(base.pipe, {"dog": 0.7})
    assert _relative(_eps(base), _wanted(tiny_base("sd1"), dog, 0.7)) < 1e-5
    base.unet.enable_adapters()
    atomdiff.unload(base.pipe)
    assert torch.equal(_eps(base), only_lora) and not torch.equal(only_lora, plain)
    base.unet.delete_adapters("default")


def test_moved_to_another_dtype(tiny_base: Callable[..., Any]) -> None:
    half, dog = tiny_base("sd1", dtype=torch.bfloat16), concept(tiny_base("sd1"))
    wanted, plain = _wanted(half, dog, 1.0), _eps(half)
    base = tiny_base("sd1")
    atomdiff.load(base.pipe, dog)
    base.pipe.to(torch.bfloat16)
    assert _relative(_eps(base), wanted) < 2e-2 < _relative(plain, wanted)
    atomdiff.fuse(base.pipe)
    assert _relative(_eps(base), wanted) < 2e-2
    atomdiff.unfuse(base.pipe)
    atomdiff.unload(base.pipe)
    assert torch.equal(_eps(base), plain)


@pytest.mark.parametrize("first", ["offload", "concept"])
def test_offloaded_layer_by_layer(tiny_base: Callable[..., Any], first: str) -> None:
    """What `enable_sequential_cpu_offload` does, with the CPU as the device."""
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    base, dog = tiny_base("sd1"), concept(tiny_base("sd1"))
    plain, wanted = _eps(base), _wanted(tiny_base("sd1"), dog, 0.7)

    def offload() -> None:
        cpu_offload(base.unet, torch.device("cpu"))
        cpu_offload(base.pipe.text_encoder, torch.device("cpu"))
        assert base.unet.conv_in.weight.is_meta

    if first == "offload":
        offload()
        atomdiff.load(base.pipe, dog, 0.7)
    else:
        atomdiff.load(base.pipe, dog, 0.7)
        offload()
    assert _relative(_eps(base), wanted) < 1e-5
    with pytest.raises(atomdiff.SettingsError, match="fuse concepts before enable_sequential"):
        atomdiff.fuse(base.pipe)
    assert _relative(_eps(base), wanted) < 1e-5
    atomdiff.unload(base.pipe)
    assert torch.equal(_eps(base), plain)
    atomdiff.load(base.pipe, dog, 0.7)
    for model in (base.unet, base.pipe.text_encoder):
        remove_hook_from_module(model, recurse=True)
    assert _relative(_eps(base), wanted) < 1e-5
    atomdiff.unload(base.pipe)
    assert torch.equal(_eps(base), plain)


@pytest.mark.parametrize("first", ["compile", "concept"])
def test_compiled(tiny_base: Callable[..., Any], first: str) -> None:
    """A block of the UNet is one graph, and another strength needs no other one."""
    base, dog = tiny_base("sd1"), concept(tiny_base("sd1"))
    plain, block = _eps(base), base.unet.mid_block
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    if first == "compile":
        block.compile(backend=backend, fullgraph=True)
        assert _relative(_eps(base), plain) < 1e-5
    atomdiff.load(base.pipe, dog, 0.7)
    if first == "concept":
        block.compile(backend=backend, fullgraph=True)
    before = len(graphs)
    for strength in (0.7, 0.4, 0.9):
        atomdiff.set_concepts(base.pipe, {"dog": strength})
        assert _relative(_eps(base), _wanted(tiny_base("sd1"), dog, strength)) < 1e-5
    assert len(graphs) == before + 1
    atomdiff.unload(base.pipe)
    assert _relative(_eps(base), plain) < 1e-5
    torch._dynamo.reset()


def test_a_compiled_unet_is_found_within(tiny_base: Callable[..., Any]) -> None:
    base = tiny_base("sd1")
    dog, unet = concept(base), base.unet
    base.pipe.unet = torch.compile(unet, backend="eager")
    handle = atomdiff.load(base.pipe, dog)
    base.pipe.unet = unet
    assert handle.strength == 1.0


def test_a_copy_is_its_own(tiny_base: Callable[..., Any]) -> None:
    base, dog = tiny_base("sd1"), concept(tiny_base("sd1"))
    plain = _eps(base)
    atomdiff.load(base.pipe, dog, 0.7)
    made = _eps(base)
    other = copy.deepcopy(base.unet)
    own = base.pipe.unet
    atomdiff.unload(base.pipe)
    known = textual_inversion.embeddings_of(base, [(dog, 0.7)])
    base.pipe.unet = other
    with textual_inversion.added(base, known):
        assert _relative(_eps(base, textual_inversion.convert_prompt(PROMPT, known)), made) < 1e-5
    base.pipe.unet = own
    assert torch.equal(_eps(base), plain)


@pytest.mark.filterwarnings("ignore:.*torch_dtype:FutureWarning")
def test_pipelines_that_share_parts_share_concepts(tiny_base: Callable[..., Any]) -> None:
    from diffusers import AutoPipelineForImage2Image, StableDiffusionPipeline

    base = tiny_base("sd1")
    dog, cat = concept(base), concept(base, trigger="blip", seed=1, name="cat")
    ids = base.pipe.tokenizer(PROMPT).input_ids
    other = AutoPipelineForImage2Image.from_pipe(base.pipe)
    atomdiff.load(other, dog)
    assert atomdiff.concepts(base.pipe) == {"dog": 1.0}
    parts = {**base.pipe.components, "unet": copy.deepcopy(base.unet)}
    third = StableDiffusionPipeline(**parts, requires_safety_checker=False)  # another UNet, the same words
    atomdiff.unload(third)
    assert atomdiff.concepts(third) == {} and base.pipe.tokenizer(PROMPT).input_ids != ids
    atomdiff.load(third, cat)
    atomdiff.load(third, dog, name="the dog")
    assert len(base.pipe.tokenizer("sks blip").input_ids) == 2 + 2 + 4
    atomdiff.unload(base.pipe)
    assert len(base.pipe.tokenizer("sks blip").input_ids) == 2 + 2 + 4
    atomdiff.unload(third)
    assert base.pipe.tokenizer(PROMPT).input_ids == ids
