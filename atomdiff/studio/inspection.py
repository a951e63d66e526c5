"""What a concept learned, as pictures: how far it moves each layer, and the map of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atomdiff.serving.job_queue import Job

if TYPE_CHECKING:
    from PIL.Image import Image

    from atomdiff.library import Entry
    from atomdiff.studio.session import Studio

DPI = 110


@dataclass(frozen=True)
class Inspection:
    """Two sheets, and how far the weights of each block (and of all together) moved, ‖ΔW‖ / ‖W‖."""

    drift: Path
    maps: Path
    moved: dict[str, float]


def inspect(studio: Studio, ident: str) -> Callable[[Job], None]:
    """The work of drawing both sheets; its result is the Inspection. Raises ConceptError if the library has
    no such concept."""
    entry = studio.library.get(ident)

    def work(job: Job) -> None:
        from atomdiff.evaluation import plots
        from atomdiff.evaluation.drift import by_block, drift, total
        from atomdiff.evaluation.layer_maps import layer_maps
        from atomdiff.files import card

        job.progress(0, 3, f"Loading {entry.base}")
        base, concept = studio.bases.get(entry.base), card.load(entry.path)
        job.progress(1, 3, "Looking into the layers")
        drifts = drift(concept, base.unet)
        job.progress(2, 3, "Drawing the maps")
        sheets = plots.drift_figure(drifts), plots.maps_figure(layer_maps(concept, base.unet))
        files = [_kept(studio, entry, name, plots.picture(sheet, DPI))
                 for name, sheet in zip(("drift", "maps"), sheets, strict=True)]  # fmt: skip
        job.add(Inspection(files[0], files[1], {**by_block(drifts), "all": total(drifts)}))

    return work


def _kept(studio: Studio, entry: Entry, name: str, sheet: Image) -> Path:
    from atomdiff.sampling.sheets import save_picture

    folder = studio.history.folder / "cache" / "learned" / entry.id
    return save_picture(sheet, folder / f"{name}.png")
