"""Data flows one way: packages import only from those before them, and no modules import in a circle.

Every import counts, wherever it stands in a file: at the top, in a function, or for type checkers alone.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "atomdiff"

PACKAGES = (
    "errors", "core", "concept", "files", "pocket", "base", "sampling", "evaluation", "training", "library",
    "integrations", "serving", "studio", "cli",
)  # fmt: skip


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}


def _imports(module: str) -> Iterator[str]:
    """Every module of the package that a module imports, wherever in its file it does so."""
    own = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (n.name[len("atomdiff.") :] for n in node.names if n.name.startswith("atomdiff."))
        elif isinstance(node, ast.ImportFrom):
            inside = (node.module or "").removeprefix("atomdiff").removeprefix(".")
            if node.level:
                above = own.split(".")[: len(own.split(".")) - node.level + 1]
                inside = ".".join([*above, *filter(None, [node.module])])
            elif (node.module or "").split(".")[0] != "atomdiff":
                continue
            for name in node.names:
                deeper = f"{inside}.{name.name}" if inside else name.name
                yield deeper if deeper in MODULES else inside


def _graph() -> dict[str, set[str]]:
    """Module -> the modules that it imports; a package's `__init__` counts where it does more than say
    what it is."""
    bare = {m for m, p in MODULES.items() if p.name == "__init__.py" and len(TREES[m].body) < 2}
    return {module: {i for i in _imports(module) if i} - bare - {module} for module in MODULES}


GRAPH = _graph()


def test_packages_import_only_from_those_before_them() -> None:
    packages = {module.split(".")[0] for module in MODULES}
    assert packages <= set(PACKAGES), f"{packages - set(PACKAGES)} have no place in PACKAGES; give them one."
    place = {module: PACKAGES.index(module.split(".")[0]) for module in MODULES}
    wrong = [f"{one} imports {other}" for one in GRAPH for other in GRAPH[one] if place[other] > place[one]]
    assert not wrong, "; ".join(wrong)


def test_no_modules_import_each_other() -> None:
    left = GRAPH
    while free := {module for module, imported in left.items() if not imported & left.keys()}:
        left = {module: imported for module, imported in left.items() if module not in free}
    assert not left, "these are in a circle, or import one: " + ", ".join(sorted(left))


def test_no_module_uses_anothers_private_names() -> None:
    for module, tree in TREES.items():
        nodes = list(ast.walk(tree))
        imported = [
            n for n in nodes if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("atomdiff")
        ]
        names = {name.name for node in imported for name in node.names}
        used = {n.attr for n in nodes if isinstance(n, ast.Attribute) and ast.unparse(n.value) in names}
        private = {name for name in names | used if name.startswith("_") and not name.startswith("__")}
        assert not private, (
            f"{module} uses {', '.join(sorted(private))} of another module; give it a public name."
        )


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
