"""The pages: what they link to exists, and the reference has every public name."""

import importlib
import re
from pathlib import Path

import pytest

import atomdiff

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MADE = {ROOT / "docs/reference/cli.md"}  # by `make docs`


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [
        link
        for link in links
        if not link.startswith(("http://", "https://", "mailto:"))
        and not (page.parent / link).exists()
        and (page.parent / link).resolve() not in MADE
    ]
    assert not missing, f"{page.name} links to what is not there: {missing}"


def test_reference_has_every_public_name() -> None:
    text = (ROOT / "docs/reference/python.md").read_text("utf-8")
    named = set()
    for path in re.findall(r"^::: (\S+)$", text, re.MULTILINE):
        try:
            module = importlib.import_module(path)
            named |= {name for name in vars(module) if name.endswith("Error")}
        except ModuleNotFoundError:
            home, _, name = path.rpartition(".")
            assert hasattr(importlib.import_module(home), name), f"the reference names {path}, which is gone"
            named.add(name)
    assert not set(atomdiff.__all__) - named, "docs/reference/python.md lacks public names"


def test_site_has_every_page() -> None:
    config = (ROOT / "zensical.toml").read_text("utf-8")
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES[2:]}
    assert pages | {"reference/cli.md"} == set(re.findall(r'"([\w/-]+\.md)"', config))


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 100
