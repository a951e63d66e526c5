"""The studio for programs: what the docs show, as a program runs it."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from PIL import Image

from atomdiff.files.safetensors_file import save_concept
from benchmarks.serving import ROOT, served

pytestmark = pytest.mark.filterwarnings("default")  # what a client's library warns of is not ours


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A studio's folder with one concept in its library: random small atoms, called Rex."""
    import torch

    from atomdiff.base.stable_diffusion import load_base
    from atomdiff.concept.concept import Concept
    from atomdiff.core import inject
    from atomdiff.core.inject import AtomSpec

    base, generator = load_base("pocket"), torch.Generator().manual_seed(0)
    spec = AtomSpec(linear_atoms="none")
    atoms = {
        layer: 0.1 * torch.randn(9, 9, generator=generator) for layer in inject.select(base.unet, spec).conv
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("studio")
    concept = Concept.of(base.unet, spec, atoms, base.passport, trigger="sks", class_word="dog", name="Rex")
    save_concept(concept, folder / "concepts" / "rex.safetensors")
    return folder


@pytest.fixture(scope="module")
def url(folder):
    """The address of a studio that runs."""
    with served(folder) as studio:
        yield studio.url
        assert "Traceback" not in studio.log.read_text()


@pytest.fixture(autouse=True)
def one_request_after_the_other(monkeypatch):
    """gradio_client loses a request that begins while the server closes the stream of the one before."""
    from gradio_client import Client

    own = Client.predict

    def predict(client, *args, **kwargs):
        try:
            return own(client, *args, **kwargs)
        finally:
            until = time.monotonic() + 5
            while client.stream_open and time.monotonic() < until:
                time.sleep(0.01)

    monkeypatch.setattr(Client, "predict", predict)


def test_the_example_for_programs_in_the_docs_runs(url, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "studio.md").read_text("utf-8"), re.DOTALL)[1]
    names: dict = {}
    exec(code.replace("http://127.0.0.1:7860", url), names)
    assert [picture["seed"] for picture in names["drawn"]] == [7, 8]
    with Image.open(names["drawn"][0]["file"]) as picture:
        assert picture.info["parameters"] == names["told"]["text"]
    assert len(names["grid"]) == 5
    assert "Denoising strength: 0.6" in names["like"][0]["text"]


def test_programs_are_told_sentences_and_kept_apart(url):
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    one, other = (Client(url, verbose=False) for _ in range(2))
    drawn = one.predict("a dog", steps=1, concepts=[["Rex", 0.5]], api_name="/draw")
    assert "Rex:0.5:" in drawn[0]["text"]
    parts = one.predict("a dog", steps=1, concepts=[["Rex", "down=0.5 up=1"]], api_name="/draw")
    assert "Rex:down=0.5 mid=1 up=1:" in parts[0]["text"]
    assert other.predict(api_name="/history") == []
    assert other.predict([drawn[0]["id"]], api_name="/delete") == 0
    for wrong, message in (
        ({"prompt": ""}, "no prompt"),
        ({"prompt": "a dog", "concepts": [["Nobody", 1]]}, "no concept called 'Nobody'"),
        ({"prompt": "a dog", "concepts": [["Rex"]]}, "wrong kind"),
        ({"prompt": "a dog", "base": "/etc"}, "not started with the base"),
    ):
        with pytest.raises(AppError, match=message):
            one.predict(**wrong, api_name="/draw")


def test_no_file_outside_the_pictures_is_served(url, folder):
    import httpx

    private = [folder / "out" / "secret", folder / "out" / "history.sqlite", "/etc/passwd", ROOT / "app.py",
               f"{folder}/out/pictures/../secret", folder / "concepts" / "rex.safetensors"]  # fmt: skip
    for path in private:
        answer = httpx.get(f"{url}gradio_api/file={path}")
        assert answer.status_code in (403, 404), path
    assert httpx.get(f"{url}config").json()["analytics_enabled"] is False


def test_the_second_example_for_programs_in_the_docs_runs(url, monkeypatch):
    from gradio_client.exceptions import AppError

    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "studio.md").read_text("utf-8"), re.DOTALL)
    code = next(block for block in blocks if "/train" in block)
    names: dict = {}
    exec(
        code.replace("http://127.0.0.1:7860", url).replace('"max_train_steps": 100', '"max_train_steps": 1'),
        names,
    )
    assert names["concept"]["name"] == "Bello"
    assert Path(names["card"]["file"]).stat().st_size > 10_000
    with Image.open(names["card"]["file"]) as picture:
        assert picture.size == (1080, 1350)
    client = names["client"]
    for action, wrong, message in (
        ("/train", ([], "dog", "", "good", {}), "There are no pictures"),
        ("/save_state", ("../..", 1), "no such training"),
        ("/share", ("nothing", "file"), "has no file of the concept"),
        ("/remove_concept", ("nothing",), "has no file of the concept"),
        ("/restore_concept", ("../notes",), "trash holds no concept"),
    ):
        with pytest.raises(AppError, match=message):
            client.predict(*wrong, api_name=action)


def test_regions_styles_and_what_the_buttons_do_are_endpoints_too(url):
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(url, verbose=False)
    few = {"steps": 2, "concepts": [["Rex", 1]], "seed": 3}
    drawn = client.predict(
        "on the beach", **few, regions=[["Rex", "0,0,0.5,1"]], style="clay", hires=1.5, api_name="/draw"
    )
    assert "Regions: " in drawn[0]["text"] and "Hires upscale: 1.5" in drawn[0]["text"]
    assert drawn[0]["text"].split("\n")[0] != "on the beach"
    ids = [drawn[0]["id"]]
    made = {how: client.predict(ids, how, api_name="/rework") for how in ("variations", "sticker", "sheet")}
    assert [picture["kind"] for picture in made["variations"]] == ["variation"] * 4
    assert [made[how][0]["kind"] for how in ("sticker", "sheet")] == ["sticker", "sheet"]
    for wrong, message in (
        ({"regions": [["Mia", "0,0,1,1"]]}, "one of the concepts that are given, not 'Mia'"),
        ({"regions": [["Rex", "0,0,x,1"]]}, "four numbers"),
        ({"regions": [["Rex"]]}, "wrong kind"),
    ):
        with pytest.raises(AppError, match=message):
            client.predict("a dog", **(few | wrong), api_name="/draw")
    with pytest.raises(AppError, match="not 'frame'"):
        client.predict(ids, "frame", api_name="/rework")
