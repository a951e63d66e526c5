# atomdiff for A1111 and Forge. Copyright (C) the atomdiff authors. AGPL-3.0-or-later, see LICENSE.
"""`<atom:NAME:STRENGTH>` in prompts: concepts as the web UI's extra networks, in its own terms.

Forge adds patches to the UNet for a pass; in A1111 a concept is one of the networks that its Lora extension
puts into the weights. Both put the very weights back that were there. The learned word is an embedding for as
long as a prompt calls the concept.
"""

import weakref

import torch
from modules import extra_networks, sd_hijack
from modules.textual_inversion.textual_inversion import Embedding

from atomdiff.concept.passport import passport_of
from atomdiff.core.blocks import by_strength, of_words, parse_strength
from atomdiff.errors import AtomdiffError, ConceptError, SettingsError
from atomdiff.files import card
from atomdiff.files.safetensors_file import sha256
from atomdiff.integrations.exports.embedding import embeddings_of
from atomdiff.integrations.original_layout import diffusers_name, plain_unet
from atomdiff.integrations.words import Learned
from atomdiff.library import Library

PATCH = "atomdiff"  # the kind of our patches in Forge
PREFIX = "diffusion_model."


class ExtraNetworkAtom(extra_networks.ExtraNetwork):
    """What a prompt's `<atom:dog:0.8>` or `<atom:dog:down=0.5 up=1>` does; the host calls it."""

    def __init__(self):
        super().__init__("atom")
        self.called = []  # (name, concept, strength) of the pictures at hand
        self._words = Words()

    def activate(self, p, params_list):
        """Takes the place of every call before it. What cannot be used is told beside the picture, which is
        drawn without it."""
        self.deactivate(p)
        hashes = []
        for params in params_list:
            try:
                name, concept, strength, digest = read(params.items)
                if any(name == other for other, _, _ in self.called):
                    raise SettingsError(f"The prompt says <atom:{name}> twice: leave one of them out.")
                changes_of(p.sd_model, concept)
                self._words.teach(p.sd_model, concept, of_words(strength))
            except AtomdiffError as error:
                tell(p, f"<atom:{':'.join(params.items)}>: {error}")
                continue
            self.called.append((name, concept, strength))
            hashes.append(f"{name}: {digest[:12]}")
        if hashes:
            p.extra_generation_params["Atom hashes"] = ", ".join(hashes)

    def deactivate(self, p):
        """The words are gone; the host puts the weights back itself."""
        self.called = []
        self._words.forget()

    def patch_forge(self, p):
        """Before every pass of sampling: Forge draws with the UNet in `forge_objects`, made anew for each."""
        for _, concept, strength in self.called:
            changes = changes_of(p.sd_model, concept)
            unet = p.sd_model.forge_objects.unet.clone()
            for layers, number in by_strength(changes, strength):
                unet.add_patches({key: (PATCH, patch) for key, patch in layers.values()}, number)
            p.sd_model.forge_objects.unet = unet

    def join_loras(self, p):
        """After all extra networks of a prompt are active: A1111's Lora extension has ours beside its own."""
        for name, concept, strength in self.called:
            add_network(p.sd_model, name, concept, strength)


def read(items):
    """Name, concept, strength and checksum of `dog:0.8`. Raises AtomdiffError."""
    name, *rest = items
    entry = Library().named(name)
    return name, card.load(entry.path), parse_strength(":".join(rest) or "1"), entry.id


def tell(p, sentence):
    """Beside the picture, and in the terminal."""
    print(f"atomdiff: {sentence}")
    if hasattr(p, "comment"):
        p.comment(sentence)


# -------------------------------------------------------------------------------------- the UNet


_known = weakref.WeakKeyDictionary()  # UNet -> checksum of a concept -> its changes there


def changes_of(sd_model, concept):
    """diffusers' name of a layer -> (its key in Forge, (ΔW as a function of W, the UNet, that key)).

    Raises ConceptError for a concept of another base.
    """
    forge = getattr(sd_model, "forge_objects_original", None)
    model = sd_model.model if forge is None else forge.unet.model
    known = _known.setdefault(model, {})
    digest = sha256(concept)
    if digest not in known:
        if forge is not None:
            forge.unet.get_key_patches(PREFIX)  # which takes all patches out of the weights
        keys = {name: key for key in model.state_dict() if (name := _name(key)) is not None}
        held = {name: _pristine(model, key) for name, key in keys.items() if name.endswith(".weight")}
        unet = plain_unet(held)
        concept.check_base(passport_of(unet, concept.base.family))
        place = weakref.ref(model)
        known[digest] = {
            layer: (keys[f"{layer}.weight"], (delta, place, keys[f"{layer}.weight"]))
            for layer, delta in concept.deltas(unet).items()
        }
    return known[digest]


def _name(key):
    return diffusers_name(key[len(PREFIX) :]) if key.startswith(PREFIX) else None


def _pristine(model, key):
    """W, also where A1111's Lora extension has other networks in it at the moment."""
    module = model.get_submodule(key.rpartition(".")[0])
    backup = getattr(module, "network_weights_backup", None)
    return (module.weight if backup is None or isinstance(backup, tuple) else backup).detach()


def patched(weight, strength, patch):
    """Forge's way to a patch of our kind: `weight` is W with the patches before it; ΔW follows from W."""
    delta, model, key = patch
    W = model().get_parameter(key).detach().to(weight.device, torch.float32)
    return weight + strength * delta(W).to(weight)


def register_patch():
    """Has Forge know our kind of patches; says whether this is a Forge."""
    for home in ("ldm_patched.modules.model_patcher", "backend.patcher.lora"):
        try:
            calculators = __import__(home, fromlist=["extra_weight_calculators"]).extra_weight_calculators
        except (ImportError, AttributeError):
            continue
        calculators[PATCH] = patched
        return True
    return False


def add_network(sd_model, name, concept, strength):
    """The concept as one of the networks of A1111's Lora extension, which adds what `calc_updown` gives to
    the weights and keeps them for later."""
    import network  # both are the Lora extension's
    import networks

    class Module(network.NetworkModule):
        def __init__(self, own, weights, delta, share):
            super().__init__(own, weights)
            self.delta, self.share = delta, share

        def calc_updown(self, orig_weight):
            kept = getattr(self.sd_module, "network_weights_backup", None)
            W = (orig_weight if kept is None else kept).detach().to(orig_weight.device, torch.float32)
            change = (self.share * self.delta(W)).to(orig_weight)
            return self.finalize_updown(change, orig_weight, orig_weight.shape)

    own = network.Network(f"atom:{name}:{sha256(concept)[:12]}:{strength}", None)
    own.unet_multiplier = own.te_multiplier = 1.0
    for layers, share in by_strength(changes_of(sd_model, concept), strength):
        for place, (delta, _, _) in layers.values():
            key = place.removesuffix(".weight").replace(".", "_")
            module = sd_model.network_layer_mapping.get(key)
            if module is None:
                raise ConceptError(f"The Lora extension knows no layer {key!r}: is it a newer one?")
            weights = network.NetworkWeights(network_key=key, sd_key=key, w={}, sd_module=module)
            own.modules[key] = Module(own, weights, delta, share)
    networks.loaded_networks.append(own)


# ----------------------------------------------------------------------------------------- words


class Words:
    """Learned words as embeddings of the web UI, until they are forgotten."""

    def __init__(self):
        self._taught = []  # (model, word, the embedding of that name that was there before)

    def teach(self, sd_model, concept, strength):
        """Raises ConceptError where the vectors do not fit the text encoders."""
        if not concept.token or strength == 0:
            return
        parts = dict(zip(("token", "token2"), _encoders(sd_model), strict=False))
        vectors = {}
        for key, learned in concept.token.items():
            if key not in parts:
                raise ConceptError(f"The learned word {concept.trigger!r} is for another kind of base.")
            table = max(
                (part for part in parts[key].modules() if isinstance(part, torch.nn.Embedding)),
                key=lambda part: part.num_embeddings,
            )
            ids = parts[key].tokenize([concept.trigger])[0]
            word = Learned(concept.trigger, learned[:, 0], strength)
            vectors["clip_g" if key == "token2" else "clip_l"] = embeddings_of(ids, table.weight, word)
        device = table.weight.device
        vectors = {key: own.to(device) for key, own in vectors.items()}
        made = Embedding(vectors if len(vectors) > 1 else vectors["clip_l"], concept.trigger)
        made.vectors = len(vectors["clip_l"])
        made.shape = sum(own.shape[-1] for own in vectors.values())
        database = sd_hijack.model_hijack.embedding_db
        self._taught.append((sd_model, concept.trigger, database.word_embeddings.get(concept.trigger)))
        database.register_embedding_by_name(made, sd_model, concept.trigger)

    def forget(self):
        """What the words meant before is what they mean again."""
        database = sd_hijack.model_hijack.embedding_db
        for sd_model, word, before in reversed(self._taught):
            database.register_embedding_by_name(None, sd_model, word)
            if before is not None:
                database.register_embedding_by_name(before, sd_model, word)
        self._taught = []


def _encoders(sd_model):
    """The text encoder, or SDXL's two."""
    if getattr(sd_model, "is_sdxl", False):
        return [part for part in sd_model.conditioner.embedders if hasattr(part, "tokenize")]
    return [sd_model.cond_stage_model]
