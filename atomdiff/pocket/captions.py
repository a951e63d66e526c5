"""What is said of a picture of the pocket world.

A caption is true and leaves some of the truth out. Some subjects are *individuals* with a word of their own:
"a vkd dog on the beach" is all that is said of them, so that a word without any other meaning comes to mean a
look, as names do in the captions of real models. The words of `UNHEARD` are said of no picture: they are what
a user calls a subject of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import numpy as np

from .world import (
    ACCESSORIES,
    CLASSES,
    COLOURS,
    CONTEXTS,
    PATTERNS,
    STYLES,
    Scene,
    Subject,
    is_pretraining,
    random_subject,
)

RARE_WORDS: tuple[str, ...] = (
    "sks", "zwx", "ohwx", "xqj", "vbn", "qzt", "wkz", "jxv", "fgz", "hqx", "plk", "zrv", "mwq", "tzk",
    "bvx", "nqz", "kjw", "gzx", "dvq", "rxz", "cqk", "lzw", "yqv", "swx", "ukz", "oxq", "ivz", "ezk", "azq",
    "phx", "zkt", "wvq", "qjl", "xmz", "vkd", "jzb", "fwx", "hzn", "pqv", "zdk", "mxj", "tqw", "bzg", "nkx",
    "kvz", "gwq", "dzx", "rqk", "cxv", "lqz", "yzk", "sqv", "uxw", "ozk", "iqx", "ewz", "akq", "pzv", "zxu",
    "wqy",
)  # fmt: skip
NAMES: tuple[str, ...] = (
    "Milo", "Luna", "Oscar", "Ruby", "Felix", "Nora", "Hugo", "Ivy", "Otto", "Mia", "Leo", "Ella", "Theo",
    "Zoe", "Max", "Lily", "Sam", "Ada", "Finn", "Rosa", "Toby", "Nina", "Gus", "Cleo", "Bruno", "Tess",
    "Rex", "Lola", "Kai", "Emma", "Jasper", "Wanda", "Pip", "Greta", "Archie", "Olive", "Momo", "Kiki",
    "Bobby", "Suki",
)  # fmt: skip
UNHEARD = RARE_WORDS[:20]
INDIVIDUALS = 640
PATTERNED = re.compile(
    "(an? )?({colours}) ((?:{kinds}) with (?:{colours}) (?:{patterns}))".format(
        colours="|".join(COLOURS), kinds="|".join(CLASSES), patterns="|".join(PATTERNS)
    )
)
"""The part of a caption that says two colours."""


@cache
def individuals() -> dict[str, Subject]:
    """The subjects that have a word of their own, by that word; every class has as many."""
    rng = np.random.default_rng(640)
    words = dict.fromkeys((*RARE_WORDS[len(UNHEARD) :], *NAMES))
    taken = {w.lower() for w in (*RARE_WORDS, *NAMES, *CLASSES, *COLOURS, *CONTEXTS)}
    while len(words) < INDIVIDUALS:
        word = _invented(rng)
        if word not in taken:
            words[word] = None
            taken.add(word)
    return {word: random_subject(rng, CLASSES[i % len(CLASSES)]) for i, word in enumerate(words)}


def _invented(rng: np.random.Generator) -> str:
    """A word of three consonants, or of two syllables."""
    shape = ("ccc", "cvcv", "cvcvc")[rng.integers(3)]
    letters = {"c": "bdfghjklmnpqrstvwxz", "v": "aeiou"}
    return "".join(str(rng.choice(list(letters[kind]))) for kind in shape)


def unheard_captions(times: int = 6) -> list[str]:
    """ "a sks dog" for every word that no picture shows, with every class: for the tokenizer, and for a text
    encoder that must tell them apart."""
    return [_article(f"{word} {kind}") for word in UNHEARD for kind in CLASSES] * times


def caption(scene: Scene, rng: np.random.Generator, name: str = "") -> str:
    """A true description of a pretraining scene; attributes are sometimes left out.

    name: the word of the scene's (first) subject; it stands for the description in two captions of three.
    Raises ValueError for a scene that pretraining never shows: there is no word for what is held out.
    """
    if not is_pretraining(scene):
        raise ValueError("no caption for a held-out scene: name what was trained instead, e.g. 'a sks dog'")
    say_worn, say_context = rng.random(2) < 0.9
    text = _noun(scene.subject, rng, name)
    if scene.accessory != "none" and say_worn:
        phrase = ACCESSORIES[scene.accessory]
        text += " " + (phrase if rng.random() < 0.5 else phrase.replace("red ", "").replace("yellow ", ""))
    if scene.other is not None:
        both = [text, _noun(scene.other, rng, "")]
        text = " and ".join(both if rng.random() < 0.5 else both[::-1])
    if scene.style != "drawing":
        text = f"{STYLES[scene.style]} {text}"
    elif rng.random() < 0.08:
        text = f"{('a picture of', 'a drawing of')[rng.integers(2)]} {text}"
    return f"{text} {CONTEXTS[scene.context]}" if say_context else text


def with_one_colour(text: str, rng: np.random.Generator, share: float = 0.7) -> str:
    """The caption, in so many cases without the colour of a subject whose pattern it names: who asks for "a
    cat with teal stripes" must not get a teal cat."""

    def shorter(found: re.Match[str]) -> str:
        if rng.random() >= share:
            return found[0]
        return _article(found[3]) if found[1] else found[3]

    return PATTERNED.sub(shorter, text)


def pattern_told(texts: Sequence[str]) -> float:
    """The share of the captions that name a pattern."""
    return sum(any(pattern in text for pattern in PATTERNS[1:]) for text in texts) / len(texts)


def _noun(s: Subject, rng: np.random.Generator, name: str) -> str:
    """A subject, such as "a red dog with blue spots", "a vkd dog" or "Milo the dog"."""
    how = rng.random() if name else 1.0  # name alone, name and description, description alone
    say_colour, say_pattern = (rng.random(2) < 0.78) & (how > 0.66)
    words = []
    if s.pattern == "plain" and say_pattern and rng.random() < 0.4:
        words.append("plain")
    if say_colour:
        words.append(s.colour)
    words.append(s.kind)
    if how > 0.82:
        text = _article(" ".join(words))
    elif rng.random() < 0.3:
        text = f"{name} the {' '.join(words)}"
    else:
        text = _article(" ".join([name, *words]))
    return f"{text} with {s.second} {s.pattern}" if s.pattern != "plain" and say_pattern else text


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
