"""A cluster of several node processes: what a lost worker or machine was at is done all the same."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest
from serving_here import TOKEN, serving
from tiny_concepts import concept

from atomdiff.files.safetensors_file import load_concept, to_bytes
from atomdiff.library import Library
from atomdiff.serving import remote_training
from atomdiff.training.settings import TrainingSettings
from benchmarks.serving import SERVICE, served

ray = pytest.importorskip("ray", reason="pip install 'atomdiff[ray]'")
PICTURES = Path(__file__).parent.parent / "assets" / "dog"
pytestmark = pytest.mark.filterwarnings("ignore")  # what Ray warns of is not ours


PATIENCE = {"RAY_agent_register_timeout_ms": "300000", "RAY_health_check_timeout_ms": "60000"}
PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


def node() -> dict[str, int]:
    """What a node of this machine is told. With its ports given Ray does not wait for its helpers, which on a
    busy machine take longer to start than it has patience for."""
    with contextlib.ExitStack() as held:
        free = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in PORTS]
        ports = {name: one.getsockname()[1] for name, one in zip(PORTS, free, strict=True)}
    return {"object_store_memory": 80 << 20, "include_log_monitor": False, **ports}


def started(cluster, **options):
    """A node of the cluster, the first one its head; started again where Ray gave it up after 30 seconds."""
    for _ in range(7):
        try:
            return cluster.add_node(**options, **node())
        except Exception as error:
            if "timed out" not in str(error).lower():
                raise
            if cluster.head_node is None:
                for left in psutil.Process().children(recursive=True):
                    left.kill()
    return cluster.add_node(**options, **node())


@pytest.fixture(scope="module")
def cluster():
    """A head without processors, and two nodes of one each."""
    from ray.cluster_utils import Cluster

    from atomdiff.serving.cluster import connect

    with pytest.MonkeyPatch.context() as patch:
        for name, value in PATIENCE.items():
            patch.setenv(name, value)
        cluster = Cluster()
        started(cluster, num_cpus=0, include_dashboard=False, no_monitor=True)
        cluster.nodes = [started(cluster, num_cpus=1) for _ in range(2)]
        connect(cluster.address)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def until(met, seconds: float = 900):
    end = time.monotonic() + seconds
    while not (found := met()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def workers(task: str) -> list[psutil.Process]:
    """The processes that do a task of Ray's."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name().startswith("ray::") and task in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_farm_loses_nothing_with_a_worker_and_a_machine(cluster, tiny_folder, tmp_path):
    from atomdiff.serving import farm

    common = {"base": str(tiny_folder("sd1")), "class_word": "dog", "recipe": "atoms", "max_train_steps": 20}
    common |= {"with_prior_preservation": False, "learning_rate": 1e-3, "checkpointing_steps": 5}
    subjects = [
        farm.Subject.of(TrainingSettings(**common, name=f"dog{i}", seed=i, instance_data_dir=str(PICTURES)))
        for i in range(3)
    ]
    assert len({subject.key for subject in subjects}) == 3
    library, out, seen, done = Library(tmp_path / "library"), tmp_path / "out", [], []
    running = threading.Thread(target=lambda: done.append(farm.farm(subjects, out, library, seen.append)))
    running.start()
    until(lambda: workers("train_one"))[0].kill()
    until(lambda: any(now.last for now in seen))
    cluster.remove_node(cluster.nodes.pop(), allow_graceful=False)
    cluster.nodes.append(started(cluster, num_cpus=1))
    running.join(900)
    assert [now.done for now in seen if now.last] == [1, 2, 3] and {now.total for now in seen} == {3}
    assert {subject.key for subject in subjects} == done[0].keys()
    assert not any("error" in line for line in done[0].values()), done[0]
    assert {entry.title for entry in library.find()} == {f"dog{i}" for i in range(3)}
    again: list[farm.Progress] = []
    assert farm.farm(subjects, out, library, again.append) == done[0]
    assert [(now.done, now.before) for now in again] == [(3, 3)]


def test_a_served_picture_outlives_its_replica(cluster, tiny_folder, tmp_path):
    from atomdiff.cli.arguments import load_base
    from atomdiff.serving.cluster import ClusterService
    from atomdiff.serving.limits import Limits
    from atomdiff.serving.service import Options

    load = functools.partial(load_base, device="cpu", dtype="fp32", given=True)
    bases = [str(tiny_folder("sd1")), str(tiny_folder("sd2"))]
    limits = Limits(batch=4, window=0.2)
    options = Options(load, bases[0], tmp_path / "concepts", tmp_path, tokens=(TOKEN,), limits=limits)
    service = ClusterService(options, bases, replicas=(2, 2))
    for i, reference in enumerate(bases):
        made = concept(load(reference), seed=i, name=f"c{i}")
        service.library.add(to_bytes(made, "int8"))
    answers: dict[int, httpx.Response] = {}
    with serving(service) as url:

        def ask(number: int, steps: int = 30) -> None:
            which = number % 2
            body = {
                "prompt": f"a sks <atom:c{which}:0.{number}>",
                "model": bases[which],
                "n": 2,
                "size": "16x16",
            }
            headers = {"authorization": f"Bearer {TOKEN}"}
            answers[number] = httpx.post(
                f"{url}/v1/images/generations", json=body | {"steps": steps}, headers=headers, timeout=400
            )

        asking = [threading.Thread(target=ask, args=(number,)) for number in range(1, 7)]
        for thread in asking:
            thread.start()
        time.sleep(0.5)
        until(lambda: workers("Replica"))[0].kill()
        for thread in asking:
            thread.join()
        assert {number: answer.status_code for number, answer in answers.items()} == dict.fromkeys(
            range(1, 7), 200
        )
        assert all(len(answer.json()["data"]) == 2 for answer in answers.values())
        ask(8, steps=1)
        ask(9, steps=1)
        assert answers[8].status_code == answers[9].status_code == 200


TRAINED = {"recipe": "atoms", "with_prior_preservation": False, "learning_rate": 1e-3}
ATOMDIFF = [
    sys.executable,
    "-c",
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # as on a terminal
    "from atomdiff.cli import main; main()",
]


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """A tiny random network of DINO's kind."""
    from transformers import ViTConfig, ViTModel

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    folder = tmp_path_factory.mktemp("towers") / "dino"
    ViTModel(ViTConfig(**small, image_size=32, patch_size=8)).save_pretrained(folder)
    return folder


def test_a_farm_from_the_command_line_is_stopped_and_goes_on(cluster, tiny_folder, tower, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes((PICTURES / "0.png").read_bytes()[:200])
    common = TRAINED | {"class_word": "dog", "max_train_steps": 10}
    subjects = [common | {"name": f"d{i}", "seed": i, "instance_data_dir": str(PICTURES)} for i in range(3)]
    subjects.insert(1, common | {"name": "broken", "instance_data_dir": str(broken)})
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, subjects)))
    command = [*ATOMDIFF, "farm", "list.jsonl", "--out", "out", "--concepts", "concepts"]
    command += ["--address", cluster.address, "--base", str(tiny_folder("sd1")), "--tower", str(tower)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    first = subprocess.Popen(command, start_new_session=True, **pipes)
    seen = [next(line for line in first.stdout if line.startswith("1 of 4 "))]
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does at Ctrl-C: to all that was started from it
    told = first.communicate(timeout=300)[1]
    assert first.returncode == 130, told
    assert re.search(r"Stopped with \d of 4 subjects in the library; the same command goes on", told)
    assert "Traceback" not in told
    second = subprocess.run(command, timeout=900, **pipes)
    begun, *seen = [line for line in second.stdout.splitlines() if not line.startswith("base:")]
    assert second.returncode == 2 and begun.startswith("4 subjects"), second.stderr
    assert "3 of 4 subjects are in the library; out/results.jsonl" in seen[-1]
    assert re.search(
        r"1 could not be trained, the first 'broken': No usable picture in its folder", second.stderr
    )
    library = Library(tmp_path / "concepts")
    assert {entry.title for entry in library.find()} == {"d0", "d1", "d2"}
    assert all(any(tag.startswith("likeness ") for tag in entry.tags) for entry in library.find())
    trained = [line for line in seen if re.match(r"\d of 4  d\d: [\d,]+ bytes, likeness -?\d\.\d\d", line)]
    assert len({line.split()[3] for line in trained}) == len(trained) <= 3


def test_a_service_from_the_command_line_trains_on_the_cluster_what_every_replica_draws(
    cluster, tiny_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("ATOMDIFF_TOKEN", TOKEN)
    monkeypatch.setattr("benchmarks.serving.PATIENCE", 900)
    bases = [str(tiny_folder("sd1")), str(tiny_folder("sd2"))]
    flags = [
        "--ray",
        "--address",
        cluster.address,
        "--replicas",
        "1:1",
        "--base",
        bases[0],
        "--base",
        bases[1],
    ]
    files = [("pictures", (path.name, path.read_bytes())) for path in sorted(PICTURES.glob("*.png"))]

    def asked(http: httpx.Client, name: str, model: str, steps: int) -> str:
        more = json.dumps(TRAINED | {"max_train_steps": steps})
        said = {"class_word": "dog", "name": name, "settings": more, "model": model}
        answer = http.post("/train", data=said, files=files)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    with service_on(tmp_path, flags) as (http, running):
        assert (
            http.post("/train", data={"class_word": "dog", "model": "none"}, files=files).status_code == 400
        )
        first = asked(http, "rex", bases[1], 10)
        until(lambda: http.get(f"/train/{first}").json()["state"] not in ("waiting", "running"))
        job = http.get(f"/train/{first}").json()
        assert (job["state"], job["step"]) == ("done", 10) and job["loss"] > 0, job
        drawing = {"prompt": "a sks dog <atom:rex>", "steps": 1, "width": 16, "height": 16}
        drawing["override_settings"] = {"sd_model_checkpoint": bases[1]}
        answer = http.post("/sdapi/v1/txt2img", json=drawing)
        assert answer.status_code == 200 and "rex:1:" in answer.json()["info"], answer.text
        dropped, stopped = asked(http, "dropped", bases[0], 5000), asked(http, "stopped", bases[0], 400)
        until(lambda: http.get(f"/train/{dropped}").json()["step"] > 1)
        assert http.delete(f"/train/{dropped}").status_code == 200
        until(lambda: not remote_training.folder_of(dropped).exists())
        until(lambda: http.get(f"/train/{stopped}").json()["step"] > 1)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(300) == 0
        assert "Traceback" not in running.log.read_text(), running.log.read_text()
    with service_on(tmp_path, flags) as (http, running):
        assert [job["name"] for job in http.get("/train").json()] == ["stopped", "rex"]
        until(lambda: http.get(f"/train/{stopped}").json()["state"] == "done")
        assert 'atomdiff_trainings{state="done"} 2.0' in http.get("/metrics").text
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(300) == 0


@contextlib.contextmanager
def service_on(folder: Path, flags: list[str]):
    """A service in a process of its own, and a client of it."""
    headers = {"authorization": f"Bearer {TOKEN}"}
    with (
        served(folder, *flags, command=SERVICE) as running,
        httpx.Client(base_url=running.url, headers=headers, timeout=400) as http,
    ):
        yield http, running


def test_likeness_is_of_the_pictures_that_a_concept_draws():
    import atomdiff

    file = Path(atomdiff.__file__).parent / "studio" / "dog.safetensors"
    score, picture = remote_training.judged(atomdiff.load_base("pocket"), file.read_bytes(), PICTURES)
    assert score is not None and 0.5 < score <= 1
    assert picture.startswith(b"\x89PNG")
    assert load_concept(file).trigger == "sks"


def test_results_are_read_whatever_the_last_line_is(tmp_path):
    from atomdiff.serving import farm

    lines = [{"key": "a", "error": "x"}, {"key": "a", "concept": "1"}, {"key": "b", "concept": "2"}]
    text = "\n".join(map(json.dumps, lines)) + '\n{"key": "c", "conc'
    (tmp_path / farm.RESULTS).write_text(text)
    assert farm.results(tmp_path) == {"a": lines[1], "b": lines[2]}
