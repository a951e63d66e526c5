"""What the studio draws, and what it says of it, without a browser."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest
import torch
from foreign_files import save_embedding, save_lora
from PIL import Image

from atomdiff.concept.concept import Concept
from atomdiff.core import inject
from atomdiff.core.inject import AtomSpec
from atomdiff.errors import ImageError, SettingsError
from atomdiff.files import card
from atomdiff.files.safetensors_file import to_bytes
from atomdiff.sampling import previews
from atomdiff.sampling.infotext import parse
from atomdiff.serving.bases import BaseInfo
from atomdiff.serving.job_queue import JobStatus, duration
from atomdiff.studio import draw_form, drawing, html, png_info
from atomdiff.studio.draw_request import DrawRequest, request_of
from atomdiff.studio.session import Options, Studio


def test_an_order_is_drawn_and_kept_with_its_settings(studio):
    order = DrawRequest("a dog", base="tiny-sd1", steps=2, guidance=2, count=3, batch=2, seed=5)
    look = studio.queue.submit("me", drawing.draw(studio, "me", order)).wait(60)
    assert look.state == "done", look.error
    assert [parse(entry.text).whole("Seed") for entry in look.results] == [5, 6, 7]
    with Image.open(look.results[0].file) as picture:
        assert picture.info["parameters"] == look.results[0].text
    assert [entry.id for entry in studio.history.find("me")][:3] == [entry.id for entry in look.results][::-1]
    assert studio.history.find("you") == []


def test_drawing_stops_within_a_step(studio):
    order = DrawRequest("a dog", base="tiny-sd1", steps=200, seed=0)
    job = studio.queue.submit("me", drawing.draw(studio, "me", order))
    while job.status().done < 2:
        time.sleep(0.01)
    job.cancel()
    at = job.status().done
    look = job.wait(30)
    assert look.state == "cancelled"
    assert look.done <= at + 1
    assert look.total == 200


def test_without_the_concept_is_the_same_seed_on_the_base_alone(studio):
    order = DrawRequest("a dog", base="tiny-sd1", steps=2, seed=9)
    first = studio.queue.submit("me", drawing.draw(studio, "me", order)).wait(60).results[0]
    again = studio.queue.submit("me", drawing.without_concept(studio, "me", first)).wait(60).results[0]
    assert again.kind == "without"
    with Image.open(first.file) as one, Image.open(again.file) as other:
        assert one.tobytes() == other.tobytes()  # no concept was used


def test_pictures_carry_their_concept_if_asked(studio, tiny_base):
    base = tiny_base("sd1")
    spec = AtomSpec(linear_atoms="none")
    atoms = {layer: 0.1 * torch.eye(9) for layer in inject.select(base.unet, spec).conv}
    entries = []
    for name in ("Rex", "Mia"):
        made = Concept.of(base.unet, spec, atoms, base.passport, trigger="sks", class_word="dog", name=name)
        entries.append(studio.library.add(to_bytes(made)))

    def drawn(*chosen, carry):
        concepts = tuple((entry.id, 1.0) for entry in chosen)
        order = DrawRequest("a sks dog", concepts, base="tiny-sd1", steps=1, seed=1, carry=carry)
        look = studio.queue.submit("me", drawing.draw(studio, "me", order)).wait(60)
        assert look.state == "done", look.error
        return look.results[0].file.read_bytes(), look.notes

    assert card.extract(drawn(entries[0], carry=True)[0]) == entries[0].path.read_bytes()
    assert card.extract(drawn(entries[0], carry=False)[0]) is None
    assert card.extract(drawn(carry=True)[0]) is None
    several, notes = drawn(*entries, carry=True)
    assert card.extract(several) is None
    assert "A picture carries one concept" in " ".join(notes)


def test_a_grid_of_too_many_steps_is_refused(studio):
    order = DrawRequest("a dog", base="tiny-sd1", seed=1)
    with pytest.raises(SettingsError, match="at most 200 steps"):
        drawing.grid_of(studio, order, [("steps", "5, 500")])
    assert len(drawing.grid_of(studio, order, [("steps", "5, 10")]).cells()) == 2


def test_another_base_takes_the_place_of_the_one_before(tiny_base, tmp_path):
    loaded = []

    def load(name):
        loaded.append(name)
        return replace(tiny_base("sd1"), name=name)

    studio = Studio(Options(load, "one", tmp_path / "concepts", tmp_path / "out"))
    for name in ("one", "sd15", "sd15", "one"):
        order = DrawRequest("a dog", base=name, steps=1, seed=1)
        look = studio.queue.submit("me", drawing.draw(studio, "me", order)).wait(60)
        assert look.state == "done", look.error
        assert parse(look.results[0].text).fields["Model"] == name
    assert loaded == ["one", "sd15", "one"]
    studio.close()


def test_a_base_that_was_not_given_is_refused(studio):
    look = studio.queue.submit("me", drawing.draw(studio, "me", DrawRequest("a dog", base="/etc"))).wait(30)
    assert "not started with the base '/etc'" in look.error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "  "}, "no prompt"),
        ({"count": 0}, "1 to 64 pictures"),
        ({"steps": 1000}, "at most 200 steps"),
        ({"size": (8192, 8192)}, "sides of 2048"),
        ({"concepts": (("x", float("nan")),)}, "strength is a finite number"),
        ({"concepts": (("x", {"up": 11.0}),)}, "from -10 to 10"),
        ({"sampler": "magic"}, "no sampler"),
        ({"prompt": "x" * 20_000}, "longer than 10000"),
        ({"acting": "loudly"}, "plain or gated, not 'loudly'"),
    ],
)
def test_orders_that_cannot_work(change, message):
    with pytest.raises(SettingsError, match=message):
        DrawRequest(**({"base": "pocket", "prompt": "a dog"} | change))


def test_the_form_reads_what_a_browser_sends_and_back():
    values = dict.fromkeys(draw_form.STRENGTHS + draw_form.LORA_STRENGTHS, 1.0) | {
        "loras": ["paint"], "lora_strength_0": 0.6, "embeddings": None,
        "style": "", "start": None, "regions": None, "strength": 0.6, "hires": 1.0,
        "guidance": 1.0, "carry": 1.0, "blocks": "",
        "prompt": "a sks dog", "concepts": ["id"], "strength_0": 0.8, "negative": None, "size": "64×48",
        "seed": " ", "steps": 5, "count": 2, "sampler": "dpm++", "base": "pocket", "batch": 4, "acting": None,
    }  # fmt: skip
    order = draw_form.request_from(values)
    assert order == DrawRequest(
        "a sks dog", (("id", 0.8),), "", order.seed, 5, 1.0, (64, 48), "dpm++",
        loras=(("paint", 0.6),), base="pocket", count=2, batch=4,
    )  # fmt: skip
    assert draw_form.values_of(order)["strength_0"] == 0.8
    for name, wrong in (
        ("seed", "x"),
        ("size", "big"),
        ("steps", "many"),
        ("strength_0", None),
        ("lora_strength_0", "x"),
    ):
        with pytest.raises(SettingsError):
            draw_form.request_from(values | {name: wrong})


def test_how_concepts_act_is_drawn_and_told_and_drawn_again(studio, tiny_base, tmp_path):
    base = tiny_base("sd1")
    attached = inject.attach(base.unet, AtomSpec(linear_atoms="none"))
    atoms = {name: torch.ones_like(t) for name, t in attached.read().items()}
    concept = Concept.of(base.unet, attached.spec, atoms, base.passport, trigger="sks", class_word="dog")
    entry = studio.library.add(to_bytes(concept))
    order = DrawRequest("a dog", ((entry.id, 1.0),), base="tiny-sd1", steps=2, seed=3, acting="gated")
    look = studio.queue.submit("me", drawing.draw(studio, "me", order)).wait(60)
    assert look.state == "done" and any("lacks" in note for note in look.notes)
    again = request_of(parse(look.results[0].text), studio)
    assert again.acting == order.loaded(studio).acting == draw_form.values_of(again)["acting"] == "gated"
    assert request_of(parse("x\nSteps: 2, Concepts act: soon"), studio).acting == "plain"
    usual = studio.queue.submit("me", drawing.draw(studio, "me", replace(order, acting="plain"))).wait(60)
    with Image.open(look.results[0].file) as one, Image.open(usual.results[0].file) as other:
        assert one.tobytes() != other.tobytes()
    with pytest.raises(SettingsError, match="plain or gated"):
        replace(order, acting="both")


def test_triggers_are_filled_in_and_taken_out():
    dog, cat = ("sks", "dog"), ("zwx", "cat")
    assert draw_form.with_triggers("", [], [dog]) == "a sks dog"
    assert draw_form.with_triggers("a dog on the beach", [], [dog]) == "a sks dog on the beach"
    assert draw_form.with_triggers("in space", [], [dog]) == "a sks dog, in space"
    assert draw_form.with_triggers("a SKS dog", [], [dog]) == "a SKS dog"
    assert draw_form.with_triggers("a sks dog on the beach", [dog], []) == "a dog on the beach"
    assert draw_form.with_triggers("a sks dog", [dog], [dog, cat]) == "a zwx cat, a sks dog"


def test_settings_of_other_programs_are_understood():
    text = (
        "a dog,\non the beach\nNegative prompt: rain\nblur\n"
        "Steps: 20, Sampler: DPM++ 2M Karras, "
        'CFG scale: 7.5, Seed: 123, Size: 512x768, Model: "a, b", Concepts: "Rex:0.8:0123456789ab"'
    )
    told = parse(text)
    assert (told.prompt, told.negative) == ("a dog,\non the beach", "rain\nblur")
    assert (told.whole("Seed"), told.number("CFG scale"), told.size) == (123, 7.5, (512, 768))
    assert told.fields["Model"] == "a, b"
    assert [(used.title, used.strength, used.sha256) for used in told.concepts] == [
        ("Rex", "0.8", "0123456789ab")
    ]
    assert parse("just words").prompt == "just words"
    assert parse("x\nSteps: many, Seed: -, Size: axb, Concepts: ,,:").concepts == []


def test_pictures_tell_or_say_why_not(tmp_path, studio):
    order = DrawRequest("a dog", base="tiny-sd1", steps=1, seed=1)
    entry = studio.queue.submit("me", drawing.draw(studio, "me", order)).wait(60).results[0]
    told = png_info.read(entry.file)
    assert request_of(told.generation, studio).seed == 1
    assert ("Prompt", "a dog") in told.rows()
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"'x\.png' is no picture"):
        png_info.read(tmp_path / "x.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(ImageError, match="says nothing of how it was made"):
        png_info.read(tmp_path / "plain.png")


def test_strangers_texts_are_escaped():
    assert "<script>" not in html.facts([("<script>", "<script>")])
    assert "<b>" not in html.progress(JobStatus("failed", error="<b>"))
    assert "<b>" not in html.progress(JobStatus("done", notes=("<b>",)))


def test_what_the_page_says_of_a_job():
    assert "2 before you" in html.progress(JobStatus("waiting", ahead=2))
    running = html.progress(JobStatus("running", stage="Drawing", done=5, total=20, seconds_left=125))
    assert "width:25.0%" in running
    assert "step 5 of 20 · 2 min left" in running
    assert duration(4000) == "1 h 6 min"
    assert BaseInfo("x", "sd1", 512, 7.5, 4).sizes()[512, 512] == (1, 1)


def test_previews_of_large_autoencoders_are_read_off_the_latents(tiny_base, monkeypatch):
    base = tiny_base("sd1")
    latents = torch.randn(6, base.vae.config.latent_channels, 8, 8)
    small = previews.Previewer(base)
    decoded = small.pictures(latents)
    assert [picture.size for picture in decoded] == [(8 * base.vae_factor, 8 * base.vae_factor)] * 4
    assert small.pictures(latents) == []  # too soon
    monkeypatch.setattr(previews, "SMALL", 0)
    assert [picture.size for picture in previews.Previewer(base).pictures(latents)] == [(8, 8)] * 4
    assert previews.linear_map(base).shape == (3, base.vae.config.latent_channels + 1)


def test_options_that_cannot_work():
    with pytest.raises(SettingsError, match="port"):
        Options(lambda name: None, port=0)
    with pytest.raises(SettingsError, match="USER:PASSWORD"):
        Options(lambda name: None, auth=(("me", ""),))
    with pytest.raises(SettingsError, match="a user twice"):
        Options(lambda name: None, auth=(("me", "a"), ("me", "b")))
    assert "hush" not in repr(Options(lambda name: None, auth=(("me", "hush"),)))


def test_the_command_says_no_in_a_sentence():
    from typer.testing import CliRunner

    from atomdiff import cli

    for arguments, message in ((["--auth", "me"], "USER:PASSWORD"), (["--port", "99999"], "1 to 65535")):
        done = CliRunner().invoke(cli.app, ["studio", *arguments])
        assert done.exit_code == 2
        assert message in done.stderr


def kept(studio, size: tuple[int, int] = (64, 64)):
    """A picture of the studio's history."""
    order = DrawRequest("a dog", base="tiny-sd1", steps=2, seed=9, size=size)
    return studio.queue.submit("me", drawing.draw(studio, "me", order)).wait(60).results[0]


def test_pictures_start_from_what_an_image_editor_holds(studio):
    photo, layer = Image.new("RGBA", (60, 40), "teal"), Image.new("RGBA", (60, 40))
    assert draw_form.start_of(None) == draw_form.start_of({"background": None}) == (None, None)
    assert draw_form.start_of({"background": photo, "layers": [layer]})[1] is None
    layer.paste((15, 118, 110, 128), (10, 10, 30, 30))
    picture, mask = draw_form.start_of({"background": photo, "layers": [layer]})
    assert (picture.mode, mask.getbbox(), mask.getextrema()) == ("RGB", (10, 10, 30, 30), (0, 255))
    order = DrawRequest("a dog", base="tiny-sd1", steps=2, seed=1, image=picture, mask=mask, strength=0.9)
    look = studio.queue.submit("me", drawing.draw(studio, "me", order)).wait(60)
    assert look.state == "done", look.error
    with Image.open(look.results[0].file) as made:
        assert made.size == (60, 40)
        assert made.getpixel((58, 38)) == (0, 128, 128)  # what was not painted over


def test_a_picture_is_varied_enlarged_cut_out_and_put_on_a_sheet(studio):
    entry = kept(studio)
    like = studio.queue.submit("me", drawing.variations(studio, "me", entry)).wait(60)
    assert like.state == "done", like.error
    assert [one.kind for one in like.results] == ["variation"] * 4
    assert len({one.file.read_bytes() for one in like.results}) == 4
    large = studio.queue.submit("me", drawing.enlarged(studio, "me", entry)).wait(60)
    assert large.state == "done", large.error
    with Image.open(large.results[0].file) as picture:
        assert picture.size == (128, 128)
    with Image.open(drawing.keep_sticker(studio, "me", entry).file) as picture:
        assert picture.mode == "RGBA"
    sheet = drawing.keep_contact_sheet(studio, "me", like.results)
    assert sheet.kind == "sheet"
    with Image.open(sheet.file) as picture:
        assert picture.width > 2 * 64


def test_styles_words_and_a_second_pass(studio):
    studio.words.mkdir(exist_ok=True)
    (studio.words / "animal.txt").write_text("dog\ncat\n")
    (studio.history.folder / "styles.csv").write_text(
        "name,prompt,negative_prompt\nneon,{prompt} in neon,day\n"
    )
    order = DrawRequest(
        "a {red|blue} __animal__",
        base="tiny-sd1",
        steps=2,
        seed=3,
        count=3,
        style="neon",
        size=(32, 32),
        hires=2.0,
    )
    look = studio.queue.submit("me", drawing.draw(studio, "me", order)).wait(120)
    assert look.state == "done", look.error
    told = [parse(entry.text) for entry in look.results]
    assert all(re.fullmatch(r"a (red|blue) (dog|cat) in neon", one.prompt) for one in told)
    assert {one.negative for one in told} == {"day"}
    assert [one.whole("Seed") for one in told] == [3, 4, 5]
    with Image.open(look.results[0].file) as picture:
        assert picture.size == (64, 64)
    assert request_of(told[0], studio).hires == 2
    with pytest.raises(SettingsError, match="no style"):
        replace(order, style="none such").loaded(studio)
    (studio.history.folder / "styles.csv").unlink()


def test_other_peoples_files_go_into_pictures_and_back(studio, tiny_base, tmp_path):
    base = tiny_base("sd1")
    lora = save_lora(base, tmp_path / "paint.safetensors")
    word = save_embedding(base, tmp_path / "easy-word.safetensors")
    assert [studio.others.add(file) for file in (lora, word, lora)] == [
        ("lora", "paint"), ("embedding", "easy-word"), ("lora", "paint"),
    ]  # fmt: skip
    order = DrawRequest(
        "a dog", base="tiny-sd1", steps=1, seed=1, loras=(("paint", 0.7),), embeddings=("easy-word",)
    )
    look = studio.queue.submit("me", drawing.draw(studio, "me", order)).wait(60)
    assert look.state == "done", look.error
    assert any("No prompt says 'easy-word'" in note for note in look.notes)
    text = look.results[0].text
    assert text.startswith("a dog <lora:paint:0.7>\n")
    again = request_of(parse(text), studio)
    assert (again.prompt, again.loras, again.embeddings) == ("a dog", order.loras, order.embeddings)
    values = draw_form.values_of(again)
    assert (values["loras"], values["lora_strength_0"], values["embeddings"]) == (
        ["paint"],
        0.7,
        ["easy-word"],
    )
    with pytest.raises(SettingsError, match="from -10 to 10"):
        replace(order, loras=(("paint", 11.0),))
    save_lora(base, tmp_path / "paint.safetensors", seed=1)
    with pytest.raises(SettingsError, match="another lora 'paint'"):
        studio.others.add(tmp_path / "paint.safetensors")
    studio.others.path("lora", "paint").write_bytes(lora.read_bytes())  # not the one of the picture any more
    assert request_of(parse(text), studio).loras == ()
    studio.others.path("lora", "paint").unlink()
    for name in ("paint", "../paint"):
        gone = replace(order, loras=((name, 1.0),))
        look = studio.queue.submit("me", drawing.draw(studio, "me", gone)).wait(60)
        assert look.state == "failed" and "no lora" in look.error
