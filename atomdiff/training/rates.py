"""The learning rates of a run: as given, as recorded, or as they follow from the base."""

import contextlib
import hashlib
import json
from dataclasses import asdict, replace
from typing import Any

from atomdiff.base.stable_diffusion import Base, encode_prompts
from atomdiff.core.spec import AtomSpec
from atomdiff.errors import SettingsError
from atomdiff.files.atomic import write_atomically
from atomdiff.training.calibration import LORA_RATE, VERSION, Calibration, calibrate, rounded, word_rate
from atomdiff.training.exchange import averaged
from atomdiff.training.prior_preservation import default_folder
from atomdiff.training.reporting import Reporter
from atomdiff.training.settings import TrainingSettings

RATES = ("learning_rate", "linear_learning_rate", "token_learning_rate")
RECORDED = "pocket"  # the base whose rates were found by training on it, see `defaults`
POCKET_LORA_RATE = 2.5e-3  # what those rates come to, for bases made of the pocket: benchmarks.rates


def open_rates(settings: TrainingSettings, given: TrainingSettings, base: Base) -> TrainingSettings:
    """`settings`, in which defaults were filled, with the rates open again that this base is to be measured
    for: those that were not `given`, unless Prodigy finds them itself or the base is the bundled
    one and nothing else was asked for.
    Raises SettingsError where a rate and what it should match were both given."""
    if given.learning_rate is not None and given.match_lora_rate is not None:
        raise SettingsError(
            "--learning_rate sets the rate that --match_lora_rate would have found; give one of them."
        )
    if settings.optimizer == "prodigy" or (base.name == RECORDED and given.match_lora_rate is None):
        return settings
    if given.learning_rate is not None:
        return replace(settings, token_learning_rate=given.token_learning_rate)
    usual = POCKET_LORA_RATE if base.family == "pocket" else LORA_RATE
    opened: dict[str, Any] = {name: getattr(given, name) for name in RATES}
    return replace(settings, **opened, match_lora_rate=given.match_lora_rate or usual)


def saved_rates(settings: TrainingSettings, compared: dict[str, Any]) -> TrainingSettings:
    """Open rates filled with those of the saved run that goes on."""
    rates = {name: compared.get(name) for name in RATES if getattr(settings, name) is None}
    known: dict[str, Any] = {name: rate for name, rate in rates.items() if type(rate) is float}
    return replace(settings, **known)


def suit_rates(
    settings: TrainingSettings, spec: AtomSpec, base: Base, accelerator: Any, told: Reporter
) -> TrainingSettings:
    """Fill the rates that are open, telling how they were found. The text encoders must still be there."""
    if settings.token_learning_rate is None:
        settings = replace(settings, token_learning_rate=word_rate(base))
    if not spec.has_layers:  # the word alone
        word = settings.token_learning_rate
        return replace(settings, learning_rate=word, linear_learning_rate=word, match_lora_rate=None)
    if settings.learning_rate is not None and settings.linear_learning_rate is not None:
        return settings
    found = cached(
        base,
        spec,
        settings.class_prompt,
        int(settings.resolution or base.resolution),
        settings.match_lora_rate or LORA_RATE,
        told,
    )
    # Of several processes the mean, since their machines may round differently.
    learning_rate, linear = map(
        rounded, averaged((), [found.learning_rate, found.linear_learning_rate], accelerator)
    )
    told.notice(
        f"Learning rates: {found}; {settings.token_learning_rate:g} for the word. --learning_rate sets them "
        "by hand, --match_lora_rate by the rate at which LoRA is known to learn well on this base"
    )
    return replace(
        settings,
        learning_rate=settings.learning_rate or learning_rate or linear,
        linear_learning_rate=settings.linear_learning_rate or linear or learning_rate,
    )


def cached(
    base: Base, spec: AtomSpec, prompt: str, resolution: int, lora_rate: float, told: Reporter
) -> Calibration:
    """`calibrate`, kept in the user's cache folder for the same base and recipe."""
    passport = [base.passport.architecture, list(base.passport.sketch), base.prediction_type, str(base.dtype)]
    asked = [VERSION, passport, sorted(asdict(spec).items()), prompt, resolution, lora_rate]
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    path = default_folder().parent / "rates" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Calibration(**json.loads(path.read_text("utf-8")))
    said, empty = (encode_prompts(base, [text]) for text in (prompt, ""))
    heard = lambda done, total: told.stage("Finding the learning rates", done, total)  # noqa: E731
    made = calibrate(base, spec, said, empty, resolution, lora_rate, heard)
    with contextlib.suppress(OSError):  # a cache that cannot be written is none
        write_atomically(path, json.dumps(asdict(made)).encode())
    return made
