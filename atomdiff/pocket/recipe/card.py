"""The pocket model's card: what it was made of, how long it took and where. The measured quality and samples
are written by `python -m benchmarks.pocket_quality`, which the card names."""

from __future__ import annotations

import json
from pathlib import Path

TEMPLATE = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# atomdiff pocket

A small Stable Diffusion for machines with no GPU and no network: {size} × {size} pictures of a world of
{classes} kinds of characters and things in {contexts} contexts, in the ordinary diffusers layout and stock
classes.

**Data.** {pictures} pictures rendered by `atomdiff.pocket.world` (no photographs, nothing downloaded), each
with {variants} captions, mirrored copies included. Subjects with held-out patterns, features and styles, and
a hash-defined tenth of all (class, colour, second colour, pattern), were never shown.

| stage | steps | batch | rate | time | machine | date |
|---|---:|---:|---:|---:|---|---|
{rows}

Autoencoder: {psnr:.2f} dB PSNR on 512 pictures it was not trained on. Judge on unseen renders: {judge}.

Sizes: {sizes}.

**Made with** `python -m atomdiff.pocket.build`, which resumes from its checkpoints; `--start` trains a
finished model on, and the table has the last such sitting of each stage. **Measured with**
`python -m benchmarks.pocket_quality --check`.

**Limits.** It knows the words of its world and draws nothing else; {size} x {size} pixels; English only.
"""


def write(work: Path, weights: Path, pictures: int) -> None:
    """README.md of the weights folder, from the record that the stages left in the work folder."""
    from atomdiff.pocket import corpus, world

    record = json.loads((work / "record.json").read_text())
    right = record.get("judge", {}).get("right", {})
    text = TEMPLATE.format(
        classes=len(world.CLASSES),
        contexts=len(world.CONTEXTS),
        pictures=f"{pictures:,}",
        size=world.SIDE,
        variants=corpus.VARIANTS,
        rows="\n".join(
            _row(stage, record[stage])
            for stage in ("autoencoder", "words", "denoiser", "decoder", "judge")
            if stage in record
        ),
        psnr=record.get("decoder", record["autoencoder"])["psnr"],
        judge=", ".join(f"{head} {100 * share:.1f} %" for head, share in right.items()) or "not examined",
        sizes=", ".join(
            f"{p.parent.name}/{p.name} {p.stat().st_size / 1e6:.1f} MB"
            for p in sorted(weights.rglob("*.safetensors"))
        ),
    )
    (weights / "README.md").write_text(text)


def _row(stage: str, about: dict) -> str:
    schedule, minutes = about["schedule"], about["seconds"] / 60
    steps = about.get("steps", about.get("step"))
    what = f"{stage}, going on from an earlier model" if about.get("start") else stage
    cells = (what, f"{steps:,}", schedule["batch"], f"{schedule['lr']:g}", f"{minutes:.0f} min")
    return "| " + " | ".join(map(str, (*cells, about["machine"], about["date"]))) + " |"
