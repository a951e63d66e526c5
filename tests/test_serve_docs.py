"""docs/serving.md does what it says: its examples are run, in order, against a service."""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from serving_here import TOKEN, service_of, serving

PAGE = Path(__file__).parent.parent / "docs" / "serving.md"


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the page's clients are left open
def test_the_examples_run(tiny_base, tmp_path, monkeypatch, capsys) -> None:
    service = service_of(tiny_base(), tmp_path, (TOKEN,), pixels=128 * 128)
    monkeypatch.chdir(tmp_path)
    Path("assets").symlink_to(PAGE.parent.parent / "assets")
    Path("dog.safetensors").write_bytes(service.stored("dog").data)
    blocks = re.findall(r"```(bash|python)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 5
    with serving(service) as url:
        monkeypatch.setenv("URL", url)
        monkeypatch.setenv("ATOMDIFF_TOKEN", TOKEN)
        for language, code in blocks:
            if language == "python":
                exec(compile(code, str(PAGE), "exec"), {})
                continue
            done = subprocess.run(
                ["bash", "-euc", code], capture_output=True, text=True, env=dict(os.environ), check=True
            )
            assert '"error"' not in done.stdout, done.stdout
    gc.collect()  # the page's clients, here where what they leave open is looked over
    assert all(Path(name).stat().st_size > 100 for name in ("answer.json", "beach.png", "space.png"))
    assert Path("again.safetensors").read_bytes() == Path("dog.safetensors").read_bytes()
    assert "['" in capsys.readouterr().out
    assert not service.library.find("dog") and service.trainings.all() == []
