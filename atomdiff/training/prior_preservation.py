"""Class pictures for prior preservation: drawn by the base itself, once, and kept.

A picture is kept under a name that says what made it, `class-KEY-NUMBER.png`, KEY a digest of base, dtype,
prompt, seed, size and steps. Asking for more later draws only the missing ones, another prompt or base
never meets them, and stopping halfway loses nothing. Picture i has the seed `seed + i`, whoever draws it.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomdiff.errors import ImageError, TrainingError
from atomdiff.files.atomic import require_writable, write_atomically
from atomdiff.files.images import encoded, read_picture
from atomdiff.sampling.draw import draw
from atomdiff.training.pictures import Picture, Reading, Skipped, load_folder

if TYPE_CHECKING:
    from atomdiff.base.stable_diffusion import Base

SEED = 1_000_000_000  # class pictures are drawn far from the seeds that people sample with
STEPS = 12  # the base is asked about them, not copied: they need not be its finest
RECIPE = 1  # to be raised when the same request would draw other pictures
OURS = re.compile(r"class-([0-9a-f]{10})-(\d{5})\.png")


# Prompts to which the base's answers stay as they are: the class; nothing, which guidance steers away from;
# other things. The pictures need not show them.
KEPT = ("{}", "{}", "", "a cat", "{}", "a tree", "a boat")


def prompts(class_prompt: str, count: int) -> list[str]:
    """The prompts of so many class pictures."""
    return [KEPT[i % len(KEPT)].replace("{}", class_prompt) for i in range(count)]


@dataclass(frozen=True)
class ClassRequest:
    """Which class pictures are wanted: `count` of `prompt` at resolution², from `seed` on."""

    prompt: str
    count: int
    resolution: int
    seed: int = 0
    step: int | None = None  # of the sides of pictures that someone else put into the folder, see `buckets`

    def key(self, base: "Base") -> str:
        """10 hex digits that differ for whatever would give other pictures."""
        made_by = [base.passport.architecture, list(base.passport.sketch), str(base.dtype)]
        wanted = [self.prompt, self.seed, self.resolution, STEPS, RECIPE]
        return hashlib.sha256(json.dumps([made_by, wanted]).encode()).hexdigest()[:10]


def default_folder() -> Path:
    """Where class pictures are shared between runs: $ATOMDIFF_CACHE, else the user's cache folder."""
    named = os.environ.get("ATOMDIFF_CACHE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(named) if named else cache / "atomdiff") / "class_pictures"


def class_pictures(
    base: "Base",
    request: ClassRequest,
    folder: Path,
    accelerator: Any,
    progress: Callable[[int, int], None] = lambda done, total: None,
    batch_size: int = 4,
) -> tuple[list[Picture], list[Skipped]]:
    """The class pictures in `folder`, the missing ones drawn first, shared out over the processes.

    Pictures that someone else put into the folder come first, in the order of their names. `progress`
    hears of this process's share. Raises TrainingError when the folder cannot be written.
    """
    own, skipped = _read_own(folder, request)
    key, wanted = request.key(base), range(request.count - len(own))
    made = {i: picture for i in wanted if (picture := _read_made(_path(folder, key, i), request)) is not None}
    runs = list(_runs([i for i in wanted if i not in made], batch_size))
    accelerator.wait_for_everyone()  # every process has seen the same folder before anyone adds to it
    mine = runs[accelerator.process_index :: accelerator.num_processes]
    total = sum(len(run) for run in mine)
    done = 0
    if total:
        require_writable(folder, "--class_data_dir")
        progress(0, total)
    for run in mine:
        _draw(base, request, folder, key, run)
        done += len(run)
        progress(done, total)
    accelerator.wait_for_everyone()
    for i in wanted:
        if i not in made:
            picture = _read_made(_path(folder, key, i), request)
            if picture is None:
                raise TrainingError(
                    f"The class picture '{_path(folder, key, i)}' vanished; processes must share the folder."
                )
            made[i] = picture
    return own + [made[i] for i in wanted], skipped


def _draw(base: "Base", request: ClassRequest, folder: Path, key: str, run: range) -> None:
    """Draw the pictures of `run` in one batch; each is written whole or not at all."""
    images = draw(
        base, request.prompt, count=len(run), seed=SEED + request.seed + run.start, steps=STEPS,
        size=request.resolution, batch_size=len(run),
    )  # fmt: skip
    for i, image in zip(run, images, strict=True):
        path = _path(folder, key, i)
        try:
            write_atomically(path, encoded(image))
        except OSError as error:
            raise TrainingError(
                f"The class picture '{path}' could not be written: {error.strerror}; free some space "
                "or choose another place with --class_data_dir."
            ) from None


def _read_own(folder: Path, request: ClassRequest) -> tuple[list[Picture], list[Skipped]]:
    """Pictures in the folder that were not drawn here."""
    if not folder.is_dir() or all(OURS.fullmatch(path.name) for path in folder.iterdir()):
        return [], []
    try:
        return load_folder(
            folder,
            Reading(request.resolution, request.step, masks=False),
            limit=request.count,
            keep=lambda path: not OURS.fullmatch(path.name),
        )
    except ImageError:  # nothing usable but what was drawn here
        return [], []


def _read_made(path: Path, request: ClassRequest) -> Picture | None:
    """A picture drawn earlier; None where there is none, or a damaged one, which is then drawn again."""
    try:
        image, size = read_picture(path, request.resolution)
    except ImageError:
        return None
    return Picture(path, image, size)


def _path(folder: Path, key: str, number: int) -> Path:
    return folder / f"class-{key}-{number:05d}.png"


def _runs(numbers: list[int], longest: int) -> Iterator[range]:
    """Consecutive stretches of at most `longest`: [0, 1, 2, 5] by 2 -> 0-1, 2, 5."""
    start = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] != numbers[end - 1] + 1 or end - start == longest:
            yield range(numbers[start], numbers[end - 1] + 1)
            start = end
