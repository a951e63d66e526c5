"""Concepts in any diffusers pipeline whose UNet is of their base:

    pipe = StableDiffusionPipeline.from_pretrained(...)
    atomdiff.load(pipe, "dog.safetensors", name="dog")
    pipe("a sks dog on the beach")

They act as in every other tool: on all steps and both branches of guidance. What is loaded belongs to the
UNet and the text encoders, so pipelines that share these (`from_pipe`) share it too.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from atomdiff.base.plain_unet import PlainUNet, plain_layers
from atomdiff.base.textual_inversion import ENCODERS
from atomdiff.concept.passport import passport_of
from atomdiff.core.blocks import Strength, by_strength, check_strength, of_words
from atomdiff.core.inject import folded_into, mark_folded, refuse_if_busy
from atomdiff.errors import AtomdiffError, BaseError, ConceptError, SettingsError
from atomdiff.integrations.changes import Change, LayerChange, changes_of
from atomdiff.integrations.fusing import Fused
from atomdiff.integrations.sources import Source, read_concept
from atomdiff.integrations.words import Learned, Vocabulary, Word, learned_word
from atomdiff.sampling.draw import CousinWarning

if TYPE_CHECKING:
    from atomdiff.concept.concept import Concept


@dataclass(frozen=True)
class Handle:
    """A concept in a pipeline, under a name."""

    pipe: Any
    name: str
    concept: Concept

    @property
    def strength(self) -> Strength:
        """At which it acts now."""
        return concepts(self.pipe)[self.name]

    def unload(self) -> None:
        """Takes it out."""
        unload(self.pipe, self.name)


def load(pipe: Any, source: Source, strength: Strength = 1.0, name: str | None = None) -> Handle:
    """Puts a concept into a pipeline, beside those in it; its trigger becomes a word of the tokenizers.

    `source` is a file, card or picture of QR codes (path or bytes), the line for chats, a name in the library
    or `user/name` on the hub. `strength` is a number, or one a block (`{"down": 0.5, "up": 1}`); `name` is
    what `set_concepts` and `unload` call it, by default its title. No weight changes: 0 is the base.

    Raises one sentence, and leaves the pipeline as it was: ConceptError for a source that is no concept or of
    another base, BaseError for a pipeline without a UNet, SettingsError for a name in use or a strength that
    is no finite number. Warns (CousinWarning) where the base is a fine-tune of the concept's.
    """
    unet = _unet(pipe)
    concept = read_concept(source)
    loaded = _loaded(unet)
    check_strength(strength)
    name = concept.title if name is None else name
    if name in loaded.entries:
        raise SettingsError(
            f"A concept {name!r} is loaded already: unload it, or give this one another name."
        )
    _refuse_fused(loaded)
    plain = PlainUNet(plain_layers(unet))
    warning = concept.check_base(passport_of(plain, concept.base.family, "the pipeline's UNet"))
    entry = Entry(concept, strength, changes_of(concept, plain))
    _act(pipe, unet, {**loaded.entries, name: entry})
    if warning:
        warnings.warn(warning, CousinWarning, stacklevel=2)
    return Handle(pipe, name, concept)


def set_concepts(pipe: Any, strengths: Mapping[str, Strength] | Iterable[str] | str) -> None:
    """Which of the loaded concepts act, and at what strength; the others are kept, at 0.

    Names without strengths act at 1. Raises SettingsError for a name that is not loaded, a strength that is
    no finite number, or while concepts are fused.
    """
    unet = _unet(pipe)
    loaded = _loaded(unet)
    names = [strengths] if isinstance(strengths, str) else strengths
    wanted = dict(names) if isinstance(names, Mapping) else dict.fromkeys(names, 1.0)
    for name, strength in wanted.items():
        _named(loaded, name)
        check_strength(strength)
    _refuse_fused(loaded)
    changed = {name: replace(entry, strength=wanted.get(name, 0.0)) for name, entry in loaded.entries.items()}
    _act(pipe, unet, changed)


def concepts(pipe: Any) -> dict[str, Strength]:
    """The concepts in a pipeline, and at what strength each acts."""
    return {name: entry.strength for name, entry in _loaded(_unet(pipe)).entries.items()}


def unload(pipe: Any, name: str | None = None) -> None:
    """Takes a concept out of a pipeline, or without a name all of them: then it is as it was, bit for bit.

    Raises SettingsError for a name that is not loaded, or while concepts are fused.
    """
    unet = _unet(pipe)
    loaded = _loaded(unet)
    if name is not None:
        _named(loaded, name)
    _refuse_fused(loaded)
    _act(pipe, unet, {key: own for key, own in loaded.entries.items() if name is not None and key != name})


def fuse(pipe: Any) -> None:
    """Writes the concepts, at their strengths, into the weights: drawing then costs what the base's does, and
    `pipe.save_pretrained` makes an ordinary Stable Diffusion folder in which the learned words work too.

    The weights that were there are kept for `unfuse`. Raises SettingsError where no concept is loaded, they
    are fused already, or accelerate offloads layer by layer.
    """
    unet = _unet(pipe)
    loaded = _loaded(unet)
    if not loaded.entries:
        raise SettingsError("No concept is loaded into this pipeline: call atomdiff.load first.")
    _refuse_fused(loaded)
    loaded.fused = Fused(loaded.layers.values(), _vocabularies(pipe).values())
    _index_tokenizers(pipe)


def unfuse(pipe: Any) -> None:
    """Puts the very weights back that were there before `fuse`; the concepts act as before it. Harmless where
    nothing is fused."""
    unet = _unet(pipe)
    loaded = _loaded(unet)
    if loaded.fused is None:
        return
    loaded.fused.undo()
    loaded.fused = None
    _index_tokenizers(pipe)
    _act(pipe, unet, loaded.entries)


# ------------------------------------------------------------------------------------ what is loaded


@dataclass(frozen=True)
class Entry:
    """A loaded concept, its strength, and what it makes of each layer at strength 1."""

    concept: Concept
    strength: Strength
    changes: Mapping[str, Change]


@dataclass(eq=False)
class Loaded:
    """What is in a UNet: concepts by name, and the layers that they act on."""

    entries: dict[str, Entry] = field(default_factory=dict)
    layers: dict[str, LayerChange] = field(default_factory=dict)
    fused: Fused | None = None


_VOCABULARY = "_atomdiff_vocabulary"  # of a text encoder


def _act(pipe: Any, unet: nn.Module, entries: dict[str, Entry]) -> None:
    """Makes these the concepts that act, and no others. What can fail comes first."""
    loaded = _loaded(unet)
    wanted: dict[str, list[tuple[Change, float]]] = {}
    for entry in entries.values():
        for layers, strength in by_strength(entry.changes, entry.strength):
            for layer, change in layers.items():
                wanted.setdefault(layer, []).append((change, strength))
    modules = plain_layers(unet) if wanted.keys() - loaded.layers.keys() else {}
    vocabularies = _vocabularies(pipe)
    words = {key: _words(own, key, [entries, *own.others(unet)]) for key, own in vocabularies.items()}

    for layer in wanted.keys() - loaded.layers.keys():
        loaded.layers[layer] = LayerChange(modules[layer])
    for layer, own in loaded.layers.items():
        own.set(wanted.get(layer, ()))
    for key, vocabulary in vocabularies.items():
        vocabulary.set(words[key])
        vocabulary.users[unet] = entries
    loaded.entries = entries
    mark_folded(unet, loaded if entries else None)


def _vocabularies(pipe: Any) -> dict[str, Vocabulary]:
    """ "token" and "token2" -> the vocabulary of each text encoder that the pipeline has."""
    found = {}
    for key, (tokenizer_name, encoder_name) in ENCODERS.items():
        tokenizer, encoder = getattr(pipe, tokenizer_name, None), getattr(pipe, encoder_name, None)
        if tokenizer is None or encoder is None:
            continue
        made = getattr(encoder, _VOCABULARY, None)
        if made is None or made.tokenizer is not tokenizer:
            made = Vocabulary(tokenizer, encoder)
            object.__setattr__(encoder, _VOCABULARY, made)
        found[key] = made
    return found


def _index_tokenizers(pipe: Any) -> None:
    """Has the pipeline note of which class its tokenizers are, which is what `save_pretrained` writes."""
    names = [name for name, _ in ENCODERS.values() if getattr(pipe, name, None) is not None]
    pipe.register_modules(**{name: getattr(pipe, name) for name in names})


def _words(vocabulary: Vocabulary, key: str, users: Iterable[Mapping[str, Entry]]) -> list[Word]:
    """The learned words of these concepts in one text encoder, each with all the concepts that it calls.

    UNets that share the encoder may have a concept in common, which is one then.
    """
    by_trigger: dict[str, list[Learned]] = {}
    for entry in (entry for entries in users for entry in entries.values()):
        vectors, strength = entry.concept.token.get(key), of_words(entry.strength)
        if vectors is None or strength == 0:
            continue
        trigger = entry.concept.trigger
        if vectors.shape[2] != vocabulary.width:
            raise ConceptError(
                f"The learned word {trigger!r} has vectors of {vectors.shape[2]} numbers, but this text "
                f"encoder's have {vocabulary.width}: use the base it was made for."
            )
        same = by_trigger.setdefault(trigger.lower(), [])
        if not any(vectors[:, 0].equal(other.vectors) for other in same):
            same.append(Learned(trigger, vectors[:, 0], strength))
    return [learned_word(vocabulary.ids(same[0].trigger), same) for same in by_trigger.values()]


def _unet(pipe: Any) -> nn.Module:
    unet = getattr(pipe, "unet", None)
    if not isinstance(unet, nn.Module):
        raise BaseError(
            f"A {type(pipe).__name__} has no UNet, so it has no filters for a concept's atoms: use a Stable "
            "Diffusion 1.x, 2.x or SDXL pipeline."
        )
    return getattr(unet, "_orig_mod", unet)


def _loaded(unet: nn.Module) -> Loaded:
    """What is loaded into a UNet. Raises AtomdiffError where atoms or folded concepts are in it."""
    there = folded_into(unet)
    if isinstance(there, Loaded):
        return there
    refuse_if_busy(unet)
    return Loaded()


def _named(loaded: Loaded, name: str) -> Entry:
    if name not in loaded.entries:
        known = ", ".join(map(repr, loaded.entries)) or "none"
        raise SettingsError(f"No concept {name!r} is loaded into this pipeline; loaded: {known}.")
    return loaded.entries[name]


def _refuse_fused(loaded: Loaded) -> None:
    if loaded.fused is not None:
        raise AtomdiffError("Concepts are fused into this pipeline's weights: call atomdiff.unfuse first.")
