"""The extension for A1111 and Forge over a Forge's own source, where there is one."""

import os
import subprocess
import sys

import pytest

FORGE = os.environ.get("ATOMDIFF_FORGE", "")


@pytest.mark.skipif(not FORGE, reason="no Forge here: ATOMDIFF_FORGE names the folder of a checkout")
def test_the_extension_in_forge() -> None:
    command = [sys.executable, "-m", "benchmarks.webui", "--forge", FORGE, "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
