# atomdiff for ComfyUI. Copyright (C) the atomdiff authors. GPL-3.0-or-later, see LICENSE.
"""A concept in ComfyUI's own terms: patches of a model's weights, embeddings in a text encoder's prompts."""

import copy
import re

import comfy.utils
from comfy.weight_adapter.base import WeightAdapterBase

from atomdiff.base.textual_inversion import word_pattern
from atomdiff.concept.passport import passport_of
from atomdiff.errors import ConceptError
from atomdiff.integrations.exports.embedding import embeddings_of
from atomdiff.integrations.original_layout import plain_unet
from atomdiff.integrations.words import Learned

ENCODERS = {"token": ("clip_l", "clip_h"), "token2": ("clip_g",)}
"""What a concept calls a text encoder: what ComfyUI does."""


class AtomAdapter(WeightAdapterBase):
    """W + s ΔW of one layer, worked out where ComfyUI patches the weight: nothing of W's size is kept.

    ΔW is a function of the pristine W. `pristine` is ComfyUI's own tensor of it, which still holds W whenever
    a patch is worked out; what other patches made of the weight by then does not enter ΔW.
    """

    name = "atomdiff"

    def __init__(self, delta, pristine):
        self.delta, self.pristine = delta, pristine
        self.loaded_keys, self.weights = set(), []

    def calculate_weight(
        self,
        weight,
        key,
        strength,
        strength_model,
        offset,
        function,
        intermediate_dtype=None,
        original_weight=None,
    ):
        W = self.pristine.detach().to(weight.device).float()
        return weight.add_(function(strength * self.delta(W)).to(weight))


def patch_model(model, concept, strength):
    """A clone of a MODEL with the concept in it. Raises ConceptError where it was made for another base, or a
    layer finds no place."""
    known = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    held = model.model.state_dict()
    keys = {name: f"diffusion_model.{own}" for name, own in known.items() if f"diffusion_model.{own}" in held}
    weights = {
        name: model.get_key_patches(key)[key][0][0] for name, key in keys.items() if name.endswith(".weight")
    }
    unet = plain_unet(weights)
    concept.check_base(passport_of(unet, concept.base.family))
    patches = {
        keys[f"{layer}.weight"]: AtomAdapter(delta, weights[f"{layer}.weight"])
        for layer, delta in concept.deltas(unet).items()
    }
    patched = model.clone()
    missing = set(patches) - set(patched.add_patches(patches, strength))
    if missing:
        raise ConceptError(
            f"The model has no {min(missing)!r}, which the concept changes: use the base it was made for."
        )
    return patched


def teach_word(clip, concept, strength):
    """A clone of a CLIP that reads the concept's trigger as its learned vectors, wherever a prompt says it.

    Raises ConceptError where the vectors do not fit this text encoder.
    """
    taught = clip.clone()
    taught.tokenizer = copy.copy(clip.tokenizer)
    for key, vectors in concept.token.items():
        name = next((name for name in ENCODERS[key] if hasattr(clip.tokenizer, name)), None)
        if name is None:
            raise ConceptError(
                f"The concept {concept.title!r} has a learned word for {' or '.join(ENCODERS[key])}, which "
                "this CLIP lacks: use the base it was made for."
            )
        encoder = getattr(clip.cond_stage_model, name)
        table = encoder.transformer.get_input_embeddings().weight
        tokenizer = getattr(clip.tokenizer, name)
        learned = Learned(concept.trigger, vectors[:, 0], strength)
        ids = tokenizer.tokenizer(concept.trigger, add_special_tokens=False)["input_ids"]
        setattr(
            taught.tokenizer, name, _Reader(tokenizer, concept.trigger, embeddings_of(ids, table, learned))
        )
    return taught


class _Reader:
    """ComfyUI's tokenizer, but for one word, which stands for vectors (n, d) as a textual inversion does."""

    def __init__(self, tokenizer, trigger, vectors):
        self._own = copy.copy(tokenizer)
        self._word = re.compile(word_pattern(trigger))
        self._name, self._vectors = f"atomdiff-{id(self)}", vectors
        self._look_up = tokenizer._try_get_embedding
        self._own._try_get_embedding = self._get_embedding
        if self._own.embedding_directory is None:
            self._own.embedding_directory = []  # it looks for embeddings only where it has a folder for them

    def __getattr__(self, name):
        return getattr(self.__dict__["_own"], name)

    def clone(self):
        return copy.copy(self)

    def tokenize_with_weights(self, text, *args, **kwargs):
        said = self._word.sub(f" {self._own.embedding_identifier}{self._name} ", text)
        return self._own.tokenize_with_weights(said, *args, **kwargs)

    def _get_embedding(self, text):
        name, _, rest = text.strip().partition(" ")
        return (self._vectors, rest) if name == self._name else self._look_up(text)
