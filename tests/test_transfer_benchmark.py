"""The transfer benchmark: every method leaves the network as it was, tasks are what they say."""

import argparse

import pytest
import torch
from test_method_benchmark import fingerprint

from benchmarks.transfer import fitting
from benchmarks.transfer.__main__ import order, table
from benchmarks.transfer.networks import METHODS, NETWORKS, atom_share, resnet
from benchmarks.transfer.tasks import TASKS, task_data

DIALS = argparse.Namespace(train=16, epochs=1, rates=(3e-3,))


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return {name: make().eval().requires_grad_(False) for name, make in NETWORKS.items()}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_leaves_the_network_as_it_was(network, method, networks, monkeypatch):
    for name, count in (("TRAIN", 16), ("VALID", 8), ("TEST", 8)):
        monkeypatch.setattr(fitting, name, count)
    was = fingerprint(networks[network])
    found = fitting.transfer(networks[network], method, "orientation", 0, DIALS)
    assert fingerprint(networks[network]) == was
    assert 0 <= found["test"] <= 1 and (found["numbers"] == 0) == (method == "linear probe")


@pytest.mark.parametrize("task", TASKS)
def test_tasks_are_reproducible_and_labelled_from_zero(task):
    if task == "digits":
        pytest.importorskip("sklearn")
    pictures, labels = task_data(task, 24)
    assert pictures.shape == (24, 64, 64, 3) and pictures.dtype == torch.uint8
    assert labels.min() >= 0 and len(labels.unique()) > 2
    again = task_data.__wrapped__(task, 24)
    assert torch.equal(pictures, again[0]) and torch.equal(labels, again[1])


def test_atoms_of_resnet_50():
    assert atom_share(resnet, 9) == (16 * 81 + 9 * 49, 23_508_032)
    assert atom_share(resnet, 6, 3) == (16 * 54, 23_508_032)


def test_the_papers_order_is_measured_not_assumed():
    results = {
        f"ResNet/{method}/digits/0": {"test": 0.1 * i, "gap": 0.0, "numbers": i, "rate": 3e-2}
        for i, method in enumerate(METHODS)
    }
    assert [round(t.value, 3) for t in order(results)] == [0.1, 0.2, -0.3, 0.0]
    assert [row[0] for row in table(results, "ResNet", ["digits"], 1)] == list(METHODS)
