"""A cluster of several node processes: what a lost worker or machine was at is done all the same."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
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
from atomdiff.training.settings import TrainingSettings

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
    return {"object_store_memory": 80 << 20, **ports}


@pytest.fixture(scope="module")
def cluster():
    """A head without processors, and two nodes of one each."""
    from ray.cluster_utils import Cluster

    from atomdiff.serving.cluster import connect

    with pytest.MonkeyPatch.context() as patch:
        for name, value in PATIENCE.items():
            patch.setenv(name, value)
        head = {"num_cpus": 0, "include_dashboard": False, **node()}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.nodes = [cluster.add_node(num_cpus=1, **node()) for _ in range(2)]
        connect(cluster.address)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def until(met, seconds: float = 400):
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
    running = threading.Thread(
        target=lambda: done.append(farm.farm(subjects, out, library, lambda *told: seen.append(told)))
    )
    running.start()
    until(lambda: workers("train_one"))[0].kill()
    until(lambda: seen)
    cluster.remove_node(cluster.nodes.pop(), allow_graceful=False)
    cluster.nodes.append(cluster.add_node(num_cpus=1, **node()))
    running.join(500)
    assert [told[:2] for told in seen] == [(i, 3) for i in range(1, 4)]
    assert {subject.key for subject in subjects} == done[0].keys()
    assert not any("error" in line for line in done[0].values()), done[0]
    assert {entry.title for entry in library.find()} == {f"dog{i}" for i in range(3)}
    again: list[object] = []
    assert farm.farm(subjects, out, library, lambda *told: again.append(told)) == done[0] and again == []


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
        assert httpx.get(f"{url}/train", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 404


def test_likeness_is_of_the_pictures_that_a_concept_draws():
    import atomdiff
    from atomdiff.serving import farm

    file = Path(atomdiff.__file__).parent / "studio" / "dog.safetensors"
    score, picture = farm.judged(atomdiff.load_base("pocket"), file.read_bytes(), PICTURES)
    assert score is not None and 0.5 < score <= 1
    assert picture.startswith(b"\x89PNG")
    assert load_concept(file).trigger == "sks"


def test_results_are_read_whatever_the_last_line_is(tmp_path):
    from atomdiff.serving import farm

    lines = [{"key": "a", "error": "x"}, {"key": "a", "concept": "1"}, {"key": "b", "concept": "2"}]
    text = "\n".join(map(json.dumps, lines)) + '\n{"key": "c", "conc'
    (tmp_path / farm.RESULTS).write_text(text)
    assert farm.results(tmp_path) == {"a": lines[1], "b": lines[2]}
