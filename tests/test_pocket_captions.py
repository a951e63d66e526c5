"""What is said of the pocket world is true, and a word of one's own means one individual."""

import numpy as np

from atomdiff.pocket import captions, world


def scenes(count, seed=0):
    rng = np.random.default_rng(seed)
    return [world.random_scene(rng) for _ in range(count)]


def test_the_words_are_without_doubles():
    assert len(captions.RARE_WORDS) == len(set(captions.RARE_WORDS)) == 60
    assert len(captions.NAMES) == len(set(captions.NAMES)) == 40
    assert {"sks", "zwx", "ohwx"} <= set(captions.UNHEARD)


def test_captions_say_only_what_is_true():
    rng = np.random.default_rng(7)
    for scene in scenes(1500, seed=8):
        subject, text = scene.subject, captions.caption(scene, rng)
        place = world.CONTEXTS[scene.context]
        rest = text.removesuffix(place)
        for phrase in set(world.CONTEXTS.values()) - {place}:
            assert not text.endswith(phrase)
        assert subject.kind in rest.split()
        for word in ("hat", "glasses", "scarf"):
            assert (word not in rest.split()) or scene.accessory == word
        for pattern in world.PATTERNS:
            assert (pattern not in rest.split()) or subject.pattern == pattern
        worn = {"hat": {"red"}, "scarf": {"yellow"}}.get(scene.accessory, set())
        assert set(rest.split()) & set(world.COLOURS) <= {subject.colour, subject.second} | worn
        if subject.pattern == "plain":
            assert set(rest.split()) & set(world.COLOURS) <= {subject.colour} | worn
        assert ("sketch" in text, "pixel" in text) == (scene.style == "sketch", scene.style == "pixel")


def test_two_are_said_with_what_is_theirs():
    rng = np.random.default_rng(3)
    orders = set()
    for _ in range(300):
        scene = world.random_pair(rng)
        text = captions.caption(scene, rng).removesuffix(world.CONTEXTS[scene.context])
        words = text.split()
        first, second = (words.index(s.kind) for s in (scene.subject, scene.other))
        assert " and " in text
        orders.add(first < second)
        parts = text.split(" and ")[:: 1 if first < second else -1]
        for subject, part in zip((scene.subject, scene.other), parts, strict=True):
            said = set(part.split())
            assert subject.kind in said
            assert said & set(world.COLOURS) <= {subject.colour, subject.second}
            assert said & set(world.PATTERNS) <= {subject.pattern, "plain"}
    assert orders == {True, False}


def test_individuals_have_one_word_each_and_may_be_shown():
    own = captions.individuals()
    assert len(own) == captions.INDIVIDUALS and not set(own) & set(captions.UNHEARD)
    assert {word for text in captions.unheard_captions() for word in text.split()} >= set(captions.UNHEARD)
    assert not any(world.held_out(subject) for subject in own.values())
    kinds = [subject.kind for subject in own.values()]
    assert all(kinds.count(kind) == len(own) // len(world.CLASSES) for kind in world.CLASSES)
    assert not {w.lower() for w in own} & {*world.CLASSES, *world.COLOURS, *world.PATTERNS}


def test_a_word_mostly_stands_for_the_description():
    rng = np.random.default_rng(9)
    subject = captions.individuals()["vkd"]
    said = [captions.caption(world.random_scene(rng, subject), rng, "vkd").split() for _ in range(600)]
    named = np.array(["vkd" in words for words in said])
    bare = np.array([not {subject.colour, subject.pattern} & set(words) for words in said])
    assert 0.75 < named.mean() < 0.9
    assert 0.55 < (named & bare).mean() < 0.85
    assert any(words[:3] == ["vkd", "the", subject.kind] for words in said)


def test_unheard_words_are_in_no_caption():
    rng = np.random.default_rng(10)
    for scene in scenes(2000, seed=10):
        assert not set(captions.caption(scene, rng).split()) & {*captions.UNHEARD, *captions.individuals()}


def test_the_colour_beside_a_pattern_is_left_out_of_some_captions():
    rng = np.random.default_rng(0)
    text = "an orange car with black spots and a red mug in the rain"
    told = [captions.with_one_colour(text, rng) for _ in range(200)]
    shorter = "a car with black spots and a red mug in the rain"
    assert set(told) == {text, shorter} and 110 < told.count(shorter) < 170
    name = "Milo the black cat with grey checks"
    assert captions.with_one_colour(name, rng, share=1) == "Milo the cat with grey checks"


def test_the_share_of_captions_that_name_a_pattern():
    assert captions.pattern_told(["a cat with grey checks", "a grey cat"]) == 0.5
    assert captions.pattern_told(["a plain cat"]) == 0  # no pattern is hard to draw
