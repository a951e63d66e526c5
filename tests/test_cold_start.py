"""What is started often starts light: no model library, not even torch, to look into a concept."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from test_files import concept

from atomdiff.files.safetensors_file import save_concept

HEAVY = ("torch", "torch.nn", "diffusers", "transformers", "gradio", "matplotlib", "PIL")
INSPECT = "import sys; sys.argv = ['atomdiff', 'inspect', {file!r}]; from atomdiff.cli import main; main()"


def heavy_modules(code: str) -> list[str]:
    """Which of the heavy modules a process that runs `code` has imported when it ends."""
    tell = (
        "import atexit, json, sys\n"
        f"atexit.register(lambda: print(json.dumps([n for n in {HEAVY!r} if n in sys.modules])))\n"
    )
    done = subprocess.run([sys.executable, "-c", tell + code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("code", ["import atomdiff", INSPECT], ids=["import", "inspect"])
def test_nothing_heavy_is_imported(tmp_path, code):
    file = save_concept(concept(), tmp_path / "dog.safetensors")
    assert heavy_modules(code.format(file=str(file))) == []


def test_what_is_imported_is_seen():
    assert "PIL" in heavy_modules("import PIL")
