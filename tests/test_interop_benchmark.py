"""Every route of `benchmarks.interop` on a small model: predictions are ours, LoRAs tell what they miss."""

from __future__ import annotations

from pathlib import Path

from benchmarks import interop


def test_every_exact_route_predicts_what_we_do(tmp_path: Path) -> None:
    rows, targets = interop.measure(tmp_path, small=True)
    found = {target.name: target for target in targets}
    exact = [target for name, target in found.items() if name.endswith(": ε̂") and target.value is not None]
    assert len(exact) == 6 and all(target.met for target in exact), exact
    assert found["comfyui-atomdiff: ε̂"].value is None
    loras = [row for row in rows if "--to lora" in row[0]]
    assert loras[0][5] == "4" and all(row[6].endswith("%") for row in loras)
