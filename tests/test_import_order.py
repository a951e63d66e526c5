"""Data flows one way: a module of atomdiff imports only from those named before it here."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "atomdiff"

ORDER = [
    "errors", "blocks", "generation_text", "spec", "subspace", "sparse", "families", "forms", "layers",
    "building", "selection", "inject", "passport", "contents",
    "formats", "formats.files", "formats.header", "formats.precision", "formats.present", "concept",
    "formats.safetensors_file", "timeline", "formats.timeline_file",
    "formats.text", "formats.modelspec", "formats.card",
    "maps", "algebra", "formats.qr", "pocket", "loading", "base", "token", "previews", "images", "sampling",
    "remarks", "sheets", "grids", "symbols", "card_art", "receiving", "library.*", "library", "hub_card",
    "hub",
    "checkpoint", "prior", "latents", "batches", "objective", "reporting", "settings", "loop",
    "preparing", "training", "metrics", "drift", "learned", "map_sheet", "plots",
    "inspection", "terminal", "launching", "studio", "studio.*", "cli.common", "cli.given", "cli.*", "cli",
    "pocket.*",
]  # fmt: skip

# save and load of Concept and Timeline call the file format when they run, not before.
DEFERRED = {("concept", "formats"), ("concept", "algebra"), ("timeline", "formats")}


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"}


def _place(module: str) -> int:
    package = module.split(".")[0] + ".*"
    return ORDER.index(package if module not in ORDER and package in ORDER and "." in module else module)


def _imports(path: Path) -> Iterator[str]:
    """Every module of the package that a file imports when it runs, wherever in the file it does so."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (n.name[len("atomdiff.") :] for n in node.names if n.name.startswith("atomdiff."))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "atomdiff":
            inside = node.module[len("atomdiff.") :]
            for name in node.names:
                deeper = f"{inside}.{name.name}" if inside else name.name
                if deeper in MODULES:
                    yield deeper
                elif inside:
                    yield inside


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_from_modules_above(module: str) -> None:
    try:
        own = _place(module)
    except ValueError:
        pytest.fail(f"atomdiff/{module.replace('.', '/')}.py has no place in ORDER; give it one.")
    for imported in _imports(MODULES[module]):
        if (module, imported.split(".")[0]) in DEFERRED or imported.split(".")[0] == module.split(".")[0]:
            continue
        assert _place(imported) < own, f"atomdiff.{module} imports atomdiff.{imported}, which is below it"


def test_core_knows_no_model_library() -> None:
    for module in ("subspace", "forms", "layers", "selection", "inject", "concept"):
        source = MODULES[module].read_text(encoding="utf-8") if module in MODULES else ""
        for line in source.splitlines():
            words = line.split()
            assert not (
                words[:1] in (["import"], ["from"]) and words[1].split(".")[0] in ("diffusers", "peft")
            )


def test_nothing_heavy_at_import() -> None:
    code = "import sys, atomdiff, atomdiff.concept, atomdiff.cli; "
    code += (
        "print([name for name in ('diffusers', 'transformers', 'accelerate', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_import_atomdiff_needs_not_even_torch() -> None:
    code = "import sys, atomdiff; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stdout + done.stderr
