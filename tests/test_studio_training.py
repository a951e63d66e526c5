"""Trainings of the studio and its library, without a browser."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from PIL import Image

from atomdiff.errors import ConceptError, SettingsError
from atomdiff.files.safetensors_file import load_concept
from atomdiff.serving.job_queue import JobQueue
from atomdiff.serving.training_jobs import Timing
from atomdiff.serving.training_session import MORE, TrainingRequest, TrainingSession, TrainingStatus
from atomdiff.studio import draw_form, drawing, inspection, library_view
from atomdiff.studio.draw_request import DrawRequest
from atomdiff.studio.tabs import train, training_view

ROOT = Path(__file__).parent.parent
FEW = {"max_train_steps": 3, "with_prior_preservation": False, "recipe": "atoms"}


@pytest.fixture(scope="module")
def pictures() -> tuple[Path, ...]:
    return tuple(sorted((ROOT / "assets" / "dog").glob("*.png")))


def wanted(dropped, **changes) -> TrainingRequest:
    return TrainingRequest(
        **({"files": dropped, "class_word": "dog", "base": "tiny-sd1", "more": FEW} | changes)
    )


def finished(studio, session, seconds: float = 300):
    end = time.monotonic() + seconds
    while not studio.trainings.status(session).over:
        assert time.monotonic() < end, studio.trainings.status(session)
        time.sleep(0.02)
    return studio.trainings.status(session)


@pytest.fixture(scope="module")
def trained(studio, pictures) -> TrainingSession:
    session = studio.trainings.start("me", wanted(pictures, name="Bello"))
    view = finished(studio, session)
    assert view.state == "done", view.error
    return session


def test_a_training_keeps_states_with_pictures_and_gives_a_concept(studio, trained):
    assert trained.timeline().steps == (1, 2, 3)
    assert {step: len(files) for step, files in trained.samples().items()} == {1: 2, 2: 2, 3: 2}
    assert [step for step, _ in trained.status().losses] == [1, 2, 3]
    entry = studio.trainings.keep("me", trained.ident, 2, studio.library)
    assert (entry.title, entry.trigger, entry.class_word) == ("Bello", "sks", "dog")
    assert entry.thumbnail is not None
    assert load_concept(entry.path).training["steps"] == 2
    order = DrawRequest("a sks dog", ((entry.id, {"down": 0.5}),), base="tiny-sd1", steps=1, seed=0)
    look = studio.queue.submit("me", drawing.draw(studio, "me", order)).wait(60)
    assert look.state == "done", look.error
    with pytest.raises(ConceptError, match="no state of step 9"):
        studio.trainings.keep("me", trained.ident, 9, studio.library)


def test_texts_of_the_pictures_names_are_their_captions(studio, pictures, tmp_path):
    files = [tmp_path / name for name in ("b.png", "a.png", "b.txt")]
    for file, picture in zip(files, pictures, strict=False):
        file.write_bytes(picture.read_bytes())
    files[2].write_text("sks art of a dog\nin a meadow", "utf-8")
    asked = wanted(tuple(files), class_word="art")
    assert asked.split == (tuple(files[:2]), {"b": files[2]})
    session = studio.trainings.start("captions", asked)
    view = finished(studio, session)
    assert view.state == "done", view.error
    kept = {path.name: path.read_bytes() for path in (session.folder / "pictures").iterdir()}
    named = ("000.png", "001.png", "000.txt")
    assert kept == {name: file.read_bytes() for name, file in zip(named, files, strict=True)}
    shown, problems = train.used_pictures(list(map(str, files)))
    assert [(picture.size, caption) for _, picture, caption in shown] == [
        ((256, 256), "sks art of a dog in a meadow"),
        ((256, 256), ""),
    ]
    assert problems == []
    files[2].write_bytes(b"\xff\xfe\x00")
    assert "b.txt' is no text" in train.used_pictures(list(map(str, files)))[1][0]
    with pytest.raises(SettingsError, match="says what is in a picture called 'b'"):
        wanted((files[1], files[2]))
    with pytest.raises(SettingsError, match="There are no pictures"):
        wanted((files[2],))


def test_trainings_are_their_owners(studio, trained):
    assert [session.ident for session in studio.trainings.of("me")] == [trained.ident]
    assert studio.trainings.of("you") == []
    for act in (studio.trainings.get, studio.trainings.delete, studio.trainings.resume):
        with pytest.raises(SettingsError, match="no such training"):
            act("you", trained.ident)


def test_a_drawing_goes_first_stopping_keeps_and_going_on_finishes(studio, pictures):
    session = studio.trainings.start("you", wanted(pictures, more=FEW | {"max_train_steps": 40}))
    while studio.trainings.status(session).step < 1:
        time.sleep(0.01)
    with pytest.raises(SettingsError, match="One training at a time"):
        studio.trainings.start("you", wanted(pictures))
    order = DrawRequest("a dog", base="tiny-sd1", steps=2, seed=5)
    during = studio.queue.submit("you", drawing.draw(studio, "you", order)).wait(60)
    assert during.state == "done", during.error
    assert not studio.trainings.status(session).over
    other = studio.queue.submit(
        "me", drawing.draw(studio, "me", DrawRequest("a dog", base="elsewhere"))
    ).wait(60)
    assert other.state == "failed"
    assert studio.queue.cancel("you") == 0  # what stops drawings does not stop trainings
    assert studio.trainings.stop("you") == 1
    view = finished(studio, session)
    assert view.state == "stopped"
    assert session.timeline().steps[-1] == view.step < 40
    after = studio.queue.submit("you", drawing.draw(studio, "you", order)).wait(60)
    with Image.open(during.results[0].file) as one, Image.open(after.results[0].file) as two:
        assert one.tobytes() == two.tobytes()  # between two steps the base is the base
    undrawn = session.timeline().steps[-1]
    assert studio.trainings.draw_state("you", session, undrawn).wait(60).state == "done"
    assert len(session.samples()[undrawn]) == 2
    studio.trainings.resume("you", session.ident)
    view = finished(studio, session)
    assert (view.state, view.step) == ("done", 40), view.error
    assert [step for step, _ in view.losses] == list(range(1, 41))


def test_a_later_studio_knows_the_trainings(studio, trained, tmp_path):
    again = TrainingSession.read(trained.folder)
    assert again.status() == trained.status()
    assert again.owner == trained.owner != "me"
    told = json.loads((trained.folder / "training.json").read_text())
    told["status"]["state"] = "running"
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "training.json").write_text(json.dumps(told))
    assert TrainingSession.read(tmp_path / "killed").status().state == "stopped"
    (tmp_path / "killed" / "training.json").write_text('{"owner": 1}')
    with pytest.raises(KeyError):
        TrainingSession.read(tmp_path / "killed")


def test_a_training_that_cannot_work_is_told_and_can_be_deleted(studio, tmp_path):
    (tmp_path / "no.png").write_bytes(b"no picture")
    session = studio.trainings.start("them", wanted((tmp_path / "no.png",)))
    view = finished(studio, session)
    assert view.state == "failed"
    assert "No usable picture" in view.error
    studio.trainings.delete("them", session.ident)
    assert studio.trainings.of("them") == []
    assert not session.folder.exists()


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
        studio.trainings.start("nobody", wanted(pictures, **changes))
    assert studio.trainings.of("nobody") == []


def test_a_number_left_blank_on_the_page_is_left_open(pictures):
    blank = {"max_train_steps": 0, "seed": 0, "with_prior_preservation": False}  # as a page sends it
    values = dict.fromkeys(MORE) | blank | {
        "files": list(pictures), "class_word": "dog", "name": "", "quality": "good", "base": "tiny-sd1",
        "trigger": "", "validation_prompt": "", "edits": {},
    }  # fmt: skip
    more = train.training_request(values).more
    assert more == {"trigger": "", "validation_prompt": "", "seed": 0, "with_prior_preservation": False}


def test_pictures_are_cropped_described_and_left_out_on_the_page(studio, pictures, tmp_path):
    files = [str(tmp_path / picture.name) for picture in pictures[:3]]
    for file, picture in zip(files, pictures, strict=False):
        Path(file).write_bytes(picture.read_bytes())
    with Image.open(files[0]) as image:
        whole, part = image.convert("RGBA"), image.convert("RGBA").crop((0, 0, 40, 30))
    assert train.cropped(files[0], whole) == train.cropped(files[0], None) == files[0]
    small = train.cropped(files[0], part)
    edits = {
        files[0]: train.Edit(small, "sks dog, close"),
        files[1]: train.Edit(files[1], omitted=True),
    }
    shown, problems = train.used_pictures(files, edits)
    assert [(picture.size, text) for _, picture, text in shown][:2] == [
        ((40, 30), "sks dog, close"), (shown[1][1].size, "left out"),
    ]  # fmt: skip
    values = dict.fromkeys(MORE) | {
        "files": files, "class_word": "dog", "name": "", "quality": "good", "base": "tiny-sd1",
        "trigger": "", "validation_prompt": "", "edits": edits,
    }  # fmt: skip
    request = train.training_request(values)
    assert request.files == (Path(small), Path(files[2])) and problems == []
    request.copy_files(tmp_path / "kept")
    assert (tmp_path / "kept" / "000.txt").read_text() == "sks dog, close"
    with Image.open(tmp_path / "kept" / "000.png") as image:
        assert image.size == (40, 30)
    settings = request.settings(studio.bases.info("tiny-sd1"), tmp_path)
    assert settings.caption_extension == ".txt"


def test_time_and_size_are_measured_once_and_remembered(studio, pictures):
    quiet = {"recipe": "atoms"}
    asked = wanted(pictures, more=quiet | {"with_prior_preservation": True})
    assert studio.trainings.expected(asked) == (600, None, None)
    look = studio.trainings.measure("me", asked).wait(60)
    assert look.state == "done", look.error
    steps, seconds, size = studio.trainings.expected(asked)
    pace = look.results[0]
    assert (steps, size) == (600, pace.size)
    assert seconds == pytest.approx(600 * pace.step + (10 * 2 + 100) * pace.picture)
    assert studio.trainings.expected(wanted(pictures, more={"recipe": "word"})) == (600, None, None)
    faster = studio.trainings.expected(wanted(pictures, quality="fast", more=asked.more))
    assert faster[0] == 200
    assert faster[1] < seconds
    assert Timing(1.0, 0.0, 1).step == 1.0


def test_patient_jobs_go_last_and_run_foreground():
    queue, done = JobQueue(), []

    def long(job):
        done.append("begun")
        while len(done) < 2:
            queue.run_foreground()
            time.sleep(0.005)
        done.append("long")

    job = queue.submit("a", long, background=True)
    later = queue.submit("b", lambda job: done.append("later"), background=True)
    while not done:
        time.sleep(0.005)
    short = queue.submit("c", lambda job: done.append("short"))
    assert later.wait(5).state == job.wait(5).state == short.wait(5).state == "done"
    assert done == ["begun", "short", "long", "later"]
    queue.close()


# --------------------------------------------------------------------------------------------- library


@pytest.fixture(scope="module")
def rex(studio, trained):
    return studio.trainings.keep("me", trained.ident, 3, studio.library)


def test_concepts_come_in_as_files_cards_codes_and_text(studio, rex, tmp_path):
    for which in library_view.FORMS:
        path = library_view.share(studio, "me", rex.id, which)
        taken = library_view.add(studio, [path])
        assert [entry.id for entry in taken.entries] == [rex.id], (which, taken.problems)
    assert library_view.add(studio, [f"  > {library_view.text_of(studio, rex.id)}"]).entries[0].id == rex.id
    with pytest.raises(ConceptError, match="handed on as file, card, qr or text"):
        library_view.share(studio, "me", rex.id, "../x")


def test_the_example_is_offered_until_it_is_there(studio, rex, tmp_path, monkeypatch):
    monkeypatch.setattr(library_view, "EXAMPLE", tmp_path / "dog.safetensors")
    assert library_view.example(studio) is None
    (tmp_path / "dog.safetensors").write_bytes(rex.path.read_bytes())
    assert library_view.example(studio) is None  # it is in the library
    studio.library.remove(rex.id)
    assert library_view.example(studio) == tmp_path / "dog.safetensors"
    studio.library.restore(rex.id)


def test_what_is_no_concept_is_told_without_the_servers_folders(studio, rex, tmp_path):
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"no")
    Image.new("RGB", (80, 80)).save(tmp_path / "plain.png")
    taken = library_view.add(
        studio, [wrong, tmp_path / "plain.png", library_view.share(studio, "", rex.id, "file"), "x"]
    )
    assert [entry.id for entry in taken.entries] == [rex.id]
    assert len(taken.problems) == 3
    assert "'wrong.safetensors': The file is only 2 bytes long" in taken.problems[0]
    assert str(tmp_path) not in taken.html()
    assert "Traceback" not in taken.html()


def test_cards_say_their_base_and_escape_what_strangers_write(studio, rex):
    studio.library.rename(rex.id, "<b>Rex</b>")
    entry = studio.library.get(rex.id)
    cards = library_view.cards([entry], "pocket", entry.id)
    assert "<b>" not in cards
    assert "for tiny-sd1" in cards
    assert "for tiny-sd1" not in library_view.cards([entry], "tiny-sd1", "")
    assert "chosen" in cards
    library_view.annotate(studio, rex.id, "Rex", "pets, favourite")
    library_view.annotate(studio, rex.id, "Rex", "pets")
    assert studio.library.get(rex.id).tags == ("pets",)
    assert studio.library.find("pets rex")[0].id == rex.id
    studio.library.remove(rex.id)
    assert [ident for _, ident in library_view.removed(studio)] == [rex.id]
    assert studio.library.restore(rex.id).tags == ("pets",)


def test_what_was_learned_is_drawn(studio, rex):
    look = studio.queue.submit("me", inspection.inspect(studio, rex.id)).wait(60)
    assert look.state == "done", look.error
    found = look.results[0]
    assert set(found.moved) == {"down", "mid", "up", "all"}
    with Image.open(found.drift) as drift, Image.open(found.maps) as maps:
        assert drift.width == maps.width > 1000


def test_strengths_by_block_go_through_the_form():
    values = dict.fromkeys(draw_form.STRENGTHS, 1.0) | {
        "style": "", "start": None, "regions": None, "strength": 0.6, "hires": 1.0,
        "guidance": 1.0, "carry": 1.0, "batch": 1.0,
        "prompt": "a dog", "concepts": ["id"], "strength_0": 0.5, "negative": "", "size": "64x48", "seed": "",
        "steps": 5, "count": 1, "sampler": "dpm++", "base": "pocket", "blocks": "down=0.5 up=1",
        "acting": "plain", "loras": [], "embeddings": [],
    }  # fmt: skip
    order = draw_form.request_from(values)
    assert order.concepts == (("id", {"down": 0.25, "up": 0.5}),)
    assert draw_form.values_of(order)["blocks"] == "down=0.25 mid=1 up=0.5"
    with pytest.raises(SettingsError, match="one a block"):
        draw_form.request_from(values | {"blocks": "all of it"})


def test_the_loss_is_a_table_of_few_rows():
    losses = tuple((step, 1 / step) for step in range(1, 2001))
    table = training_view.loss_table(TrainingStatus("running", losses=losses))
    assert set(table["which"]) == {"each", "mean"}
    assert len(table) == 2 * training_view.POINTS
    mean = table[table["which"] == "mean"]["loss"]
    assert mean.is_monotonic_decreasing
    assert len(training_view.loss_table(TrainingStatus("waiting"))) == 0


def test_drift_is_shown_with_its_bound_where_it_comes_near():
    near, far = (TrainingStatus("running", 50, 100, drifts=((25, 0.1), (50, value))) for value in (0.3, 0.2))
    table = training_view.drift_table(near, 0.5)
    assert table[table["which"] == "drift"].values.tolist() == [
        [0, 0.0, "drift"], [25, 10.0, "drift"], [50, 30.0, "drift"]
    ]  # fmt: skip
    assert table[table["which"] == "bound"]["drift"].tolist() == [50.0, 50.0]
    assert set(training_view.drift_table(far, 0.5)["which"]) == {"drift"}
    assert set(training_view.drift_table(near, 0.0)["which"]) == {"drift"}
