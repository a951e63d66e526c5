"""docs/integrations.md does what it says; others read the settings in our pictures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_concepts import concept

import atomdiff
from atomdiff.files.safetensors_file import save_concept, sha256
from atomdiff.sampling.sheets import save_picture

PAGE = Path(__file__).parent.parent / "docs" / "integrations.md"


def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_concept(concept(atomdiff.load_base("pocket")), tmp_path / "dog.safetensors")
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S):
        exec(compile(code, str(PAGE), "exec"), {})
    assert capsys.readouterr().out == "{'dog': 0.8}\n"


def test_sd_parsers_reads_our_pictures(tmp_path: Path) -> None:
    from sd_parsers import ParserManager

    base = atomdiff.load_base("pocket")
    dog = concept(base)
    drawn = atomdiff.draw(base, "a sks dog", concepts=[(dog, 0.5)], negative="red", steps=1, seed=7)[0]
    found = ParserManager().parse(save_picture(drawn, tmp_path / "dog.png"))
    assert found is not None
    assert [prompt.value for prompt in found.prompts] == ["a sks dog"]
    assert [prompt.value for prompt in found.negative_prompts] == ["red"]
    assert next(iter(found.samplers)).parameters["seed"] == "7"
    assert found.metadata["Hashes"] == {"atom:dog": sha256(dog)[:12]}
