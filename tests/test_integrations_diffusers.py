"""Concepts in stock diffusers pipelines: they draw what `draw` draws, and leave no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_concepts import PLAIN, concept
from torch import Tensor, nn

import atomdiff
from atomdiff.base import textual_inversion
from atomdiff.base.plain_unet import PlainUNet, plain_layers
from atomdiff.base.stable_diffusion import encode_prompts
from atomdiff.core.inject import AtomSpec, fold
from atomdiff.errors import AtomdiffError, BaseError, ConceptError, SettingsError
from atomdiff.files.safetensors_file import save_concept
from atomdiff.sampling.draw import CousinWarning, draw

PROMPT = "a sks dog"


def _latents(pipe: Any, prompt: str = PROMPT, steps: int = 2, **given: Any) -> Tensor:
    """What a pipeline makes of a prompt, before the autoencoder."""
    options = {"num_inference_steps": steps, "guidance_scale": 5.0, "negative_prompt": "", **given}
    with torch.no_grad():
        made = pipe(prompt, generator=torch.Generator().manual_seed(1), output_type="latent", **options)
    return (made.images if hasattr(made, "images") else made.frames).float()


def _relative(made: Tensor, wanted: Tensor) -> float:
    return float((made - wanted).norm() / wanted.norm())


def _bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: values.clone() for name, values in model.state_dict().items()}


def _same(model: nn.Module, bits: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == bits.keys() and all(torch.equal(now[name], own) for name, own in bits.items())


@pytest.mark.parametrize("kind", ["pocket", "sd1", "sd2", "sdxl"])
def test_pictures_are_those_of_draw(tiny_base: Callable[..., Any], kind: str) -> None:
    base = atomdiff.load_base("pocket") if kind == "pocket" else tiny_base(kind)
    dog = concept(base)
    cat = concept(base, AtomSpec(num_atoms=4, linear_block=2), trigger="blip", vectors=1, seed=1)
    prompt = "a sks dog and a blip"
    options = {"seed": 1, "steps": 3, "sampler": "ddim", "guidance": 5.0, "size": 64}
    wanted = draw(base, prompt, concepts=[(dog, 0.8), (cat, {"up": 0.5})], **options, **PLAIN)[0]
    plain = draw(base, prompt, **options, **PLAIN)[0]
    kept = base.pipe.scheduler
    bits, words = _bits(base.unet), _bits(base.pipe.text_encoder)
    texts = [base.pipe.tokenizer(text).input_ids for text in (prompt, "sks-blip asks")]

    def drawn() -> Image.Image:
        scheduler = type(kept).from_config(kept.config)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(base.pipe, "scheduler", scheduler)
            return base.pipe(
                prompt, negative_prompt="", num_inference_steps=3, guidance_scale=5.0, width=64, height=64,
                generator=torch.Generator().manual_seed(1),
            ).images[0]  # fmt: skip

    handle = atomdiff.load(base.pipe, dog, 0.8)
    atomdiff.load(base.pipe, cat, {"up": 0.5}, name="cat")
    assert atomdiff.concepts(base.pipe) == {"dog": 0.8, "cat": {"up": 0.5}} and handle.strength == 0.8
    made = drawn()
    assert np.abs(np.asarray(made, int) - np.asarray(wanted, int)).max() <= 1
    assert np.abs(np.asarray(made, int) - np.asarray(plain, int)).max() > 3
    assert _same(base.unet, bits) and _same(base.pipe.text_encoder, words)

    atomdiff.set_concepts(base.pipe, {"dog": 0.0})
    assert drawn().tobytes() == plain.tobytes()
    handle.unload()
    assert atomdiff.concepts(base.pipe) == {"cat": 0.0}
    atomdiff.unload(base.pipe)
    assert drawn().tobytes() == plain.tobytes() and atomdiff.concepts(base.pipe) == {}
    assert [base.pipe.tokenizer(text).input_ids for text in (prompt, "sks-blip asks")] == texts
    assert not any("forward" in vars(module) for module in base.unet.modules())


@pytest.mark.parametrize(
    "spec",
    [
        AtomSpec(),
        AtomSpec(num_atoms=5, linear_atoms="none"),
        AtomSpec(num_atoms=0, linear_atoms="all", linear_block=2),
        AtomSpec(conv_family="recursive", channel_groups=4),
        AtomSpec(conv_family="sparse", num_atoms=6, coef_block=2, linear_atoms="attn2_kv"),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_family_acts_as_folded(
    tiny_base: Callable[..., Any], spec: AtomSpec, dtype: torch.dtype
) -> None:
    base = tiny_base("sd1", dtype=dtype)
    dog = concept(base, spec)
    hidden = encode_prompts(base, [PROMPT]).hidden
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)).to(dtype)

    def eps() -> Tensor:
        with torch.no_grad():
            return base.unet(noise, 500, hidden, return_dict=False)[0].float()

    plain = eps()
    with fold(base.unet, [(dog.deltas(base.unet), 0.7)]):
        wanted = eps()
    atomdiff.load(base.pipe, dog, 0.7)
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    assert _relative(eps(), wanted) < bound < _relative(eps(), plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert _relative(eps(), wanted) < 4e-2
    atomdiff.fuse(base.pipe)
    assert torch.equal(eps(), wanted) or _relative(eps(), wanted) < bound
    atomdiff.unfuse(base.pipe)
    atomdiff.unload(base.pipe)
    assert torch.equal(eps(), plain)


# ---------------------------------------------------------------------------------------- pipelines


def _picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))


def _variant(base: Any, name: str) -> tuple[Any, dict[str, Any]]:
    """A stock pipeline around a base, and what it is called with beside a prompt."""
    import diffusers

    pipe, picture = base.pipe, _picture()
    extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    parts = {key: value for key, value in pipe.components.items() if key not in extra and value is not None}
    xl = "XL" if base.family == "sdxl" else ""
    if xl:
        extra = {}
    if name == "img2img":
        made = getattr(diffusers, f"StableDiffusion{xl}Img2ImgPipeline")(**parts, **extra)
        return made, {"image": picture, "strength": 0.9}
    if name == "inpaint":
        made = getattr(diffusers, f"StableDiffusion{xl}InpaintPipeline")(**parts, **extra)
        mask = Image.new("L", (64, 64), 255)
        return made, {"image": picture, "mask_image": mask, "strength": 0.9, "height": 64, "width": 64}
    if name == "controlnet":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = diffusers.ControlNetModel.from_unet(
                pipe.unet, conditioning_embedding_out_channels=(4, 8, 8, 8)
            )
            for part in net.controlnet_down_blocks:
                nn.init.normal_(part.weight, std=0.1)
        made = getattr(diffusers, f"StableDiffusion{xl}ControlNetPipeline")(controlnet=net, **parts, **extra)
        return made, {"image": picture, "height": 64, "width": 64}
    if name == "animatediff":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            adapter = diffusers.MotionAdapter(
                block_out_channels=(16, 32, 32, 32), motion_layers_per_block=1, motion_norm_num_groups=8,
                motion_mid_block_layers_per_block=1, motion_num_attention_heads=2,
            )  # fmt: skip
        made = diffusers.AnimateDiffPipeline(motion_adapter=adapter, **parts)
        return made, {"num_frames": 2, "height": 64, "width": 64}
    if name == "auto":
        return diffusers.AutoPipelineForImage2Image.from_pipe(pipe), {"image": picture, "strength": 0.9}
    assert name == "lcm"
    made = diffusers.StableDiffusionPipeline.from_pipe(pipe)
    made.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    return made, {"height": 64, "width": 64}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("sd1", name) for name in ("img2img", "inpaint", "controlnet", "animatediff", "auto", "lcm")),
        *(("sdxl", name) for name in ("img2img", "inpaint", "controlnet")),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch_dtype:FutureWarning")
def test_pipelines_draw_as_with_folded_weights(tiny_base: Callable[..., Any], kind: str, name: str) -> None:
    base = tiny_base(kind)
    pipe, given = _variant(base, name)
    pipe.set_progress_bar_config(disable=True)
    dog = concept(base)
    learned = textual_inversion.embeddings_of(base, [(dog, 0.7)])
    plain_unet = PlainUNet(plain_layers(pipe.unet))
    plain = _latents(pipe, **given)
    with fold(plain_unet, [(dog.deltas(plain_unet), 0.7)]), textual_inversion.added(base, learned):
        wanted = _latents(pipe, textual_inversion.convert_prompt(PROMPT, learned), **given)
    atomdiff.load(pipe, dog, 0.7)
    assert _relative(_latents(pipe, **given), wanted) < 1e-4 < 1e-3 < _relative(plain, wanted)
    atomdiff.unload(pipe)
    assert torch.equal(_latents(pipe, **given), plain)


# ------------------------------------------------------------------------------------------- fusing


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_fused_pipeline_is_an_ordinary_folder(
    tiny_base: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    """It draws the same without atomdiff, the learned word being read as both of its tokens."""
    import diffusers

    base = tiny_base(kind)
    dog = concept(base)
    if kind == "sdxl":  # as the published text encoders say of themselves
        for encoder in (base.pipe.text_encoder, base.pipe.text_encoder_2):
            for part in encoder.modules():
                if hasattr(part, "eos_token_id"):
                    part.eos_token_id = 2
            encoder.config.eos_token_id = 2
    models = [part for part in base.pipe.components.values() if isinstance(part, nn.Module)]
    plain, bits = _latents(base.pipe), [_bits(model) for model in models]
    weights = [dict(model.named_parameters()) for model in models]
    ends = [getattr(model.config, "eos_token_id", None) for model in models]
    atomdiff.load(base.pipe, dog, 0.7)
    wanted = _latents(base.pipe)
    atomdiff.fuse(base.pipe)
    assert not any("forward" in vars(module) for model in models for module in model.modules())
    assert _relative(_latents(base.pipe), wanted) < 1e-5 < _relative(plain, wanted)
    base.pipe.save_pretrained(tmp_path / "fused")
    for change in (
        lambda: atomdiff.set_concepts(base.pipe, {"dog": 1}),
        lambda: atomdiff.unload(base.pipe),
        lambda: atomdiff.fuse(base.pipe),
        lambda: atomdiff.load(base.pipe, dog, name="other"),
    ):
        with pytest.raises(AtomdiffError, match=r"fused into this pipeline's weights: call atomdiff\.unfuse"):
            change()
    atomdiff.unfuse(base.pipe)
    atomdiff.unfuse(base.pipe)
    assert _relative(_latents(base.pipe), wanted) < 1e-5
    atomdiff.unload(base.pipe)
    assert all(_same(model, own) for model, own in zip(models, bits, strict=True))
    for model, own in zip(models, weights, strict=True):
        assert all(own[name] is parameter for name, parameter in model.named_parameters())
    assert torch.equal(_latents(base.pipe), plain)
    assert ends == [getattr(model.config, "eos_token_id", None) for model in models]
    assert type(base.pipe.tokenizer).__name__ == "CLIPTokenizer"

    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "fused", safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is type(base.pipe)
    assert _relative(_latents(loaded), wanted) < 1e-5


@pytest.mark.parametrize("end", [2, None])
def test_sdxl_still_finds_the_end_of_a_text(tiny_base: Callable[..., Any], end: int | None) -> None:
    """Its text encoders, as published, take the token of the highest number for the end of a text."""
    base = tiny_base("sdxl")
    dog = concept(base)
    if end is not None:
        encoder = base.pipe.text_encoder_2
        encoder.config.eos_token_id = end
        for part in encoder.modules():
            if hasattr(part, "eos_token_id"):
                part.eos_token_id = end
    learned = textual_inversion.embeddings_of(base, [(dog, 1.0)])
    with textual_inversion.added(base, learned):
        wanted = encode_prompts(base, [textual_inversion.convert_prompt(PROMPT, learned)])
    plain = encode_prompts(base, [PROMPT])
    atomdiff.load(base.pipe, dog)
    made = encode_prompts(base, [PROMPT])
    torch.testing.assert_close(made.hidden, wanted.hidden)
    torch.testing.assert_close(made.pooled, wanted.pooled)
    atomdiff.unload(base.pipe)
    assert torch.equal(encode_prompts(base, [PROMPT]).pooled, plain.pooled)


# ------------------------------------------------------------------------------- sources and refusals


def test_a_concept_comes_from_anything(
    tiny_base: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atomdiff.files import card_image, text

    monkeypatch.setenv("ATOMDIFF_LIBRARY", str(tmp_path / "library"))
    base = tiny_base("sd1")
    dog = concept(base, AtomSpec(num_atoms=2, linear_atoms="none"), vectors=1)
    file = save_concept(dog, tmp_path / "dog.safetensors", "int4")
    data = file.read_bytes()
    (tmp_path / "card.png").write_bytes(card_image.make(data, []))
    atomdiff.Library().add(file)
    line = text.to_text(data)
    sources = [dog, file, str(file), data, tmp_path / "card.png", (tmp_path / "card.png").read_bytes(), line]
    for source in [*sources, "dog"]:
        atomdiff.load(base.pipe, source, name="it").unload()
    with pytest.raises(ConceptError, match="There is no concept 'here/it/is not'"):
        atomdiff.load(base.pipe, "here/it/is not")


def test_refusals_leave_the_pipeline_as_it_was(tiny_base: Callable[..., Any], tmp_path: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    base = tiny_base("sd1")
    dog, wide = concept(base), concept(base, name="wide", trigger="blip")
    object.__setattr__(wide, "atoms", {**wide.atoms, "token": torch.ones(4, 1, 8)})
    atomdiff.load(base.pipe, dog, 0.5)
    before, bits = _latents(base.pipe), _bits(base.unet)
    file = save_concept(dog, tmp_path / "dog.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-100])
    foreign = concept(tiny_base("sdxl"), name="foreign")
    load, tell = atomdiff.load, atomdiff.set_concepts
    wrong: list[tuple[type[AtomdiffError], str, Any]] = [
        (SettingsError, "'dog' is loaded already", lambda: load(base.pipe, dog)),
        (ConceptError, "was made for .* cannot be used on", lambda: load(base.pipe, foreign)),
        (ConceptError, "cut.safetensors", lambda: load(base.pipe, tmp_path / "cut.safetensors")),
        (ConceptError, "nowhere.safetensors", lambda: load(base.pipe, "nowhere.safetensors")),
        (ConceptError, "vectors of 8 numbers", lambda: load(base.pipe, wide)),
        (ConceptError, "not float", lambda: load(base.pipe, 3.0)),
        (SettingsError, "finite number, not nan", lambda: load(base.pipe, dog, float("nan"), "b")),
        (SettingsError, "finite number, not nan", lambda: tell(base.pipe, {"dog": float("nan")})),
        (SettingsError, "block down, mid, up", lambda: tell(base.pipe, {"dog": {"left": 1}})),
        (SettingsError, "No concept 'cat' .* loaded: 'dog'", lambda: atomdiff.unload(base.pipe, "cat")),
        (SettingsError, "No concept 'cat'", lambda: tell(base.pipe, ["dog", "cat"])),
        (AtomdiffError, "atomdiff.unload", lambda: draw(base, PROMPT, concepts=[dog], steps=1, size=64)),
        (BaseError, "A object has no UNet", lambda: load(object(), dog)),
    ]  # fmt: skip
    for error, sentence, call in wrong:
        with pytest.raises(error, match=sentence) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert atomdiff.concepts(base.pipe) == {"dog": 0.5}
        assert torch.equal(_latents(base.pipe), before) and _same(base.unet, bits)
    atomdiff.unload(base.pipe)
    with pytest.raises(SettingsError, match="No concept is loaded"):
        atomdiff.fuse(base.pipe)
    pipe = DDPMPipeline(unet=copy.deepcopy(base.unet), scheduler=DDPMScheduler())
    atomdiff.load(pipe, dog).unload()  # no text encoder: its layers alone


def test_a_fine_tuned_base_is_told(tiny_base: Callable[..., Any]) -> None:
    base = tiny_base("sd1")
    dog = concept(base)
    with torch.no_grad():
        for parameter in base.unet.parameters():
            parameter.mul_(1 + 0.05 * torch.randn(parameter.shape))
    with pytest.warns(CousinWarning, match="fine-tune"):
        atomdiff.load(base.pipe, dog)
    assert atomdiff.concepts(base.pipe) == {"dog": 1.0}
