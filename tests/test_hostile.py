"""No bytes from a stranger crash, hang, fill the memory or are run: a slice of the campaign."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hostile.carriers import SUFFIXES

from atomdiff.errors import ConceptError
from atomdiff.files import card, text
from atomdiff.files.safetensors_file import load_concept

ROOT = Path(__file__).parent.parent


def test_a_slice_of_the_campaign():
    """A process of its own, since an audit hook stays for good."""
    command = [sys.executable, "-m", "hostile", "--cases", "5000", "--seed", "11", "--check"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == "all targets met"


def test_the_audit_hook_would_see_a_pickle():
    code = (
        "import pickle, sys; sys.path.insert(0, 'tests')\n"
        "from hostile.campaign import Campaign, Watch\n"
        "campaign = Campaign(Watch())\n"
        "campaign.judge('x', 'file', pickle.loads, pickle.dumps(print))\n"
        "print(campaign.faults)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "run or unpickled" in done.stdout and "pickle.find_class ('builtins', 'print')" in done.stderr


def test_the_campaign_finds_what_breaks_its_rules(monkeypatch):
    from hostile import campaign as hostile

    class Never:  # a hook would stay in this process
        on, seen = False, []

    def crash(data: bytes) -> None:
        raise KeyError(data)

    def refuse(data: bytes) -> None:
        raise ConceptError(data.decode())

    campaign = hostile.Campaign(Never())
    assert not campaign.judge("a", "file", crash, b"x")
    assert campaign.judge("b", "file", refuse, b"broken\n" * 9)
    assert campaign.judge("c", "file", refuse, b"no")
    assert campaign.judge("d", "file", refuse, b"The file has a hole: get it again.")
    monkeypatch.setattr(hostile, "SLOW_MS", -1.0)
    campaign.judge("e", "file", bytes, b"")
    assert {kind: len(found) for kind, found in campaign.faults.items()} == {
        "crash": 1,
        "not one sentence": 2,
        "slow": 1,
    }


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_suffix_makes_a_pickle_a_concept(tmp_path, suffix):
    path, proof = tmp_path / f"x.{suffix}", tmp_path / "unpickled"
    path.write_bytes(pickle.dumps({"state_dict": Touch(proof)}))
    for read in (load_concept, card.load, card.concept_bytes, lambda p: text.from_text(p.read_bytes())):
        try:
            read(path)
        except ConceptError:
            continue
        assert read is card.concept_bytes  # it looks into pictures only; what it gives is checked by all
    assert not proof.exists()
    pickle.loads(path.read_bytes())
    assert proof.exists()


def test_a_checkpoint_of_torch_is_told_apart(tmp_path):
    import torch

    torch.save({"a": torch.zeros(3)}, tmp_path / "x.pt")
    tape = io.BytesIO()
    with tarfile.open(fileobj=tape, mode="w") as archive:
        archive.add(tmp_path / "x.pt", "x.pt")
    (tmp_path / "x.tar").write_bytes(tape.getvalue())
    for name in ("x.pt", "x.tar"):
        with pytest.raises(ConceptError, match="no safetensors file"):
            load_concept(tmp_path / name)
