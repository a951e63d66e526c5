"""A UNet known by its weights alone is the UNet that a concept knows."""

import random

import pytest
import torch
from diffusers import UNet2DConditionModel

from atomdiff.base.plain_unet import plain_layers
from atomdiff.concept.passport import passport_of
from atomdiff.core.inject import AtomSpec, select
from atomdiff.integrations.original_layout import diffusers_name, plain_unet
from benchmarks.full_size.original_names import unet_name
from benchmarks.shapes import SHAPES, empty_unet

SD = {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 32, "attention_head_dim": 8}
SDXL = {
    "block_out_channels": (32, 64, 64),
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 11),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
}


@pytest.mark.parametrize("shape", [SD, SDXL], ids=["sd", "sdxl"])
def test_layers_stand_in_the_order_of_diffusers(shape: dict) -> None:
    unet = UNet2DConditionModel(sample_size=8, **shape)
    named = list(unet.state_dict().items())
    random.Random(0).shuffle(named)
    shown = plain_unet(dict(named))
    own = plain_layers(unet)
    seen = {name: layer for name, layer in shown.named_modules() if name}
    assert list(seen) == list(own)
    assert all(seen[name].weight.data_ptr() == layer.weight.data_ptr() for name, layer in own.items())
    assert passport_of(shown, "sd1") == passport_of(unet, "sd1")
    spec = AtomSpec(linear_atoms="all")
    assert select(shown, spec).digest() == select(unet, spec).digest()


def test_matrices_alone_are_shown() -> None:
    shown = plain_unet({"conv_in.weight": torch.zeros(4, 3, 3, 3), "conv_in.bias": torch.zeros(4),
                        "conv_norm_out.weight": torch.ones(4)})  # fmt: skip
    assert [name for name, _ in shown.named_modules()] == ["", "conv_in"]


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_names_of_the_original_layout_are_told(name: str) -> None:
    unet = empty_unet(SHAPES[name])
    for ours in unet.state_dict():
        assert diffusers_name(unet_name(ours, unet.config)) == ours
    assert diffusers_name("label_emb.0.2.weight") == "add_embedding.linear_2.weight"
    assert diffusers_name("first_stage_model.x") is None
