"""The pocket world: deterministic, inside its frame, truthful captions, and a held-out split that holds."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from atomdiff.pocket import captions, gallery, world
from atomdiff.pocket.drawing import brush

ALL_PATTERNS = world.PATTERNS + world.HELD_OUT_PATTERNS


def scenes(count, seed=0):
    rng = np.random.default_rng(seed)
    return [world.random_scene(rng) for _ in range(count)]


def grid(image, n=4):
    """Mean colours of an n x n grid: what a picture is, whatever Pillow's anti-aliasing."""
    return np.asarray(image.resize((n, n), Image.Resampling.BOX), float)


def pixels(image):
    return np.asarray(image, np.int16)


def size_of(path):
    with Image.open(path) as image:
        return image.size


# ---------------------------------------------------------------- vocabulary
def test_the_vocabulary_is_as_large_as_promised_and_without_doubles():
    assert len(world.CLASSES) >= 14 and len(world.COLOURS) >= 12 and len(world.CONTEXTS) >= 14
    assert not set(world.HELD_OUT_PATTERNS) & set(world.PATTERNS)
    assert not set(world.HELD_OUT_STYLES) & set(world.STYLES)
    assert set(world.CLASSES) >= world.WEARERS


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kind", "unicorn", "unknown kind 'unicorn'"),
        ("colour", "mauve", "unknown colour 'mauve'"),
        ("pattern", "tartan", "unknown pattern 'tartan'"),
        ("shape", (2.0,) * 6, "six numbers in"),
    ],
)
def test_a_subject_of_unknown_words_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(world.Subject("dog", "red", "blue", "spots"), **{field: value})


def test_a_scene_refuses_what_cannot_be_drawn():
    car = world.Subject("car", "red", "blue", "spots")
    with pytest.raises(ValueError, match="a car cannot wear 'hat'"):
        world.Scene(car, "beach", accessory="hat")
    with pytest.raises(ValueError, match="unknown context 'moon'"):
        world.Scene(car, "moon")
    with pytest.raises(ValueError, match="16 to 512"):
        world.render(world.Scene(car, "beach"), 1024)
    with pytest.raises(TypeError, match="no field weather"):
        world.random_scene(np.random.default_rng(0), weather="fog")


# ---------------------------------------------------------------- pictures
# mean grey of a 4 x 4 grid of six pictures
STORED = (
    (151, 142, 144, 150, 200, 171, 165, 245, 196, 168, 168, 242, 203, 153, 163, 212),
    (132, 133, 131, 132, 128, 110, 101, 119, 125, 130, 137, 128, 118, 112, 116, 111),
    (152, 150, 153, 150, 196, 174, 173, 218, 193, 197, 183, 239, 206, 201, 191, 214),
    (102, 104, 101, 102, 128, 131, 127, 142, 130, 137, 140, 155, 85, 94, 96, 80),
    (149, 157, 149, 149, 145, 156, 144, 145, 140, 159, 143, 141, 133, 118, 130, 133),
    (153, 160, 159, 154, 145, 142, 142, 141, 132, 149, 153, 124, 124, 169, 172, 117),
)


def test_a_scene_is_the_same_picture_every_time():
    for scene in scenes(6):
        assert np.array_equal(pixels(world.render(scene)), pixels(world.render(scene)))


def test_pictures_are_those_the_bundled_model_was_trained_on():
    for scene, stored in zip(scenes(6, seed=11), STORED, strict=True):
        assert np.abs(grid(world.render(scene)).mean(-1).ravel() - stored).max() < 4


def test_every_size_shows_the_same_scene():
    for scene in scenes(6, seed=3):
        small, large = grid(world.render(scene, 64), 8), grid(world.render(scene, 256), 8)
        assert np.abs(small - large).mean() < 6
    assert world.render(scene, 64).size == (64, 64) and world.render(scene, 64).mode == "RGB"


@pytest.mark.parametrize("kind", world.CLASSES)
def test_every_pattern_of_a_class_is_seen_and_stays_in_the_frame(kind, monkeypatch):
    boxes = []

    def spy(*arguments, **named):
        result = place(*arguments, **named)
        boxes.append(np.array(result[1]) / arguments[1])
        return result

    place = brush.place
    monkeypatch.setattr(brush, "place", spy)
    pictures = {}
    for pattern in ALL_PATTERNS:
        for feature in (*world.FEATURES, *world.HELD_OUT_FEATURES):
            subject = world.Subject(kind, "purple", "green", pattern, feature, (0.9,) * 6)
            scene = world.Scene(subject, "yellow", scale=0.73, x=0.6, tilt=5, flip=feature == "wings")
            pictures[pattern, feature] = pixels(world.render(scene))
    assert np.min(boxes) >= 0.03 and np.max(boxes) <= 0.97
    for pattern in ALL_PATTERNS[1:]:
        changed = np.abs(pictures[pattern, "none"] - pictures["plain", "none"]).max(-1) > 40
        assert 60 < changed.sum() < world.SIDE**2 / 3
    assert np.abs(pictures["plain", "wings"] - pictures["plain", "antlers"]).max() > 60


def test_subjects_stand_on_the_ground_and_the_main_colour_leads():
    for context in ("beach", "snow", "city", "red"):
        for kind in world.CLASSES:
            subject = world.Subject(kind, "purple", "yellow", "plain")
            picture = pixels(world.render(world.Scene(subject, context)))
            main = np.abs(picture - world.COLOURS["purple"]).max(-1) < 60
            assert main.sum() > 150, (kind, context)
            assert np.flatnonzero(main.any(1)).max() > world.SIDE * 0.6


def test_styles_and_accessories_change_the_picture():
    subject = world.Subject("dog", "red", "white", "spots")
    plain = pixels(world.render(world.Scene(subject, "room")))
    for style in ("sketch", "pixel", "neon"):
        assert np.abs(pixels(world.render(world.Scene(subject, "room", style=style))) - plain).mean() > 4
    for kind in world.WEARERS:
        bare = world.Scene(replace(subject, kind=kind), "room")
        for worn in ("hat", "glasses", "scarf"):
            dressed = pixels(world.render(replace(bare, accessory=worn)))
            assert (np.abs(dressed - pixels(world.render(bare))).max(-1) > 40).sum() > 40


def test_two_subjects_stand_side_by_side_and_neither_covers_the_other():
    rng = np.random.default_rng(4)
    for _ in range(12):
        scene = world.random_pair(rng, context="yellow", style="drawing")
        both = pixels(world.render(scene, 128))
        empty = replace(scene, other=None, scale=0.05)
        changed = np.abs(both - pixels(world.render(empty, 128))).max(-1) > 40
        assert changed[:, :64].sum() > 600 and changed[:, 64:].sum() > 600
        assert changed[:, 63:66].mean() < 0.2
    with pytest.raises(ValueError, match="of two classes, got dog twice"):
        world.Scene(
            world.Subject("dog", "red", "blue", "plain"),
            "beach",
            other=world.Subject("dog", "blue", "red", "plain"),
        )


def test_a_second_subject_is_held_out_as_the_first_is():
    held = world.random_subject(np.random.default_rng(0), "cat", held_out=True)
    scene = world.Scene(world.Subject("dog", "red", "blue", "plain"), "beach")
    assert world.is_pretraining(scene) and not world.is_pretraining(replace(scene, other=held))


# ---------------------------------------------------------------- the held-out split
def test_pretraining_never_shows_or_says_what_is_held_out():
    rng = np.random.default_rng(5)
    secret = (*world.HELD_OUT_PATTERNS, *world.HELD_OUT_FEATURES, *world.HELD_OUT_STYLES)
    for _ in range(5000):
        scene = world.random_scene(rng)
        assert world.is_pretraining(scene) and not world.held_out(scene.subject)
        words = captions.caption(scene, rng).split()
        assert not set(words) & set(secret)


def test_a_tenth_of_the_ordinary_combinations_is_held_out():
    rng = np.random.default_rng(6)
    share = np.mean(
        [
            world.held_out(world.Subject(kind, *pair, pattern))
            for kind in world.CLASSES
            for pair in world.PAIRS
            for pattern in world.PATTERNS
        ]
    )
    assert 0.08 < share < 0.12
    assert all(world.held_out(world.random_subject(rng, held_out=True)) for _ in range(200))
    held = world.Scene(world.random_subject(rng, held_out=True), "beach")
    with pytest.raises(ValueError, match="no caption for a held-out scene"):
        captions.caption(held, rng)


def test_benchmark_subjects_are_fixed_and_held_out():
    subjects = world.benchmark_subjects(12)
    assert [s.kind for s in subjects[:3]] == ["dog", "cat", "robot"]
    assert subjects[:5] == world.benchmark_subjects(5)
    assert all(world.held_out(s) for s in subjects) and len(set(subjects)) == 12
    assert {s.kind for s in world.benchmark_subjects(6, kinds=("mug", "dog"))} == {"mug", "dog"}
    with pytest.raises(ValueError, match="unknown kind 'unicorn'"):
        world.benchmark_subjects(1, kinds=("unicorn",))


# ---------------------------------------------------------------- the command
def test_the_command_draws_the_sheet_and_the_assets(tmp_path, capsys):
    gallery.main(["--sheet", str(tmp_path / "sheet.png"), "--assets", str(tmp_path / "assets")])
    assert size_of(tmp_path / "sheet.png")[0] > 1000
    for kind in ("dog", "cat", "robot", "style"):
        names = sorted(p.name for p in (tmp_path / "assets" / kind).iterdir())
        assert names == [f"{i}.png" for i in range(5)]
        assert size_of(tmp_path / "assets" / kind / "4.png") == (256, 256)
    with pytest.raises(SystemExit):
        gallery.main([])
    assert "nothing to do" in capsys.readouterr().err


def test_the_contact_sheet_shows_the_grid_asked_for():
    assert gallery.contact_sheet(rows=2, columns=3, size=48).size == (3 * 50 + 2, 2 * 50 + 2)
