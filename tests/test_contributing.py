"""CONTRIBUTING tells where things are, and what is to be touched to add one: it is held to the code here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def _section(title: str) -> str:
    return TEXT.split(f"## {title}\n")[1].split("\n## ")[0]


def _rows(title: str) -> list[tuple[str, str]]:
    cells = [line.strip("|").split("|") for line in _section(title).splitlines() if line.startswith("|")]
    return [(first.strip(), second.strip()) for first, second in cells[2:]]


@pytest.mark.parametrize(("what", "files"), _rows("What to touch"))
def test_what_to_touch_is_there_and_little(what: str, files: str) -> None:
    named = re.findall(r"`([\w/]+\.\w+)`", files)
    assert 1 <= len(named) <= 4, f"{what} touches {named}"
    for name in named:
        place = name if name.startswith(("docs/", "benchmarks/")) else f"atomdiff/{name}"
        path = ROOT / place
        assert (path.parent if path.stem == "NAME" else path).exists(), f"{what}: there is no {name}"


def test_every_package_is_in_the_layout() -> None:
    told = " ".join(first for first, _ in _rows("Layout"))
    for init in (ROOT / "atomdiff").glob("*/__init__.py"):
        assert f"`{init.parent.name}/`" in told, f"atomdiff/{init.parent.name} is not in the layout"


def test_every_module_that_the_layout_names_is_there() -> None:
    for first, second in _rows("Layout"):
        folders = [ROOT / "atomdiff" / name for name in re.findall(r"`(\w+)/`", first)]
        for name in re.findall(r"`([a-z_]+)`", second) if folders and folders[0].exists() else []:
            here = [folder / name for folder in folders]
            assert any(p.with_suffix(".py").exists() or p.is_dir() for p in here), f"{first} names {name}"
