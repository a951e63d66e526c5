"""The service as a process: its flags, and an end that loses nothing."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path

import httpx
from typer.testing import CliRunner

from atomdiff.cli import app
from benchmarks.serving import SERVICE, served

PICTURES = Path(__file__).parent.parent / "assets" / "dog"


def test_sigterm_answers_what_was_taken_and_trainings_go_on_at_the_next_start(tiny_folder, tmp_path):
    flags = ("--base", str(tiny_folder("sd1")), "--window", "0")
    files = [("pictures", (path.name, path.read_bytes())) for path in sorted(PICTURES.glob("*.png"))]
    more = {"max_train_steps": 60, "recipe": "atoms", "with_prior_preservation": False}
    said = {"class_word": "dog", "settings": json.dumps(more)}
    drawing = {"prompt": "a dog", "steps": 60, "batch_size": 4}
    answers: list[httpx.Response] = []
    with (
        served(tmp_path, *flags, command=SERVICE) as first,
        httpx.Client(base_url=first.url, timeout=300) as http,
    ):
        ident = http.post("/train", data=said, files=files).json()["id"]
        _until(lambda: http.get(f"/train/{ident}").json()["step"] > 2)

        def draw() -> None:
            answers.append(httpx.post(f"{first.url}sdapi/v1/txt2img", json=drawing, timeout=300))

        asking = threading.Thread(target=draw)
        asking.start()
        _until(lambda: http.get("/sdapi/v1/progress").json()["state"]["job_count"] == 1)
        first.process.send_signal(signal.SIGTERM)
        asking.join()
        assert first.process.wait(300) == 0
        assert "Traceback" not in first.log.read_text()
    assert answers[0].status_code == 200 and len(answers[0].json()["images"]) == 4
    with (
        served(tmp_path, *flags, command=SERVICE) as second,
        httpx.Client(base_url=second.url, timeout=300) as http,
    ):
        state = http.get(f"/train/{ident}").json()
        assert state["state"] in ("waiting", "running") and state["step"] > 2
        _until(lambda: http.get(f"/train/{ident}").json()["state"] not in ("waiting", "running"))
        done = http.get(f"/train/{ident}").json()
        assert (done["state"], done["step"]) == ("done", 60)
        assert http.get(f"/concepts/{done['concept']}").status_code == 200


def _until(met, seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_flags_that_cannot_work_are_told():
    def refused(*flags: str) -> str:
        done = CliRunner().invoke(app, ["serve", *flags])
        assert done.exit_code == 2
        return done.stderr

    assert "give a --token too" in refused("--host", "0.0.0.0")
    assert "at least 8 letters" in refused("--token", "short")
    assert "no spaces" in refused("--token", "two words, long")
    assert "limit of steps is at least 1" in refused("--max-steps", "0")
    assert "--ray" in refused("--base", "pocket", "--base", "sd15")
    assert "leave --prediction_type" in refused("--ray", "--prediction_type", "epsilon")
    assert "FEWEST:MOST" in refused("--ray", "--port", "0", "--replicas", "4:1")
    assert "from 1 to 65535" in refused("--port", "70000")
    assert "cannot be listened on" in refused("--host", "192.0.2.1", "--token", "long-enough")


def test_a_list_for_the_farm_is_read_before_anything_is_begun(tmp_path):
    subjects = tmp_path / "subjects.jsonl"
    for text, told in (
        ("{", "is no JSON"),
        ("", "a JSON list of subjects"),
        ('{"name": "a"}', "Entry 1 of"),
        ('{"instance_data_dir": "nowhere"}', "does not exist"),
    ):
        subjects.write_text(text)
        done = CliRunner().invoke(app, ["farm", str(subjects), "--out", str(tmp_path / "out")])
        assert done.exit_code == 2 and told in done.stderr, done.output
    assert not (tmp_path / "out").exists()
