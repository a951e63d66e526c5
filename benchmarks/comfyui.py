"""The node for ComfyUI in a real ComfyUI, against concepts as atomdiff and diffusers have them.

    python -m benchmarks.comfyui --comfyui FOLDER [--check]

FOLDER is a checkout of ComfyUI whose requirements this Python has. A random UNet in the shape of SD 1.5, with
fewer channels, and a random text encoder of its own size are loaded into ComfyUI and into diffusers; what
they predict and encode is compared, in fp32. With --check the exit status is 1 if a target is missed, and the
last line names those.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import atomdiff
from atomdiff.concept.passport import passport_of
from atomdiff.core.inject import AtomSpec, attach, detach, fold
from atomdiff.errors import AtomdiffError, ConceptError

from .report import Target, command, conclude, one_sentence
from .shapes import apart

NODE = Path(__file__).parent.parent / "comfyui-atomdiff"
WIDTHS = (32, 64, 128, 128)
CONTEXT = 768
SHAPE: dict[str, Any] = {  # of SD 1.5 in the original layout, with 32 channels instead of 320
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
    "context_dim": CONTEXT, "num_heads": 8, "num_head_channels": -1, "use_spatial_transformer": True,
    "legacy": False, "use_linear_in_transformer": False, "adm_in_channels": None,
    "use_temporal_attention": False, "use_temporal_resblock": False, "dtype": torch.float32,
}  # fmt: skip
PROMPT, PLAIN = "a photo of a sks dog, on the beach", "a photo of a dog"
LIMIT = 1e-5


def random_concept(unet: UNet2DConditionModel, trigger: str, seed: int) -> atomdiff.Concept:
    """Atoms, Dc and a word of two vectors, at random, as large as trained ones are."""
    generator = torch.Generator().manual_seed(seed)
    attached = attach(unet, AtomSpec(), seed=seed)
    with torch.no_grad():
        for parameter in attached.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    spec, atoms = attached.spec, attached.read()
    detach(unet)
    vectors = torch.randn(2, 1, CONTEXT, generator=generator) * 0.1
    base = passport_of(unet, "sd1", "random")
    return atomdiff.Concept.of(unet, spec, atoms, base, trigger=trigger, token={"token": vectors})


class Comfy:
    """A MODEL of ComfyUI with the weights of a diffusers UNet, and a CLIP with random ones."""

    def __init__(self, folder: Path, unet: UNet2DConditionModel) -> None:
        own, sys.argv = sys.argv, sys.argv[:1]  # it reads the command line when it is imported
        sys.path.insert(0, str(folder))
        try:
            importlib.import_module("comfy.cli_args").args.cpu = True  # or it looks for a GPU's driver
            self.patcher = importlib.import_module("comfy.model_patcher")
            utils = importlib.import_module("comfy.utils")
            self.sd = importlib.import_module("comfy.sd")
            self.sd1_clip = importlib.import_module("comfy.sd1_clip")
            shapes = importlib.import_module("comfy.supported_models")
        except ImportError as error:
            raise AtomdiffError(f"No ComfyUI can be imported from {folder}: {error}.") from None
        finally:
            sys.argv = own
        model = shapes.SD15(SHAPE).get_model({}, "", device="cpu")
        held = unet.state_dict()
        names = utils.unet_to_diffusers(SHAPE)
        model.diffusion_model.load_state_dict({to: held[name] for name, to in names.items() if name in held})
        cpu = torch.device("cpu")
        self.model = self.patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
        self.clip = self.sd.CLIP(no_init=True)
        self.clip.tokenizer = self.sd1_clip.SD1Tokenizer()
        self.clip.cond_stage_model = self.sd1_clip.SD1ClipModel(device="cpu", dtype=torch.float32)
        for (
            name,
            parameter,
        ) in self.clip.cond_stage_model.named_parameters():  # ComfyUI leaves them as they lay
            torch.nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.02)
        self.clip.patcher = self.patcher.ModelPatcher(
            self.clip.cond_stage_model, load_device=cpu, offload_device=cpu
        )
        self.clip.layer_idx, self.clip.use_clip_schedule = None, False
        self.clip.apply_hooks_to_conds, self.clip.tokenizer_options = None, {}

    def predict(self, model: Any, *inputs: Tensor) -> Tensor:
        """ε̂ with the patches of a MODEL in the weights, which are taken out again."""
        model.patch_model(device_to=torch.device("cpu"))
        try:
            with torch.no_grad():
                return model.model.diffusion_model(inputs[0], inputs[1], context=inputs[2])
        finally:
            model.unpatch_model()

    def encode(self, clip: Any, prompt: str) -> Tensor:
        """What CLIPTextEncode gives, (1, 77, d)."""
        with torch.no_grad():
            return clip.cond_stage_model.encode_token_weights(clip.tokenizer.tokenize_with_weights(prompt))[0]


def node() -> types.ModuleType:
    """The module of the node that makes patches."""
    package = types.ModuleType("comfyui_atomdiff")
    package.__path__ = [str(NODE)]
    sys.modules[package.__name__] = package
    return importlib.import_module("comfyui_atomdiff.patches")


def pipeline(comfy: Comfy, unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    """diffusers' pipeline with the same text encoder and tokenizer."""
    tokenizer = CLIPTokenizer.from_pretrained(comfy.clip.tokenizer.clip_l.tokenizer_path, model_max_length=77)
    config = CLIPTextConfig(
        hidden_size=CONTEXT, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    encoder = CLIPTextModel(config).eval()
    held = comfy.clip.cond_stage_model.clip_l.transformer.state_dict()
    own = encoder.state_dict()
    found = {name: held.get(name, held.get(f"text_model.{name}")) for name in own}
    encoder.load_state_dict(found)
    return StableDiffusionPipeline(
        AutoencoderKL(),
        encoder,
        tokenizer,
        unet,
        DDIMScheduler(steps_offset=1, clip_sample=False),
        None,
        None,
        requires_safety_checker=False,
    )


def differences(folder: Path) -> list[tuple[str, float]]:
    """What is compared, and how far it is apart."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32, block_out_channels=WIDTHS, cross_attention_dim=CONTEXT, attention_head_dim=8
    ).eval()
    comfy, patches = Comfy(folder, unet), node()
    dog, cat = random_concept(unet, "sks", 1), random_concept(unet, "zwx", 2)
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([500, 200]), torch.randn(2, 77, CONTEXT)

    def ours(*parts: tuple[atomdiff.Concept, float]) -> Tensor:
        with torch.no_grad(), fold(unet, [(concept.deltas(unet), strength) for concept, strength in parts]):
            return unet(*inputs).sample

    plain = comfy.predict(comfy.model, *inputs)
    one = patches.patch_model(comfy.model, dog, 0.8)
    two = patches.patch_model(one, cat, -0.5)
    rows = [
        ("ε̂ of the base", apart(plain, ours())),
        ("ε̂ with a concept at 0.8", apart(comfy.predict(one, *inputs), ours((dog, 0.8)))),
        ("ε̂ with a second one at -0.5", apart(comfy.predict(two, *inputs), ours((dog, 0.8), (cat, -0.5)))),
        ("ε̂ of the base afterwards", float((comfy.predict(comfy.model, *inputs) - plain).abs().max())),
        ("moved by the concept", apart(ours((dog, 0.8)), plain)),
    ]
    pipe = pipeline(comfy, unet)
    taught = patches.teach_word(comfy.clip, dog, 1.0)

    def encoded(prompt: str) -> Tensor:
        with torch.no_grad():
            return pipe.encode_prompt(prompt, "cpu", 1, False)[0]

    rows += [("a prompt without the word", apart(comfy.encode(taught, PLAIN), encoded(PLAIN)))]
    before = encoded(PROMPT)
    atomdiff.load(pipe, dog, name="dog")
    rows += [
        ("a prompt with the word", apart(comfy.encode(taught, PROMPT), encoded(PROMPT))),
        ("moved by the word", apart(encoded(PROMPT), before)),
    ]
    return rows


def refuses(folder: Path) -> bool:
    """Whether a concept of another base is refused, and nothing patched."""
    unet = UNet2DConditionModel(sample_size=32, block_out_channels=WIDTHS, cross_attention_dim=CONTEXT)
    other = UNet2DConditionModel(
        sample_size=32, block_out_channels=(32, 64, 64, 64), cross_attention_dim=CONTEXT
    )
    comfy = Comfy(folder, unet)
    try:
        node().patch_model(comfy.model, random_concept(other, "sks", 1), 1.0)
    except ConceptError:
        return not comfy.model.patches
    return False


def main() -> None:
    parser = command("comfyui", __doc__)
    parser.add_argument("--comfyui", type=Path, required=True, help="a checkout of ComfyUI")
    a = parser.parse_args()
    rows, refused = differences(a.comfyui), refuses(a.comfyui)
    targets = [Target(name, value, high=LIMIT) for name, value in rows if not name.startswith("moved")]
    targets.append(Target("another base is refused", float(refused), low=1))
    table = ("", "difference"), [(name, f"{value:.1e}") for name, value in rows]
    conclude(a, "ComfyUI against atomdiff and diffusers, relative", table, targets)


if __name__ == "__main__":
    with one_sentence():
        main()
