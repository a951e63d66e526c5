"""The library: every way in, searching, and staying right whatever happens to its files."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_card import concept_file, png
from typer.testing import CliRunner

from atomdiff import cli
from atomdiff.cli.arguments import load_concepts, split_strength
from atomdiff.errors import ConceptError, ImageError, SettingsError
from atomdiff.files import card_image, qr_image
from atomdiff.files.card import embed
from atomdiff.files.modelspec import annotated
from atomdiff.files.read_any import read_any
from atomdiff.files.safetensors_file import from_bytes, to_bytes
from atomdiff.files.text import to_text
from atomdiff.library import Library, default_folder
from atomdiff.library.folder import file_name, slug

DOG = concept_file()
CAT = concept_file(name="Minka", trigger="mnk", class_word="cat")


@pytest.fixture
def library(tmp_path) -> Library:
    return Library(tmp_path / "library")


def png_of(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def run(*arguments: str | Path):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("form", ["file", "card", "codes", "text", "bytes", "text file", "misnamed"])
def test_every_form_of_a_concept_is_taken_in_once(library, tmp_path, form):
    path = tmp_path / {"file": "dog.safetensors", "misnamed": "dog.txt"}.get(form, "dog.png")
    raw = {
        "card": lambda: embed(png(), DOG),
        "codes": lambda: png_of(qr_image.sheet(DOG, scale=3)),
        "text file": lambda: b"> " + to_text(DOG).encode(),
    }.get(form, lambda: DOG)()
    path.write_bytes(raw)
    source = {"text": to_text(DOG), "bytes": raw}.get(form, path)
    entry = library.add(source)
    assert entry.path.read_bytes() == DOG
    assert entry.path.name == f"biscuit-{entry.id[:8]}.safetensors"
    assert (entry.name, entry.trigger, entry.class_word, entry.base) == ("Biscuit", "sks", "dog", "sd15")
    assert (entry.architecture, entry.size, entry.tags, entry.times_used) == ("sd1-1a2b3c4d", len(DOG), (), 0)
    assert library.add(DOG) == entry == library.get(entry.id)
    assert library.find() == [entry]
    assert path.read_bytes() == raw


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (b"", ImageError, "cannot be read as a picture"),
        (b"hello", ImageError, "'what was given' cannot be read as a picture"),
        (b"\x80\x04.", ImageError, "cannot be read as a picture"),
        ("hello", ConceptError, "not the text of a concept"),
        ("/etc/passwd", ConceptError, "not the text of a concept"),
        ("{}", ConceptError, "not the text of a concept"),
        (DOG[:-1], ConceptError, "cut off"),
        (b"atomdiff:v1:AAAA", ConceptError, "cut off or changed"),
        (Path("none.safetensors"), ConceptError, "'none.safetensors' cannot be read"),
        (png(), ConceptError, "no concept and no QR code"),
        (embed(png(), DOG)[:-20], ConceptError, "cut off"),
    ],
)
def test_what_is_no_concept_is_told_and_nothing_is_kept(library, source, error, message):
    with pytest.raises(error, match=message):
        library.add(source)
    assert library.find() == []


def test_a_huge_foreign_file_is_named_for_what_it_is_without_being_read(library, tmp_path):
    header = json.dumps({"lora_up": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    with (tmp_path / "big.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(2**32)
    with pytest.raises(ConceptError, match=r"big.safetensors': This is a LoRA, not an atomdiff concept"):
        library.add(tmp_path / "big.safetensors")
    (tmp_path / "big.safetensors").rename(library.folder / "big.safetensors")
    library.find()
    for _ in range(2):
        ((path, problem),) = library.scan().foreign
        assert path.name == "big.safetensors"
        assert "This is a LoRA" in problem


def test_pictures_that_show_a_concept_together(tmp_path):
    big = concept_file(training={f"note {i}": os.urandom(300).hex() for i in range(8)})
    sheet = qr_image.sheet(big, scale=2)
    halves = [
        sheet.crop((0, 0, sheet.width, sheet.height // 2)),
        sheet.crop((0, sheet.height // 2, *sheet.size)),
    ]
    assert read_any(*(png_of(half) for half in halves)).data == big


def test_search(library):
    dog, cat = library.add(DOG), library.add(CAT)
    assert library.find() == [cat, dog]
    library.used(dog.id)
    library.tag(dog.id, "pets", "grün")
    assert [entry.title for entry in library.find()] == ["Biscuit", "Minka"]
    assert library.get(dog.id).times_used == 1
    assert library.get(dog.id).last_used >= dog.added
    for query, tag, base, found in [
        ("BISC", None, None, ["Biscuit"]),
        ("sd15 cat", None, None, ["Minka"]),
        ("GRÜN dog", None, None, ["Biscuit"]),
        ("dog cat", None, None, []),
        ("%", None, None, []),
        ("", "pets", None, ["Biscuit"]),
        ("", "pet", None, []),
        ("", None, "sd15", ["Biscuit", "Minka"]),
        ("", None, "sd1-1a2b3c4d", ["Biscuit", "Minka"]),
        ("", None, "sdxl", []),
    ]:
        assert [entry.title for entry in library.find(query, tag, base)] == found, query
    assert library.untag(dog.id, "pets").tags == ("grün",)


def test_names_of_the_users_own(library):
    dog = library.add(DOG)
    assert library.rename(dog.id, " Old  Biscuit ").name == "Old Biscuit"
    assert library.find("old biscuit")[0].path.read_bytes() == DOG
    assert library.rename(dog.id, "").name == "Biscuit"
    for bad in ("", "a\x00b", "x" * 101):
        with pytest.raises(SettingsError, match="1 to 100 printable letters"):
            library.tag(dog.id, bad)


def test_a_concept_is_known_by_name_then_trigger_then_id(library):
    dog, cat = library.add(DOG), library.add(CAT)
    other = library.add(concept_file(name="sks", trigger="x"))
    for name in ("biscuit", "BISCUIT", dog.path.name, dog.path.stem, dog.id, dog.id[:6]):
        assert library.named(name) == dog
    assert library.named("mnk") == cat
    assert library.named("sks") == other
    twin = library.add(concept_file(class_word="puppy"))
    with pytest.raises(ConceptError, match=rf"2 concepts called 'biscuit'.*{twin.id[:8]} \(Biscuit\)"):
        library.named("biscuit")
    with pytest.raises(ConceptError, match="no concept called 'b'"):
        library.named("b")


def test_removing_loses_nothing(library):
    dog = library.add(DOG)
    (library.folder / "mine").mkdir()
    (library.folder / "mine" / "card.png").write_bytes(embed(png(), DOG))
    (library.folder / "mine" / dog.path.name).write_bytes(DOG)
    library.scan()
    dog = library.tag(dog.id, "pets")
    library.remove(dog.id)
    assert library.find() == []
    assert library.scan().new == ()
    assert len(library.removed()[dog.id]) == 3
    with pytest.raises(ConceptError, match="has no file of the concept"):
        library.get(dog.id)
    back = library.restore(dog.id)
    assert (back.tags, back.added, library.removed()) == (("pets",), dog.added, {})
    assert sorted(path.suffix for path in library.folder.iterdir()) == ["", "", ".png", *[".safetensors"] * 2]
    for ident in (dog.id, "../../x", "", "."):
        with pytest.raises(ConceptError, match="trash holds no concept"):
            library.restore(ident)


def test_what_happens_behind_its_back(library):
    dog, cat = library.add(DOG), library.add(CAT)
    library.tag(dog.id, "pets")
    library.used(dog.id)
    (library.folder / "pets").mkdir()
    dog.path.rename(library.folder / "pets" / "rex.safetensors")
    moved = library.get(dog.id)
    assert moved.path == library.folder / "pets" / "rex.safetensors"
    assert (moved.tags, moved.times_used) == (("pets",), 1)
    cat.path.unlink()
    assert [entry.title for entry in library.find()] == ["Biscuit"]
    (library.folder / "again.safetensors").write_bytes(CAT)
    moved.path.replace(library.folder / "dog.safetensors")
    report = library.scan()
    assert [entry.id for entry in report.new] == [cat.id]
    assert [entry.path.name for entry in report.moved] == ["dog.safetensors"]
    assert library.get(cat.id).added == cat.added
    time.sleep(0.01)
    (library.folder / "dog.safetensors").write_bytes(CAT)
    report = library.scan()
    assert (report.new, report.gone) == ((), (dog.id,))
    assert library.scan() == type(report)()
    assert library.add(DOG).times_used == 1


def test_cards_in_the_folder_are_concepts_and_pictures_are_left_alone(library):
    (library.folder / "card.png").write_bytes(embed(png(), DOG))
    (library.folder / "plain.png").write_bytes(png())
    (library.folder / "broken.png").write_bytes(embed(png(), DOG)[:-3])
    (library.folder / "no.safetensors").write_bytes(b"\x80\x04pickle")
    (library.folder / ".hidden.safetensors").write_bytes(CAT)
    (library.folder / "link.safetensors").symlink_to("/etc/passwd")
    (library.folder / "folder.safetensors").mkdir()
    report = library.scan()
    assert [entry.path.name for entry in report.new] == ["card.png"]
    assert [path.name for path, _ in report.foreign] == ["broken.png", "no.safetensors"]
    assert report.new[0].size == len(DOG)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such name")
def test_a_file_name_need_not_be_text(library):
    Path(os.fsdecode(os.fsencode(library.folder) + b"/\xff.safetensors")).write_bytes(DOG)
    assert library.scan().new == tuple(library.find())
    assert library.find()[0].path.read_bytes() == DOG
    assert "Biscuit" in run("library", "list", "--folder", library.folder).output


def colour(file: Path) -> str:
    """The strongest of r, g and b in the middle of a thumbnail."""
    with Image.open(file) as image:
        assert image.size == (256, 256)
        return max(zip(image.getpixel((128, 128)), "rgb", strict=True))[1]


def test_thumbnails(library):
    red, blue = Image.new("RGB", (90, 60), (200, 30, 30)), Image.new("RGB", (60, 60), (30, 30, 200))
    plain = library.add(DOG)
    assert plain.thumbnail is None
    carded = library.add(card_image.make(CAT, [red]))
    signed = library.add(to_bytes(annotated(from_bytes(DOG), thumbnail=blue)))
    assert colour(carded.thumbnail) == "r"
    assert colour(signed.thumbnail) == "b"
    assert colour(library.set_thumbnail(plain.id, red).thumbnail) == "r"
    assert colour(library.set_thumbnail(plain.id, png_of(blue)).thumbnail) == "b"
    odd = annotated(from_bytes(CAT), author="x").extra | {"modelspec.thumbnail": "data:image/png;base64,AAAA"}
    assert library.add(concept_file(extra=odd)).thumbnail is None
    with pytest.raises(ImageError, match="cannot be read as a picture"):
        library.set_thumbnail(plain.id, b"no picture")


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"no database at all" * 100),
        lambda file: file.write_bytes(file.read_bytes()[:5000]),
        lambda file: file.write_bytes(file.read_bytes()[:4096] + os.urandom(8192)),
        lambda file: sqlite3.connect(file).execute("PRAGMA user_version = 99").connection.close(),
    ],
)
def test_the_index_is_only_a_cache(library, harm):
    dog = library.add(embed(png((64, 64)), DOG))
    dog = library.rename(library.tag(dog.id, "pets").id, "Rex")
    harm(library.folder / ".library" / "index.sqlite")
    (found,) = library.find("pets")
    assert (found.id, found.tags, found.name, found.thumbnail) == (dog.id, ("pets",), "Rex", dog.thumbnail)


def test_damaged_notes_are_no_notes(library):
    dog = library.tag(library.add(DOG).id, "pets")
    for text in ("", "[", "[]", '{"tags": 1}', '{"tags": [1]}', '{"name": []}', "[" * 100_000):
        (library.folder / ".library" / "notes" / f"{dog.id}.json").write_text(text)
        (library.folder / ".library" / "index.sqlite").unlink()
        assert library.get(dog.id).tags == ()


def test_two_processes_at_once(library):
    """Both add the same four concepts, tag one and count its uses; nothing is lost, doubled or refused."""
    shared = [concept_file(name=f"c{i}") for i in range(4)]
    (library.folder.parent / "all").mkdir()
    for i, data in enumerate(shared):
        (library.folder.parent / "all" / f"{i}.safetensors").write_bytes(data)
    code = (
        "import sys; from pathlib import Path; from atomdiff.library import Library\n"
        "library = Library(sys.argv[1])\n"
        "for path in sorted(Path(sys.argv[1]).with_name('all').iterdir()):\n"
        "    entry = library.add(path)\n"
        "    library.tag(library.named('c0').id, f'{sys.argv[2]}-{path.stem}')\n"
        "    library.used(library.named('c0').id); library.scan(); library.find('c')\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(library.folder), name], stderr=subprocess.PIPE)
        for name in "ab"
    ]
    assert [(process.communicate(timeout=120)[1], process.returncode) for process in both] == [(b"", 0)] * 2
    first = library.named("c0")
    assert (first.times_used, len(first.tags)) == (8, 8)
    assert len(library.find()) == len(list(library.folder.glob("*.safetensors"))) == 4


@settings(max_examples=60)
@given(st.text(max_size=50))
def test_names_of_files_are_safe_everywhere(title):
    name = file_name(title, "0123456789abcdef")
    assert name.endswith("-01234567.safetensors")
    assert Path(name).name == name
    assert len(name.encode()) < 200
    assert not set(name) & set('<>:"/\\|?* \0')
    assert not name.startswith((".", "-"))
    assert all(letter.isprintable() for letter in name)


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("My Dog", "my-dog"), ("../../etc/passwd", "etc-passwd"), ("CON", "con"), ("犬 の Rex", "犬-の-rex"),
        ("", "concept"), ("???", "concept"), ("a" * 99, "a" * 40),
    ],
)  # fmt: skip
def test_slugs(title, expected):
    assert slug(title) == expected


@pytest.mark.parametrize("existing", [CAT, DOG])
def test_a_name_that_is_taken_is_left_alone(library, existing):
    taken = library.folder / f"biscuit-{library.add(DOG).id[:8]}.safetensors"
    library.remove(library.named("biscuit").id)
    taken.write_bytes(existing)
    entry = library.add(DOG)
    library.scan()
    assert entry.path.read_bytes() == DOG
    assert taken.read_bytes() == existing
    assert len(library.find()) == (1 if existing == DOG else 2)


def test_the_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("ATOMDIFF_LIBRARY", str(tmp_path / "mine"))
    assert default_folder() == Library().folder == tmp_path / "mine"
    monkeypatch.delenv("ATOMDIFF_LIBRARY")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "atomdiff" / "library"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert default_folder() == Path.home() / ".local" / "share" / "atomdiff" / "library"


def test_a_folder_that_cannot_be_kept_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConceptError, match=r"The library cannot be kept: .*file"):
        Library(tmp_path / "file" / "library")


def test_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("ATOMDIFF_LIBRARY", str(tmp_path / "library"))
    (tmp_path / "cat.safetensors").write_bytes(CAT)
    assert "holds no concept yet" in run("library", "list").output
    done = run("library", "add", to_text(DOG), tmp_path / "cat.safetensors", "--tag", "pets")
    assert done.exit_code == 0, done.output
    assert f"Biscuit ({Library().named('biscuit').id[:8]}, {len(DOG):,} bytes)" in done.output
    assert "Minka" in run("library", "list", "cat", "--tag", "pets").output
    listed = json.loads(run("library", "list", "--json").stdout)
    assert {entry["name"] for entry in listed} == {"Biscuit", "Minka"}
    assert run("library", "tag", "biscuit", "old", "--remove", "pets").output == "Biscuit: old\n"
    assert "is in the trash" in run("library", "remove", "biscuit").output
    assert "biscuit-" in run("library", "restore").output
    assert "Biscuit" in run("library", "restore", "biscuit").output
    assert "is in the trash" in run("library", "remove", "biscuit").output
    (tmp_path / "library" / "no.safetensors").write_bytes(b"x")
    assert "no.safetensors" in run("library", "scan").stderr
    assert "Biscuit" in run("library", "restore", Path(listed[1]["path"]).stem).output
    for wrong in (
        ("tag", "nobody", "x"),
        ("restore", "nobody"),
        ("add", tmp_path / "no.png"),
        ("remove", "no"),
    ):
        done = run("library", *wrong)
        assert (done.exit_code, done.stderr.count("\n"), done.stderr[:7]) == (2, 1, "error: ")


def test_commands_for_one_concept_take_names_of_the_library(tmp_path, monkeypatch):
    monkeypatch.setenv("ATOMDIFF_LIBRARY", str(tmp_path / "library"))
    Library().add(DOG)
    assert run("export", "biscuit").stdout.strip() == to_text(DOG)
    assert json.loads(run("inspect", "biscuit", "--json").stdout)["name"] == "Biscuit"
    assert run("convert", "biscuit", "--out", tmp_path / "dog.safetensors").exit_code == 0
    assert (tmp_path / "dog.safetensors").read_bytes() == DOG
    done = run("export", "nobody")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1) and "no concept called" in done.stderr


def test_drawing_commands_take_names_of_the_library(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATOMDIFF_LIBRARY", str(tmp_path / "library"))
    assert split_strength("biscuit:0.5") == ("biscuit", 0.5)  # no library, no look-up
    entry = Library().add(DOG)
    ((concept, strength),) = load_concepts(["biscuit:0.5"])
    assert (concept.name, strength) == ("Biscuit", 0.5)
    assert capsys.readouterr().err == f"note: 'biscuit' is {entry.path} in the library\n"
    assert Library().get(entry.id).times_used == 1
    assert split_strength("sks") == (str(entry.path), 1.0)
    Path("biscuit").write_bytes(CAT)  # a file goes before a name
    assert load_concepts(["biscuit"])[0][0].name == "Minka"
    with pytest.raises(ConceptError, match=r"There is no file .rex.. The library in .* has no concept"):
        load_concepts(["rex"])
    with pytest.raises(ConceptError, match=r"'rex.safetensors' cannot be read"):
        load_concepts(["rex.safetensors"])
