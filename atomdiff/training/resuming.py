"""Going on with a saved run: which one is meant, and whether the run at hand is equal to it."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from atomdiff.base.stable_diffusion import Base
from atomdiff.concept.passport import BasePassport
from atomdiff.errors import TrainingError
from atomdiff.training.checkpoint import Checkpoint, differences, find_checkpoint, load_checkpoint
from atomdiff.training.defaults import numerical
from atomdiff.training.pictures import Picture
from atomdiff.training.reporting import Reporter
from atomdiff.training.settings import TrainingSettings


def saved_state(settings: TrainingSettings, told: Reporter) -> Checkpoint | None:
    """The state that --resume_from_checkpoint means, told; None without one. Raises TrainingError."""
    if not settings.resume_from_checkpoint:
        return None
    path = find_checkpoint(Path(settings.output_dir), settings.resume_from_checkpoint)
    if path is None:
        told.notice(f"No saved state in {settings.output_dir}; starting from the beginning")
        return None
    saved = load_checkpoint(path)
    told.notice(f"Resuming from {path}, after step {saved.step}")
    return saved


def with_saved_name(settings: TrainingSettings, saved: str) -> TrainingSettings:
    """A run that was called NAME-2, since there was a NAME, goes on as NAME-2."""
    again = re.fullmatch(rf"{re.escape(settings.name)}-\d+", saved)
    return replace(settings, name=saved) if again else settings


def identity(
    settings: TrainingSettings, base: Base, pictures: list[Picture], processes: int
) -> dict[str, Any]:
    """What a state records so that only an equal run goes on from it."""
    compared = numerical(settings, processes) | {"pictures": digest_of(pictures)}
    passport = {"architecture": base.passport.architecture, "sketch": base.passport.sketch_text()}
    return {"compared": compared, "base": passport | {"name": base.name}}


def refuse_differences(saved: Checkpoint, now: dict[str, Any]) -> None:
    """Raise TrainingError, listing them, when the saved run differs in anything that decides its numbers."""
    before = saved.state.get("compared") or {}
    if "class pictures" not in now["compared"]:  # not drawn yet: compared in a second round
        before = {name: value for name, value in before.items() if name != "class pictures"}
    free = saved.state.get("may_change") or []  # of a run that broke down, see `loop.MAY_CHANGE`
    before, after = ({k: v for k, v in d.items() if k not in free} for d in (before, now["compared"]))
    found = differences(before, after)
    then, base = saved.state.get("base") or {}, now["base"]
    passports = [BasePassport.from_text(b.get("architecture", ""), b.get("sketch", "")) for b in (then, base)]
    if passports[0].compare(passports[1]).kind != "same":
        found.insert(0, f"base: {then.get('name')} -> {base['name']}")
    if found:
        hint = ""
        if len(found) == 1 and found[0].startswith("max_train_steps"):
            hint = " (Rates that fall towards the last step fix it; --lr_scheduler constant leaves it open.)"
        raise TrainingError(
            f"The saved state of step {saved.step} was made with other settings ({'; '.join(found)}); "
            f"give the old ones again, or drop --resume_from_checkpoint to start anew.{hint}"
        )


def digest_of(pictures: Sequence[Picture]) -> str:
    """8 hex digits over the pixels and captions."""
    digest = hashlib.blake2b(digest_size=4)
    for picture in pictures:
        digest.update(picture.image.tobytes())
        digest.update(picture.caption.encode() + b"\0")
        if picture.mask:
            digest.update(picture.mask.tobytes())
    return digest.hexdigest()
