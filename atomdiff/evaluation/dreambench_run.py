"""DreamBench carried out: pictures drawn, judged, and kept, so that a run that was stopped goes on.

    OUT/METHOD/SUBJECT/PROMPT-NUMBER.png     the 25 x 4 pictures of a subject
    OUT/METHOD/SUBJECT/class-NUMBER.png      of the class alone, as the method leaves it
    OUT/METHOD/SUBJECT/drawn.json            what they were drawn with; where that changes they are drawn anew
    OUT/METHOD/SUBJECT/figures.json          what was judged of them

METHOD is the base itself, or a set of concepts or LoRAs with how it acts. Picture k of prompt p has the
seed 1000 p + k for every method, so all start from the same noise.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from atomdiff.base.stable_diffusion import Base
from atomdiff.concept.concept import Concept
from atomdiff.errors import ImageError, SettingsError
from atomdiff.evaluation.dreambench import PICTURES, PROMPTS, Subject
from atomdiff.evaluation.likeness import agreement, drift, likeness
from atomdiff.evaluation.towers import LPIPS, Tower
from atomdiff.files import atomic
from atomdiff.files.images import check_folder, open_picture
from atomdiff.files.safetensors_file import load_concept
from atomdiff.sampling import adapters
from atomdiff.sampling.draw import draw
from atomdiff.sampling.sheets import save_picture

LORA_NAME = "pytorch_lora_weights.safetensors"  # diffusers'
FIGURES = ("DINO", "CLIP-I", "CLIP-T", "LPIPS", "drift", "bytes")
Figures = dict[str, float]


@dataclass(frozen=True)
class Method:
    """What is judged: `files` has a concept or a LoRA for each subject, none for the base alone."""

    name: str
    files: Path | None = None
    lora: bool = False
    acting: str = "plain"
    trigger: str = "sks"

    def file(self, subject: Subject) -> Path | None:
        """The subject's file: SUBJECT.safetensors, alone or in a folder SUBJECT, where a LoRA may be called
        what diffusers' trainers call it. Raises SettingsError."""
        if self.files is None:
            return None
        own = f"{subject.name}.safetensors"
        names = [own, f"{subject.name}/{own}"] + [f"{subject.name}/{LORA_NAME}"] * self.lora
        for name in names:
            if (self.files / name).is_file():
                return self.files / name
        raise SettingsError(
            f"'{self.files}' has no {subject.name}.safetensors; train it, or leave the subject out with "
            "--subjects."
        )


@dataclass(frozen=True)
class Judges:
    """The networks; those that are None are left out of the figures."""

    dino: Tower | None = None
    clip: Tower | None = None
    lpips: LPIPS | None = None


@dataclass(frozen=True)
class Protocol:
    """How much is drawn, and how."""

    pictures: int = PICTURES
    prompts: int = PROMPTS
    steps: int = 50
    guidance: float = 7.5
    size: int | None = None
    batch: int = 4


def evaluate(
    base: Base,
    method: Method,
    subject: Subject,
    given: Path,
    out: Path,
    judges: Judges,
    protocol: Protocol,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Figures:
    """The figures of one method on one subject, whose photographs are in `given`; what is there already is
    not done again. Raises AtomdiffError."""
    file, folder = method.file(subject), out / method.name / subject.name
    before = out / "base" / subject.name
    drawn = _prepared(base, method, file, folder, protocol)
    if folder != before:
        _prepared(base, Method("base"), None, before, protocol)
    kept = folder / "figures.json"
    has = [judges.dino is not None, judges.clip is not None, judges.lpips is not None]
    key = {"drawn": drawn, "judges": has, "protocol": vars(protocol)}
    if kept.is_file() and (found := json.loads(kept.read_text("utf-8"))).get("key") == key:
        return dict(found["figures"])
    prompts = subject.prompts(_trigger(method, file))[: protocol.prompts]
    with _ready(base, method, file) as concepts:
        asked = [*prompts, subject.class_prompt]
        for number, prompt in enumerate(asked):
            progress(f"{method.name}, {subject.name}", number, len(asked))
            name = f"{number:02d}" if number < len(prompts) else "class"
            _draw(base, concepts, method, prompt, folder, name, protocol)
    _draw(base, [], Method("base"), subject.class_prompt, before, "class", protocol)
    figures = _judged(folder, before, given, subject, judges, protocol, len(prompts))
    figures["bytes"] = file.stat().st_size if file else 0
    atomic.write(kept, json.dumps({"key": key, "figures": figures}).encode(), "The figures")
    return figures


def mean(all_figures: Sequence[Figures]) -> Figures:
    """The mean of each figure over the subjects that have it."""
    names = [name for name in FIGURES if any(name in figures for figures in all_figures)]
    columns = {name: [figures[name] for figures in all_figures if name in figures] for name in names}
    return {name: sum(values) / len(values) for name, values in columns.items()}


def photographs(folder: Path) -> list[Image.Image]:
    """The subject's own pictures. Raises ImageError."""
    found = []
    for path in check_folder(folder):
        try:
            found.append(open_picture(path).image)
        except ImageError:
            continue
    if not found:
        raise ImageError(f"There is no picture in '{folder}'; it must hold the subject's photographs.")
    return found


def _draw(
    base: Base,
    concepts: list[Concept],
    method: Method,
    prompt: str,
    folder: Path,
    name: str,
    protocol: Protocol,
) -> None:
    """The pictures of one prompt, those that are missing."""
    paths = _names(folder, name, protocol)
    number = PROMPTS if name == "class" else int(name)
    if all(path.is_file() for path in paths):
        return
    drawn = draw(
        base,
        prompt,
        concepts=concepts,
        count=protocol.pictures,
        seed=1000 * number,
        steps=protocol.steps,
        guidance=protocol.guidance,
        size=protocol.size,
        batch_size=protocol.batch,
        acting=method.acting,
    )
    for path, picture in zip(paths, drawn, strict=True):
        save_picture(picture, path)


@contextmanager
def _ready(base: Base, method: Method, file: Path | None) -> Iterator[list[Concept]]:
    """Within: the base as the method has it, and the concepts to draw with. Raises ConceptError for a file
    that is no concept or LoRA for this base."""
    with adapters.loaded(base, [(file, 1.0)] if file and method.lora else []):
        yield [load_concept(file)] if file and not method.lora else []


def _trigger(method: Method, file: Path | None) -> str:
    """A concept says its word itself; the base is asked for the class alone."""
    if file is None:
        return ""
    return method.trigger if method.lora else load_concept(file).trigger


def _names(folder: Path, name: str, protocol: Protocol) -> list[Path]:
    return [folder / f"{name}-{k}.png" for k in range(protocol.pictures)]


def _opened(folder: Path, name: str, protocol: Protocol) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in _names(folder, name, protocol)]


def _judged(
    folder: Path,
    before: Path,
    given: Path,
    subject: Subject,
    judges: Judges,
    protocol: Protocol,
    prompts: int,
) -> Figures:
    """DINO and CLIP-I: mean cosine of every drawn picture to every photograph. CLIP-T: of every picture to
    its prompt without the trigger. LPIPS: mean distance of two pictures of a prompt. Drift: 1 - mean cosine
    (DINO, else CLIP) of the class's pictures before and after, of the same noise."""
    by_prompt = [_opened(folder, f"{number:02d}", protocol) for number in range(prompts)]
    drawn = [picture for pictures in by_prompt for picture in pictures]
    real, figures = photographs(given), {}
    for name, tower in (("DINO", judges.dino), ("CLIP-I", judges.clip)):
        if tower:
            figures[name] = likeness(tower.images(drawn), tower.images(real))
    if judges.clip:
        wanted = judges.clip.texts(subject.prompts("")[:prompts]).repeat_interleave(protocol.pictures, 0)
        figures["CLIP-T"] = agreement(judges.clip.images(drawn), wanted)
    if judges.lpips:
        figures["LPIPS"] = sum(map(judges.lpips.diversity, by_prompt)) / prompts
    tower = judges.dino or judges.clip
    if tower:
        figures["drift"] = drift(*(tower.images(_opened(f, "class", protocol)) for f in (before, folder)))
    return figures


def _prepared(
    base: Base, method: Method, file: Path | None, folder: Path, protocol: Protocol
) -> dict[str, Any]:
    """What the method's pictures of a subject are drawn with; pictures of anything else are removed."""
    drawn: dict[str, Any] = {
        "base": [base.name, base.passport.architecture, base.passport.sketch_text(), base.prediction_type],
        "file": hashlib.sha256(file.read_bytes()).hexdigest() if file else "",
        "acting": method.acting,
        "trigger": _trigger(method, file),
        "steps": protocol.steps,
        "guidance": protocol.guidance,
        "size": protocol.size,
    }
    kept = folder / "drawn.json"
    if kept.is_file() and json.loads(kept.read_text("utf-8")) == drawn:
        return drawn
    for path in [kept, folder / "figures.json", *folder.glob("*-*.png")]:
        path.unlink(missing_ok=True)
    atomic.write(kept, json.dumps(drawn).encode(), "The list of what was drawn")
    return drawn
