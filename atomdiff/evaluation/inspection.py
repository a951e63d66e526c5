"""What is in a concept file, for people and for programs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomdiff.files import card
from atomdiff.files.safetensors_file import precision_of, size_report

if TYPE_CHECKING:
    from atomdiff.evaluation.drift import LayerDrift


def describe(file: Path) -> dict[str, Any]:
    """Everything worth knowing about a concept file or card, ready for JSON. Raises ConceptError."""
    concept, data = card.look(file)
    dtype = precision_of(data)
    base = concept.base
    return {
        "file": str(file),
        "name": concept.name,
        "trigger": concept.trigger,
        "class_word": concept.class_word,
        "base": {"name": base.name, "family": base.family, "architecture": base.architecture},
        "spec": asdict(concept.spec),
        "tensors": {key: list(array.shape) for key, array in concept.atoms.items()}
        | {key.replace("conv", "basis"): list(array.shape) for key, array in concept.bases.items()},
        "dtype": dtype,
        "numbers": concept.num_parameters(),
        "bytes": {part: size for part, size in size_report(data).items() if size},
        "file_bytes": len(data),
        "training": dict(concept.training),
        "extra": dict(concept.extra),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def describe_drift(drifts: Sequence[LayerDrift]) -> dict[str, Any]:
    """‖ΔW‖ / ‖W‖ of everything, of each block and of each layer, ready for JSON."""
    from atomdiff.evaluation.drift import by_block, total

    layers = {item.layer: item.ratio for item in drifts}
    return {"total": total(drifts), "blocks": by_block(drifts), "layers": layers}


def print_drift(drifts: Sequence[LayerDrift]) -> None:
    """The same as a table with a bar for each layer."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    about = describe_drift(drifts)
    largest = max((item.ratio for item in drifts), default=0.0) or 1.0
    table = Table(box=box.SIMPLE_HEAD, title=f"weights moved by {about['total']:.1%}", title_justify="left")
    table.add_column("layer", no_wrap=True)
    table.add_column("‖ΔW‖ / ‖W‖", justify="right")
    table.add_column("")
    for block, ratio in about["blocks"].items():
        table.add_row(f"{block}: all", f"{ratio:.1%}", style="bold")
        for item in (item for item in drifts if item.block == block):
            table.add_row(item.layer, f"{item.ratio:.1%}", "█" * round(24 * item.ratio / largest))
        table.add_section()
    Console(highlight=False).print(table)


def print_table(about: dict[str, Any]) -> None:
    """The description as a table. Its texts may be a stranger's, so no markup in them is obeyed."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title = Text(about["name"] or about["file"], "bold")
    table = Table(box=box.ROUNDED, show_header=False, title=title, title_justify="left")
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for section in _sections(about):
        for label, value in section:
            table.add_row(Text(label), Text(value))
        table.add_section()
    console = Console(highlight=False)
    console.print(table)
    console.print(f"sha256 {about['sha256']}", soft_wrap=True)


def _sections(about: dict[str, Any]) -> list[list[tuple[str, str]]]:
    spec, base = about["spec"], about["base"]
    linear = spec["linear_atoms"]
    blocks = "" if linear == "none" else f", blocks of {spec['linear_block']}"
    sizes = [(f"  {part}", f"{size:,} bytes") for part, size in about["bytes"].items()]
    shapes = [(f"  {key}", " × ".join(map(str, shape))) for key, shape in about["tensors"].items()]
    convs = f"{spec['num_atoms']} of each kernel, {spec['basis']}" if spec["num_atoms"] else "none"
    if spec["conv_family"] != "atoms":
        convs = f"{spec['num_atoms']} of each kernel, {spec['conv_family']}"
    if spec["coef_block"]:
        convs += f", coefficients in blocks of {spec['coef_block']}"
    lines = {
        "trigger": about["trigger"],
        "class": about["class_word"],
        "base": f"{base['name']} ({base['architecture']})" if base["name"] else base["architecture"],
    }
    layers = {
        "conv atoms": convs + (f", layers {spec['conv_layers']!r}" if spec["conv_layers"] else ""),
        "linear atoms": linear + blocks,
        "numbers": f"{about['numbers']:,} ({about['dtype']})",
    }
    training = [(f"  {key.replace('_', ' ')}", _short(value)) for key, value in about["training"].items()]
    sections = [
        list(lines.items()),
        [*layers.items(), *shapes],
        [("file", f"{about['file_bytes']:,} bytes"), *sizes],
        [("training", ""), *training] if training else [],
        [(key, _short(value)) for key, value in about["extra"].items()],
    ]
    return [section for section in sections if section]


def _short(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 300 else text[:297] + "..."
