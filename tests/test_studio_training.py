"""Trainings of the studio and its library, without a browser."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from PIL import Image

from atomdiff.concept.concept import Concept
from atomdiff.errors import ConceptError, SettingsError
from atomdiff.studio import drawing, film, form, insight, shelf, teaching
from atomdiff.studio.course import Course, Wish
from atomdiff.studio.desk import Desk
from atomdiff.studio.drawing import Order
from atomdiff.studio.pace import Pace
from atomdiff.studio.tabs import train

ROOT = Path(__file__).parent.parent
FEW = {"max_train_steps": 3, "with_prior_preservation": False, "num_atoms": 9, "linear_atoms": "none"}


@pytest.fixture(scope="module")
def pictures() -> tuple[Path, ...]:
    return tuple(sorted((ROOT / "assets" / "dog").glob("*.png")))


def wish(dropped, **changes) -> Wish:
    return Wish(**({"files": dropped, "class_word": "dog", "base": "tiny-sd1", "more": FEW} | changes))


def finished(studio, course, seconds: float = 60):
    end = time.monotonic() + seconds
    while not studio.trainings.look(course).over:
        assert time.monotonic() < end, studio.trainings.look(course)
        time.sleep(0.02)
    return studio.trainings.look(course)


@pytest.fixture(scope="module")
def trained(studio, pictures) -> Course:
    course = studio.trainings.start("me", wish(pictures, name="Bello"))
    view = finished(studio, course)
    assert view.state == "done", view.error
    return course


def test_a_training_keeps_states_with_pictures_and_gives_a_concept(studio, trained):
    assert trained.timeline().steps == (1, 2, 3)
    assert {step: len(files) for step, files in trained.frames().items()} == {1: 2, 2: 2, 3: 2}
    assert [step for step, _ in trained.look().losses] == [1, 2, 3]
    entry = studio.trainings.keep("me", trained.ident, 2)
    assert (entry.title, entry.trigger, entry.class_word) == ("Bello", "sks", "dog")
    assert entry.thumbnail is not None
    assert Concept.load(entry.path).training["steps"] == 2
    order = Order("tiny-sd1", "a sks dog", ((entry.id, {"down": 0.5}),), steps=1, seed=0)
    look = studio.desk.submit("me", drawing.drawn(studio, "me", order)).wait(60)
    assert look.state == "done", look.error
    with pytest.raises(ConceptError, match="no state of step 9"):
        studio.trainings.keep("me", trained.ident, 9)


def test_texts_of_the_pictures_names_are_their_captions(studio, pictures, tmp_path):
    files = [tmp_path / name for name in ("b.png", "a.png", "b.txt")]
    for file, picture in zip(files, pictures, strict=False):
        file.write_bytes(picture.read_bytes())
    files[2].write_text("sks art of a dog\nin a meadow", "utf-8")
    asked = wish(tuple(files), class_word="art")
    assert asked.pictures == tuple(files[:2]) and set(asked.captions) == {"b"}
    course = studio.trainings.start("captions", asked)
    view = finished(studio, course)
    assert view.state == "done", view.error
    kept = {path.name: path.read_bytes() for path in (course.folder / "pictures").iterdir()}
    named = ("000.png", "001.png", "000.txt")
    assert kept == {name: file.read_bytes() for name, file in zip(named, files, strict=True)}
    shown = train._tiles(studio, list(map(str, files)), "tiny-sd1")
    assert shown.count("<img") == 2 and shown.count("sks art of a dog in a meadow</figcaption>") == 1
    files[2].write_bytes(b"\xff\xfe\x00")
    assert "b.txt&#x27; is not UTF-8" in train._tiles(studio, list(map(str, files)), "tiny-sd1")
    with pytest.raises(SettingsError, match="says what is in a picture called 'b'"):
        wish((files[1], files[2]))
    with pytest.raises(SettingsError, match="There are no pictures"):
        wish((files[2],))


def test_trainings_are_their_owners(studio, trained):
    assert [course.ident for course in studio.trainings.of("me")] == [trained.ident]
    assert studio.trainings.of("you") == []
    for act in (studio.trainings.get, studio.trainings.delete, studio.trainings.go_on):
        with pytest.raises(SettingsError, match="no such training"):
            act("you", trained.ident)


def test_a_drawing_goes_first_stopping_keeps_and_going_on_finishes(studio, pictures):
    course = studio.trainings.start("you", wish(pictures, more=FEW | {"max_train_steps": 40}))
    while studio.trainings.look(course).step < 1:
        time.sleep(0.01)
    with pytest.raises(SettingsError, match="One training at a time"):
        studio.trainings.start("you", wish(pictures))
    order = Order("tiny-sd1", "a dog", steps=2, seed=5)
    during = studio.desk.submit("you", drawing.drawn(studio, "you", order)).wait(60)
    assert during.state == "done", during.error
    assert not studio.trainings.look(course).over
    other = studio.desk.submit("me", drawing.drawn(studio, "me", Order("elsewhere", "a dog"))).wait(60)
    assert other.state == "failed"
    assert studio.desk.cancel("you") == 0  # what stops drawings does not stop trainings
    assert studio.trainings.stop("you") == 1
    view = finished(studio, course)
    assert view.state == "stopped"
    assert course.timeline().steps[-1] == view.step < 40
    after = studio.desk.submit("you", drawing.drawn(studio, "you", order)).wait(60)
    with Image.open(during.results[0].file) as one, Image.open(after.results[0].file) as two:
        assert one.tobytes() == two.tobytes()  # between two steps the base is the base
    undrawn = course.timeline().steps[-1]
    assert studio.desk.submit("you", teaching.frame(studio, course, undrawn)).wait(60).state == "done"
    assert len(course.frames()[undrawn]) == 2
    studio.trainings.go_on("you", course.ident)
    view = finished(studio, course)
    assert (view.state, view.step) == ("done", 40), view.error
    assert [step for step, _ in view.losses] == list(range(1, 41))


def test_a_later_studio_knows_the_trainings(studio, trained, tmp_path):
    again = Course.read(trained.folder)
    assert again.look() == trained.look()
    assert again.owner == trained.owner != "me"
    told = json.loads((trained.folder / "training.json").read_text())
    told["view"]["state"] = "running"
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "training.json").write_text(json.dumps(told))
    assert Course.read(tmp_path / "killed").look().state == "stopped"
    (tmp_path / "killed" / "training.json").write_text('{"owner": 1}')
    with pytest.raises(KeyError):
        Course.read(tmp_path / "killed")


def test_a_training_that_cannot_work_is_told_and_can_be_deleted(studio, tmp_path):
    (tmp_path / "no.png").write_bytes(b"no picture")
    course = studio.trainings.start("them", wish((tmp_path / "no.png",)))
    view = finished(studio, course)
    assert view.state == "failed"
    assert "No usable picture" in view.error
    studio.trainings.delete("them", course.ident)
    assert studio.trainings.of("them") == []
    assert not course.folder.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": ()}, "There are no pictures"),
        ({"files": (Path("x.png"),) * 101}, "101 pictures are more"),
        ({"class_word": " "}, "Say what is in the pictures"),
        ({"quality": "perfect"}, "fast, good, best"),
        ({"more": {"output_dir": "/etc"}}, "no setting 'output_dir'"),
        ({"more": {"class_data_dir": "/"}}, "no setting 'class_data_dir'"),
        ({"more": {"max_train_steps": 10**9}}, "1 to 100,000 steps"),
        ({"more": {"max_train_steps": "many"}}, "1 to 100,000 steps"),
        ({"more": {"seed": "x"}}, "--seed must be of type int"),
        ({"base": "/etc"}, "not started with the base"),
        ({"name": "../x"}, "plain file name"),
    ],
)
def test_wishes_that_cannot_work(studio, pictures, changes, message):
    with pytest.raises(SettingsError, match=message):
        studio.trainings.start("nobody", wish(pictures, **changes))
    assert studio.trainings.of("nobody") == []


def test_a_number_left_blank_on_the_page_is_left_open(pictures):
    from atomdiff.studio.course import MORE
    from atomdiff.studio.tabs import train

    blank = {"max_train_steps": 0, "seed": 0, "num_atoms": 0}  # as a page sends it
    values = [list(pictures), "dog", "", "good", "tiny-sd1", "", "", *(blank.get(name) for name in MORE)]
    assert train.wish(values).more == {"trigger": "", "validation_prompt": "", "seed": 0, "num_atoms": 0}


def test_time_and_size_are_measured_once_and_remembered(studio, pictures):
    quiet = {"linear_atoms": "none", "num_atoms": 4}
    asked = wish(pictures, more=quiet | {"with_prior_preservation": True})
    assert studio.trainings.expected(asked) == (600, None, None)
    look = studio.trainings.measure("me", asked).wait(60)
    assert look.state == "done", look.error
    steps, seconds, size = studio.trainings.expected(asked)
    pace = look.results[0]
    assert (steps, size) == (600, pace.size)
    assert seconds == pytest.approx(600 * pace.step + (10 * 2 + 100) * pace.picture)
    assert studio.trainings.expected(wish(pictures, more=quiet)) == (600, None, None)
    faster = studio.trainings.expected(wish(pictures, quality="fast", more=asked.more))
    assert faster[0] == 200
    assert faster[1] < seconds
    assert Pace(1.0, 0.0, 1).step == 1.0


def test_patient_jobs_go_last_and_give_way():
    desk, done = Desk(), []

    def long(job):
        done.append("begun")
        while len(done) < 2:
            desk.give_way()
            time.sleep(0.005)
        done.append("long")

    job = desk.submit("a", long, patient=True)
    later = desk.submit("b", lambda job: done.append("later"), patient=True)
    while not done:
        time.sleep(0.005)
    short = desk.submit("c", lambda job: done.append("short"))
    assert later.wait(5).state == job.wait(5).state == short.wait(5).state == "done"
    assert done == ["begun", "short", "long", "later"]
    desk.close()


# --------------------------------------------------------------------------------------------- library


@pytest.fixture(scope="module")
def rex(studio, trained):
    return studio.trainings.keep("me", trained.ident, 3)


def test_concepts_come_in_as_files_cards_codes_and_text(studio, rex, tmp_path):
    for which in shelf.FORMS:
        path = shelf.shared(studio, "me", rex.id, which)
        taken = shelf.take(studio, [path])
        assert [entry.id for entry in taken.entries] == [rex.id], (which, taken.problems)
    assert shelf.take(studio, [f"  > {shelf.text_of(studio, rex.id)}"]).entries[0].id == rex.id
    with pytest.raises(ConceptError, match="handed on as file, card, qr or text"):
        shelf.shared(studio, "me", rex.id, "../x")


def test_the_example_is_offered_until_it_is_there(studio, rex, tmp_path, monkeypatch):
    monkeypatch.setattr(shelf, "EXAMPLE", tmp_path / "dog.safetensors")
    assert shelf.example(studio) is None
    (tmp_path / "dog.safetensors").write_bytes(rex.path.read_bytes())
    assert shelf.example(studio) is None  # it is in the library
    studio.library.remove(rex.id)
    assert shelf.example(studio) == tmp_path / "dog.safetensors"
    studio.library.restore(rex.id)


def test_what_is_no_concept_is_told_without_the_servers_folders(studio, rex, tmp_path):
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"no")
    Image.new("RGB", (80, 80)).save(tmp_path / "plain.png")
    taken = shelf.take(studio, [wrong, tmp_path / "plain.png", shelf.shared(studio, "", rex.id, "file"), "x"])
    assert [entry.id for entry in taken.entries] == [rex.id]
    assert len(taken.problems) == 3
    assert "'wrong.safetensors': The file is only 2 bytes long" in taken.problems[0]
    assert str(tmp_path) not in taken.told()
    assert "Traceback" not in taken.told()


def test_cards_say_their_base_and_escape_what_strangers_write(studio, rex):
    studio.library.rename(rex.id, "<b>Rex</b>")
    entry = studio.library.get(rex.id)
    cards = shelf.cards([entry], "pocket", entry.id)
    assert "<b>" not in cards
    assert "for tiny-sd1" in cards
    assert "for tiny-sd1" not in shelf.cards([entry], "tiny-sd1", "")
    assert "chosen" in cards
    shelf.noted(studio, rex.id, "Rex", "pets, favourite")
    shelf.noted(studio, rex.id, "Rex", "pets")
    assert studio.library.get(rex.id).tags == ("pets",)
    assert shelf.found(studio, "pets rex")[0].id == rex.id
    studio.library.remove(rex.id)
    assert [ident for _, ident in shelf.removed(studio)] == [rex.id]
    assert studio.library.restore(rex.id).tags == ("pets",)


def test_what_was_learned_is_drawn(studio, rex):
    look = studio.desk.submit("me", insight.looked_into(studio, rex.id)).wait(60)
    assert look.state == "done", look.error
    found = look.results[0]
    assert set(found.moved) == {"down", "mid", "up", "all"}
    with Image.open(found.drift) as drift, Image.open(found.maps) as maps:
        assert drift.width == maps.width > 1000


def test_strengths_by_block_go_through_the_form():
    values = dict.fromkeys(form.FIELDS, 1.0) | {
        "prompt": "a dog", "concepts": ["id"], "strength 0": 0.5, "negative": "", "size": "64x48", "seed": "",
        "steps": 5, "count": 1, "sampler": "dpm++", "base": "pocket", "blocks": "down=0.5 up=1",
        "acting": "",
    }  # fmt: skip
    order = form.order_from(list(values.values()))
    assert order.concepts == (("id", {"down": 0.25, "up": 0.5}),)
    assert form.values_of(order)["blocks"] == "down=0.25 mid=1 up=0.5"
    with pytest.raises(SettingsError, match="one a block"):
        form.order_from(list((values | {"blocks": "all of it"}).values()))


def test_the_loss_is_a_line():
    assert film.loss_line([(1, 0.5)], 10) == ""
    line = film.loss_line([(step, 1 / step) for step in range(1, 2001)], 2000)
    assert "polyline" in line
    assert len(line) < 20_000
    assert film.strip({}) == ""
