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
    "errors",
    "core.blocks", "core.spec", "core.subspace", "core.sparse", "core.pool", "core.families",
    "core.functional", "core.layers", "core.building", "core.selection", "core.inject",
    "concept.passport", "concept.contents", "concept.maps",
    "files.atomic", "files.header", "files.quantization", "files.layer_mask", "files.query_string",
    "concept.concept", "files.safetensors_file", "concept.timeline", "files.timeline_file",
    "files.text", "files.modelspec", "files.card", "concept.algebra", "files.qr",
    "files.images", "files.fonts",
    "pocket", "base.loading", "base.stable_diffusion", "base.textual_inversion",
    "sampling.infotext", "sampling.previews", "sampling.gating", "sampling.draw", "sampling.hints",
    "sampling.sheets", "sampling.grids",
    "files.qr_image", "files.card_image", "files.read_any",
    "training.checkpoint", "training.prior_preservation", "training.latents", "training.batches",
    "training.objective", "training.reporting", "training.recipes", "training.settings", "training.defaults",
    "training.optimiser", "training.sizing", "training.loop", "training.setup", "training.run",
    "training.terminal", "training.accelerate_launch", "training.flag_aliases",
    "evaluation.drift", "evaluation.layer_maps", "evaluation.map_sheet", "evaluation.plots",
    "evaluation.inspection",
    "library.*", "library", "library.hub_card", "library.hub",
    "studio", "studio.*", "cli.common", "cli.arguments", "cli.*", "cli", "pocket.*",
]  # fmt: skip

# save and load of Concept and Timeline call the file format when they run, not before.
DEFERRED = {
    ("concept.concept", "files"),
    ("concept.concept", "concept.algebra"),
    ("concept.timeline", "files"),
}


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _only_says_what_it_is(path: Path) -> bool:
    return path.name == "__init__.py" and len(ast.parse(path.read_text(encoding="utf-8")).body) == 1


MODULES = {
    _name(path): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py" and not _only_says_what_it_is(path)
}


def _place(module: str) -> int:
    while module not in ORDER and "." in module.removesuffix(".*"):
        module = module.removesuffix(".*").rpartition(".")[0] + ".*"
    return ORDER.index(module)


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
        if any((module, above) in DEFERRED for above in (imported, imported.split(".")[0])):
            continue
        place = _place(imported)
        if ORDER[own].endswith(".*") and place == own:  # rooms of one floor
            continue
        assert place < own, f"atomdiff.{module} imports atomdiff.{imported}, which is below it"


def test_core_knows_no_model_library() -> None:
    for module in (name for name in MODULES if name.startswith(("core.", "concept."))):
        source = MODULES[module].read_text(encoding="utf-8")
        for line in source.splitlines():
            words = line.split()
            assert not (
                words[:1] in (["import"], ["from"]) and words[1].split(".")[0] in ("diffusers", "peft")
            )


def test_nothing_heavy_at_import() -> None:
    code = "import sys, atomdiff, atomdiff.concept.concept, atomdiff.cli; "
    code += (
        "print([name for name in ('diffusers', 'transformers', 'accelerate', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_import_atomdiff_needs_not_even_torch() -> None:
    code = "import sys, atomdiff; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stdout + done.stderr
