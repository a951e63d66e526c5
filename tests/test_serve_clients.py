"""The service, as real clients of A1111's and OpenAI's APIs use it."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import webuiapi
from PIL import Image
from serving_here import OTHER, TOKEN, service_of, serving

import atomdiff
from atomdiff.files import card
from atomdiff.files.text import to_text
from atomdiff.sampling.infotext import parse

PICTURES = Path(__file__).parent.parent / "assets" / "dog"
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # what webuiapi leaves open


@pytest.fixture(scope="module")
def service(tiny_base, tmp_path_factory):
    return service_of(tiny_base(), tmp_path_factory.mktemp("serve"), (TOKEN, OTHER), window=0.2)


@pytest.fixture(scope="module")
def url(service):
    with serving(service) as url:
        yield url


@pytest.fixture(scope="module")
def a1111(url):
    client = webuiapi.WebUIApi(baseurl=f"{url}/sdapi/v1", username="any", password=TOKEN, steps=2)
    yield client
    client.session.close()


@pytest.fixture(scope="module")
def ai(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def http(url):
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=120) as client:
        yield client


def same(one: Image.Image, other: Image.Image) -> bool:
    """But for rounding."""
    gap = np.abs(np.asarray(one.convert("RGB"), np.int16) - np.asarray(other, np.int16))
    return one.size == other.size and int(gap.max()) <= 1


def test_a1111_draws_the_very_pictures_of_draw(service, a1111):
    made = a1111.txt2img(
        prompt="a sks dog <atom:dog:0.8>", negative_prompt="red", seed=5, batch_size=2, width=32, height=24,
        sampler_name="DPM++ 2M", scheduler="karras", cfg_scale=3,
    )  # fmt: skip
    base, dog = service.bases.get(service.bases.default), card.load(service.entry("dog").path)
    wanted = atomdiff.draw(
        base, "a sks dog", concepts=[(dog, 0.8)], count=2, seed=5, steps=2, size=(32, 24), negative="red",
        sampler="dpm++ karras", guidance=3,
    )  # fmt: skip
    assert len(made.images) == 2 and all(map(same, made.images, wanted))
    assert made.images[1].info["parameters"] == wanted[1].info["parameters"]
    assert made.info["all_seeds"] == [5, 6]
    lora = a1111.txt2img(prompt="a sks dog <lora:dog:0.8>", seed=5, width=32, height=24)
    other = a1111.txt2img(prompt="a sks dog <atom:dog:0.2>", seed=5, width=32, height=24)
    assert "dog:0.8" in lora.info["infotexts"][0]
    assert not same(lora.image, other.image)


def test_concepts_act_in_regions_as_in_draw(service, http, ai):
    from atomdiff.sampling.region import Region

    right = Image.new("L", (64, 64))
    right.paste(255, (32, 0, 64, 64))
    sent = io.BytesIO()
    right.save(sent, "PNG")
    regions = [
        {"concepts": ["dog:0.8"], "box": [0, 0, 0.5, 1]},
        {"concepts": ["cat"], "mask": base64.b64encode(sent.getvalue()).decode(), "prompt": "a zwx cat"},
    ]
    asked = {"prompt": "a sks dog and a zwx cat", "seed": 3, "steps": 2, "regions": regions}
    answer = http.post("/sdapi/v1/txt2img", json=asked | {"batch_size": 2, "width": 32, "height": 32}).json()
    made = [Image.open(io.BytesIO(base64.b64decode(one))) for one in answer["images"]]
    base = service.bases.get(service.bases.default)
    dog, cat = (card.load(service.entry(name).path) for name in ("dog", "cat"))
    wanted = atomdiff.draw(
        base, asked["prompt"], concepts=[(dog, 0.8), cat], count=2, seed=3, steps=2, size=(32, 32),
        acting="plain", regions=[Region((0, 0, 0.5, 1), (0,)), Region(right, (1,), "a zwx cat")],
    )  # fmt: skip
    assert all(map(same, made, wanted))
    assert made[1].info["parameters"] == wanted[1].info["parameters"]
    again = ai.images.generate(prompt=asked["prompt"], size="32x32", extra_body=asked)
    assert same(Image.open(io.BytesIO(base64.b64decode(again.data[0].b64_json))), wanted[0])
    for wrong, told in (
        ({"concepts": ["dog"]}, "a box or a mask"),
        ({"concepts": ["dog"], "box": [0.5, 0, 0.5, 1]}, "left < right"),
        ({"concepts": ["dog:loud"], "box": [0, 0, 1, 1]}, "loud"),
        ({"concepts": ["mouse"], "box": [0, 0, 1, 1]}, "mouse"),
        ({"concepts": ["dog"], "box": [0, 0, 1]}, "regions.0.box"),
    ):
        refused = http.post("/sdapi/v1/txt2img", json=asked | {"regions": [wrong]})
        assert refused.status_code in (400, 422) and told in refused.json()["error"], refused.text


def test_a1111_draws_from_pictures_and_into_them(a1111):
    photo = Image.new("RGB", (40, 40), "teal")
    changed = a1111.img2img(
        [photo], prompt="a <atom:cat>", denoising_strength=0.5, width=32, height=32, seed=1
    )
    assert changed.image.size == (32, 32)
    assert parse(changed.image.info["parameters"]).fields["Denoising strength"] == "0.5"
    mask = Image.new("L", (40, 40))
    mask.paste(255, (0, 0, 10, 10))
    into = a1111.img2img([photo], mask_image=mask, prompt="a", denoising_strength=1, width=32, height=32)
    assert into.image.size == (40, 40) and into.image.getpixel((39, 39)) == (0, 128, 128)


def test_a1111_knows_what_is_there(service, a1111):
    assert a1111.util_get_model_names() == [service.bases.default]
    assert {one["name"]: one["alias"] for one in a1111.get_loras()} == {"dog": "sks", "cat": "zwx"}
    assert "Euler a" in a1111.util_get_sampler_names()
    assert a1111.util_get_current_model() == service.bases.default
    a1111.set_options({"sd_model_checkpoint": service.bases.default})
    assert a1111.get_progress()["progress"] == 0
    assert a1111.get_scripts() == {"txt2img": [], "img2img": []}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"prompt": "<atom:bird>"}, "no concept called"),
        ({"prompt": "<atom:dog:much>"}, "A strength is a number"),
        ({"width": 512, "height": 512}, "at most"),
        ({"steps": 101}, "at most 100 steps"),
        ({"batch_size": 9}, "1 to 8 pictures"),
        ({"enable_hr": True}, "enable_hr"),
        ({"styles": ["x"]}, "styles"),
        ({"sampler_name": "DPM fast"}, "DPM\\+\\+ 2M Karras"),
        ({"sampler_name": "Euler a", "scheduler": "karras"}, "no sampler"),
        ({"override_settings": {"sd_model_checkpoint": "sdxl"}}, "no model"),
        ({"seed": 2**63}, "seed.* is not right"),
    ],
)
def test_a1111_is_told_what_is_wrong_in_a_sentence(a1111, wrong, told):
    with pytest.raises(RuntimeError, match=told):
        a1111.txt2img(**({"prompt": "a", "width": 32, "height": 32} | wrong))


def test_openai_draws_as_a1111_does(a1111, ai):
    asked = {"seed": 3, "steps": 2, "sampler": "euler", "guidance": 7}
    made = ai.images.generate(prompt="a zwx <atom:cat:0.5>", n=2, size="32x32", extra_body=asked)
    pictures = [Image.open(io.BytesIO(base64.b64decode(one.b64_json))) for one in made.data]
    wanted = a1111.txt2img(
        prompt="a zwx <atom:cat:0.5>", seed=3, batch_size=2, width=32, height=32, sampler_name="Euler"
    )
    assert all(map(same, pictures, wanted.images))
    linked = ai.images.generate(prompt="a", response_format="url", size="auto", extra_body={"steps": 1})
    assert linked.data[0].url.startswith("data:image/png;base64,")


def test_openai_is_told_what_is_wrong(ai, url, service):
    assert [one.id for one in ai.models.list()] == [service.bases.default]
    with pytest.raises(openai.BadRequestError, match="There is no model 'dall-e-3' here"):
        ai.images.generate(prompt="a", model="dall-e-3")
    with pytest.raises(openai.UnprocessableEntityError, match="'n' is not right"):
        ai.images.generate(prompt="a", n="many")
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError, match="Send the token"),
    ):
        stranger.models.list()


def test_concepts_come_are_found_and_go(service, http):
    data = service.stored("dog").data
    there = http.get("/concepts").json()
    assert {one["name"] for one in there} == {"dog", "cat"}
    dog = http.get("/concepts/dog").json()
    assert http.get(f"/concepts/{dog['id']}/file").content == data
    assert http.get("/concepts", params={"q": "zwx"}).json()[0]["name"] == "cat"
    assert http.delete("/concepts/dog").json() == dog
    assert http.get("/concepts/dog").status_code == 404
    body = {"prompt": "<atom:dog>", "steps": 1}
    assert http.post("/sdapi/v1/txt2img", json=body).status_code == 400
    added = http.post("/concepts", files={"file": ("../../x.safetensors", data)})
    assert (added.status_code, added.json()) == (201, dog)
    assert http.delete(f"/concepts/{dog['id'][:10]}").status_code == 200
    assert http.post("/concepts/text", json={"text": to_text(data)}).json() == dog
    assert http.post("/sdapi/v1/txt2img", json=body).status_code == 200


def test_requests_of_different_concepts_share_a_batch(service, http):
    before = total(service, "atomdiff_batch_pictures_count")
    answers: dict[str, httpx.Response] = {}

    def ask(prompt: str) -> None:
        answers[prompt] = http.post("/sdapi/v1/txt2img", json={"prompt": prompt, "steps": 2, "seed": 1})

    prompts = ("a sks <atom:dog>", "a zwx <atom:cat:0.5>", "a")
    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total(service, "atomdiff_batch_pictures_count") < before + 3
    images = {prompt: answers[prompt].json()["images"][0] for prompt in prompts}
    assert len(set(images.values())) == 3
    for prompt in prompts:
        ask(prompt)
        assert same(opened(images[prompt]), opened(answers[prompt].json()["images"][0]))


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


def total(service, name: str) -> float:
    """A counter, as Prometheus reads it."""
    from prometheus_client.parser import text_string_to_metric_families

    samples = (
        s for family in text_string_to_metric_families(service.measure().decode()) for s in family.samples
    )
    return sum(sample.value for sample in samples if sample.name == name)


def test_metrics_and_health(url, service, http):
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{url}/metrics").status_code == 401
    text = http.get("/metrics").text
    assert 'atomdiff_requests_total{route="/sdapi/v1/txt2img",status="200"}' in text
    assert total(service, "atomdiff_pictures_total") > 5 and total(service, "atomdiff_waiting_pictures") == 0
    assert total(service, "atomdiff_held_concepts") == 2


LONG = {"prompt": "a <atom:dog>", "steps": 100, "batch_size": 8, "n_iter": 1}


def until(met, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_progress_and_interrupt_are_of_ones_own_token(service, url, a1111, http):
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(http.post("/sdapi/v1/txt2img", json=LONG)))
    thread.start()
    until(lambda: a1111.get_progress()["progress"] > 0)
    assert a1111.get_progress()["state"]["sampling_steps"] == 100
    theirs = {"authorization": f"Bearer {OTHER}"}
    assert httpx.get(f"{url}/sdapi/v1/progress", headers=theirs).json()["progress"] == 0
    assert httpx.post(f"{url}/sdapi/v1/interrupt", headers=theirs).json() == {}
    assert thread.is_alive()
    a1111.interrupt()
    thread.join(60)
    assert answers[0].status_code == 400 and answers[0].json() == {"error": "Stopped, as asked."}


def test_what_nobody_waits_for_is_drawn_no_further(service, http):
    before = total(service, "atomdiff_pictures_total")
    with pytest.raises(httpx.ReadTimeout):
        http.post("/sdapi/v1/txt2img", json=LONG, timeout=1)
    until(lambda: http.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0)
    assert http.post("/sdapi/v1/txt2img", json={"prompt": "a", "steps": 1}).status_code == 200
    assert total(service, "atomdiff_pictures_total") == before + 1


def uploads(folder: str) -> list[tuple[str, tuple[str, bytes]]]:
    return [("pictures", (folder + path.name, path.read_bytes())) for path in sorted(PICTURES.glob("*.png"))]


def test_a_training_is_a_job(service, http):
    files = [
        ("pictures", (f"my dog/{path.name}", path.read_bytes())) for path in sorted(PICTURES.glob("*.png"))
    ]
    files.append(
        ("pictures", (f"my dog/{sorted(PICTURES.glob('*.png'))[0].stem}.txt", b"a sks dog, from the left"))
    )
    more = {"max_train_steps": 3, "recipe": "atoms", "with_prior_preservation": False}
    said = {"class_word": "dog", "name": "Bello", "settings": json.dumps(more)}
    begun = http.post("/train", data=said, files=files)
    assert begun.status_code == 202, begun.text
    ident = begun.json()["id"]
    until(lambda: http.get(f"/train/{ident}").json()["state"] not in ("waiting", "running"), 300)
    done = http.get(f"/train/{ident}").json()
    assert (done["state"], done["step"], done["error"]) == ("done", 3, "")
    assert http.get(f"/concepts/{done['concept']}").json()["name"] == "Bello"
    drawn = http.post("/sdapi/v1/txt2img", json={"prompt": "a sks dog <atom:Bello>", "steps": 1})
    assert drawn.status_code == 200
    assert [one["id"] for one in http.get("/train").json()] == [ident]
    assert http.delete(f"/train/{ident}").json() == {"id": ident}
    assert http.get(f"/train/{ident}").status_code == 404
    assert http.delete(f"/concepts/{done['concept']}").status_code == 200


def test_a_training_is_cancelled_and_drawings_go_before_it(service, http, url):
    files = uploads("")
    more = {"max_train_steps": 5000, "recipe": "atoms", "with_prior_preservation": False}
    said = {"class_word": "dog", "settings": json.dumps(more)}
    begun = [http.post("/train", data=said, files=files).json()["id"] for _ in range(2)]
    until(lambda: http.get(f"/train/{begun[0]}").json()["step"] > 0, 300)
    assert http.post("/sdapi/v1/txt2img", json={"prompt": "a <atom:dog>", "steps": 1}).status_code == 200
    assert http.get(f"/train/{begun[0]}").json()["state"] == "running"
    theirs = {"authorization": f"Bearer {OTHER}"}
    assert httpx.delete(f"{url}/train/{begun[0]}", headers=theirs).status_code == 404
    for ident in reversed(begun):
        assert http.delete(f"/train/{ident}").status_code == 200
    assert http.get("/train").json() == [] and not list(service.trainings.folder.iterdir())


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"class_word": ""}, "Say what is in the pictures"),
        ({"settings": "[]"}, "The settings are JSON"),
        ({"settings": '{"output_dir": "/etc"}'}, "no setting 'output_dir'"),
        ({"quality": "superb"}, "The quality is"),
    ],
)
def test_what_cannot_be_trained_is_told(http, said, told):
    answer = http.post("/train", data={"class_word": "dog"} | said, files={"pictures": ("a.png", b"x")})
    assert answer.status_code == 400 and told in answer.json()["error"]
