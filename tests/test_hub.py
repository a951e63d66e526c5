"""Pushing to and pulling from a hub that really answers, on loopback."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import yaml
from hub_server import Hub, Repo, running
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_card import concept_file, png
from tiny_concepts import concept
from typer.testing import CliRunner

from atomdiff import cli
from atomdiff.base.stable_diffusion import load_base
from atomdiff.errors import ConceptError, ImageError, SettingsError
from atomdiff.files import card
from atomdiff.files.modelspec import annotated
from atomdiff.files.safetensors_file import from_bytes, load_concept, save_concept, to_bytes
from atomdiff.library.hub import MAX_BYTES, pull, push
from atomdiff.library.hub_card import readme, sample

DOG = concept_file()

# the hub client's own, from how it hands a file to its HTTP library
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    """A hub, a cache and no log-in of the machine's own."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    with running() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


@pytest.fixture
def dog(tmp_path) -> Path:
    (tmp_path / "dog.safetensors").write_bytes(DOG)
    return tmp_path / "dog.safetensors"


def drawn(prompt: str) -> bytes:
    texts, buffer = PngInfo(), io.BytesIO()
    texts.add_text("parameters", f"{prompt}\nSteps: 25, Seed: 0")
    Image.new("RGB", (64, 64), (200, 30, 30)).save(buffer, "PNG", pnginfo=texts)
    return buffer.getvalue()


def test_there_and_back(hub, dog, tmp_path):
    (tmp_path / "beach.png").write_bytes(drawn("a sks dog on the beach"))
    address = push(dog, "ada/biscuit", token="hf_ada", endpoint=hub.url, pictures=[tmp_path / "beach.png"])
    assert address == f"{hub.url}/ada/biscuit"
    files = hub.repos["ada/biscuit"].commits[-1]
    assert set(files) == {
        ".gitattributes", "README.md", "biscuit.safetensors", "card.png", "samples/1.png",
    }  # fmt: skip
    assert files["biscuit.safetensors"] == card.extract(files["card.png"]) == DOG
    assert files["samples/1.png"] == drawn("a sks dog on the beach")
    path = pull("ada/biscuit", endpoint=hub.url)
    assert path.read_bytes() == DOG
    assert path.name == "biscuit.safetensors"


def test_pushing_again_replaces_what_was_there(hub, dog, tmp_path):
    (tmp_path / "a.png").write_bytes(drawn("a"))
    push(dog, "ada/biscuit", token="hf_ada", pictures=[tmp_path / "a.png"] * 2)
    dog.write_bytes(concept_file(trigger="new"))
    push(dog, "ada/biscuit", token="hf_ada", pictures=[tmp_path / "a.png"])
    repo = hub.repos["ada/biscuit"]
    assert len(repo.commits) == 3
    assert [file for file in repo.commits[-1] if file.startswith("samples/")] == ["samples/1.png"]
    assert load_concept(pull("ada/biscuit")).trigger == "new"
    repo.tags["v1"] = 1
    assert load_concept(pull("ada/biscuit@v1")).trigger == "sks"


def test_without_a_network_the_cache_serves(hub, dog, monkeypatch):
    hub.repos["ada/biscuit"] = Repo(commits=[{"biscuit.safetensors": DOG}], tags={"v1": 0})
    hub.repos["ada/deep"] = Repo(commits=[{"in/a.safetensors": DOG}])
    paths = {name: pull(name) for name in ("ada/biscuit", "ada/biscuit@v1", "ada/deep")}
    asked = len(hub.seen)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert {name: pull(name) for name in paths} == paths
    assert len(hub.seen) == asked
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub.down = True
    assert pull("ada/biscuit") == paths["ada/biscuit"]
    nobody = "http://127.0.0.1:9"  # nothing listens on the discard port
    assert pull("ada/biscuit", endpoint=nobody) == paths["ada/biscuit"]
    for name, options in (("ada/other", {}), ("ada/biscuit@v2", {}), ("ada/other", {"endpoint": nobody})):
        with pytest.raises(ConceptError, match=r"cannot be reached for 'ada/.*nothing of it is kept"):
            pull(name, **options)
    with pytest.raises(ConceptError, match="cannot be reached"):
        push(dog, "ada/biscuit", token="hf_ada")


def test_private_repositories(hub):
    hub.repos["ada/secret"] = Repo(True, [{"secret.safetensors": DOG}])
    assert pull("ada/secret", token="hf_ada").read_bytes() == DOG
    for token in (None, "hf_bob"):
        with pytest.raises(ConceptError, match=r"no repository 'ada/secret' that you may see.*hf auth login"):
            pull("ada/secret", token=token)


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("ada/x", None, "needs a token.*hf auth login"),
        ("bob/x", "hf_ada", "does not let you write to 'bob/x'"),
        ("ada/x", "hf_wrong", "does not let you write to 'ada/x'"),
        ("ada/taken", "hf_ada", r"holds something else \(model.bin\): choose a new name"),
    ],
)
def test_what_may_not_be_pushed(hub, dog, repo, token, message):
    hub.repos["ada/taken"] = Repo(commits=[{"README.md": b"mine", "model.bin": b"mine"}])
    with pytest.raises(ConceptError, match=message):
        push(dog, repo, token=token)
    assert hub.repos["ada/taken"].commits[1:] == []


def test_what_is_no_concept_is_not_pushed(hub, dog, tmp_path):
    (tmp_path / "no.safetensors").write_bytes(b"x" * 50)
    with pytest.raises(ConceptError, match=r"no.safetensors'"):
        push(tmp_path / "no.safetensors", "ada/x", token="hf_ada")
    with pytest.raises(ImageError, match=r"no.safetensors' cannot be read as a picture"):
        push(dog, "ada/x", token="hf_ada", pictures=[tmp_path / "no.safetensors"])
    with pytest.raises(SettingsError, match="at most 12 pictures, not 13"):
        push(dog, "ada/x", token="hf_ada", pictures=["a.png"] * 13)
    with pytest.raises(SettingsError, match="without a revision: ada/x"):
        push(dog, "ada/x@v1", token="hf_ada")
    assert hub.seen == []


def lora() -> bytes:
    header = json.dumps({"lora_up": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"README.md": b"", "pytorch_model.bin": b"\x80"}, "holds no concept"),
        ({}, "holds no concept"),
        (
            {"a.safetensors": DOG, "b.safetensors": DOG},
            r"2 \.safetensors files and none is called x.safetensors",
        ),
        ({"a.safetensors": lora()}, "This is a LoRA, not an atomdiff concept"),
        ({"x.safetensors": b"\x80\x04pickle"}, "not a concept"),
        (
            {"x.safetensors": bytes(MAX_BYTES + 1)},
            r"ada/x/x.safetensors' has 8.0 MiB, and a concept at most 8 MiB",
        ),
    ],
)
def test_what_is_no_concept_is_not_pulled(hub, files, message):
    hub.repos["ada/x"] = Repo(commits=[files])
    with pytest.raises(ConceptError, match=message):
        pull("ada/x")
    if "8.0 MiB" in message:
        assert not any(request.startswith("GET /ada") for request in hub.seen), "it was downloaded"


def test_the_only_concept_or_the_one_named_like_the_repository_is_pulled(hub):
    other = concept_file(name="other")
    hub.repos["ada/x"] = Repo(commits=[{"a.safetensors": other, "x.safetensors": DOG}])
    hub.repos["ada/y"] = Repo(commits=[{"sub/a.safetensors": DOG}])
    assert pull("ada/x").read_bytes() == pull("ada/y").read_bytes() == DOG


def test_what_is_not_there_is_said(hub):
    with pytest.raises(ConceptError, match="no repository 'ada/none' that you may see"):
        pull("ada/none")
    hub.repos["ada/biscuit"] = Repo(commits=[{"biscuit.safetensors": DOG}])
    with pytest.raises(ConceptError, match=r"no such revision of the repository 'ada/biscuit@v9'"):
        pull("ada/biscuit@v9")


@pytest.mark.parametrize(
    "name", ["", "x", "a/b/c", "../x", "a/..", "a/b@", "a/b@../x", "a b/c", "https://x/y", "a/b@c d", "ä/b"]
)
def test_a_wrong_name_is_told_without_asking_the_hub(hub, name):
    with pytest.raises(SettingsError, match="named user/name"):
        pull(name)
    assert hub.seen == []


def front(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_page(tmp_path):
    (tmp_path / "a.png").write_bytes(drawn("a sks dog in space"))
    said = annotated(from_bytes(DOG), author="Ada", license="CC0-1.0", usage_hint="Try 0.8.")
    data = to_bytes(said)
    page = readme("ada/biscuit", data, [sample(tmp_path / "a.png", 1)])
    assert front(page) == {
        "base_model": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "license": "cc0-1.0",
        "library_name": "atomdiff",
        "pipeline_tag": "text-to-image",
        "tags": ["atomdiff", "text-to-image", "concept", "sd1"],
        "instance_prompt": "a sks dog",
        "widget": [{"text": "a sks dog in space", "output": {"url": "samples/1.png"}}],
    }
    for line in (
        "# Biscuit",
        "- **Trigger**: `sks`",
        "- **Base**: `sd15` (sd1-1a2b3c4d)",
        "- **Licence**: CC0-1.0",
        f"- **Size**: {len(data):,} bytes, fp16",
        "atomdiff pull ada/biscuit --out biscuit.safetensors",
        "atomdiff generate --concept biscuit.safetensors 'a sks dog on the beach'",
        "![a sks dog in space](samples/1.png)",
        "Try 0.8.",
    ):
        assert line in page.splitlines()


def test_a_page_of_little_says_little_and_obeys_nobody():
    other = annotated(from_bytes(DOG), license="Ask me: first!")
    assert front(readme("a/b", to_bytes(other)))["license_name"] == "ask-me-first"
    wicked = concept_file(
        name="<script>alert(1)</script> [x](http://evil)",
        trigger="`$(rm -rf ~)`\u2028---",
        training={},
        class_word="",
    )
    page = readme("a/b", wicked)
    assert "license" not in front(page)
    assert "widget" not in front(page)
    assert r"\<script\>alert\(1\)\</script\> \[x\]\(http://evil\)" in page
    assert "'`$(rm -rf ~)`\u2028--- on the beach'" in page
    assert "not stated by its author" in page


def test_a_photo_gives_away_no_more_than_its_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "our house"
    for kind in ("jpg", "png"):
        Image.new("RGB", (64, 64)).save(tmp_path / f"photo.{kind}", exif=exif)
    (tmp_path / "plain.png").write_bytes(png())
    for name in ("photo.jpg", "photo.png", "plain.png"):
        made = sample(tmp_path / name, 3)
        assert made.path == "samples/3.jpg"
        assert b"our house" not in made.data


def test_on_the_command_line(hub, dog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_ada")
    done = CliRunner().invoke(cli.app, ["push", str(dog), "ada/biscuit", "--private"])
    assert (done.exit_code, done.stdout) == (0, f"{hub.url}/ada/biscuit\n")
    assert hub.repos["ada/biscuit"].private
    for arguments, file in (
        ([], "biscuit.safetensors"),
        (["--out", "new/x.safetensors"], "new/x.safetensors"),
    ):
        done = CliRunner().invoke(cli.app, ["pull", "ada/biscuit", *arguments])
        assert (done.exit_code, done.stdout) == (0, f"{file} ({len(DOG):,} bytes)\n")
        assert Path(file).read_bytes() == DOG
    for wrong in (
        ["pull", "ada/none"],
        ["pull", "ada/biscuit", "--out", "x.ckpt"],
        ["push", "none", "ada/x"],
    ):
        done = CliRunner().invoke(cli.app, wrong)
        assert (done.exit_code, done.stderr.count("\n"), done.stderr[:7]) == (2, 1, "error: ")


def test_the_pages_python_runs_word_for_word(hub, tmp_path, monkeypatch):
    """On the pocket; for a base of the hub its pipeline is fetched there."""
    monkeypatch.chdir(tmp_path)
    save_concept(concept(load_base("pocket")), tmp_path / "dog.safetensors")
    push(tmp_path / "dog.safetensors", "ada/biscuit", token="hf_ada")
    page = hub.repos["ada/biscuit"].commits[-1]["README.md"].decode()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(compile(code, "README.md", "exec"), {})
    with Image.open(tmp_path / "biscuit.png") as picture:
        assert picture.size == (128, 128)
    dog = load_concept(tmp_path / "dog.safetensors")
    named = replace(dog, base=replace(dog.base, name="sd15"))
    assert "from_pretrained('stable-diffusion-v1-5/" in readme("ada/biscuit", to_bytes(named))
    lost = replace(named, base=replace(dog.base, name="my model"))
    assert "```python" not in readme("ada/biscuit", to_bytes(lost))
