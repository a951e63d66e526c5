"""What is started often starts light: no model library, not even torch, to look into a concept."""

from __future__ import annotations

import sys

import pytest
from test_files import concept

from atomdiff.files.safetensors_file import save_concept

if sys.platform == "win32":
    pytest.skip("what a process costs is asked the POSIX way", allow_module_level=True)

from benchmarks.cold_start import commands, heavy_modules


@pytest.mark.parametrize("name", ["import atomdiff", "atomdiff inspect FILE"])
def test_nothing_heavy_is_imported(tmp_path, name):
    file = save_concept(concept(), tmp_path / "dog.safetensors")
    assert heavy_modules(commands(file)[name]) == []


def test_what_is_imported_is_seen():
    assert "PIL" in heavy_modules("import PIL")
