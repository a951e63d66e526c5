"""Several subjects in one run: a JSON list, as `--concepts_list` of DreamBooth trainers takes it.

    [{"instance_data_dir": "dog", "instance_prompt": "a sks dog", "class_prompt": "a dog"},
     {"instance_data_dir": "cat", "class_word": "cat", "max_train_steps": 400}]

A file that ends in .jsonl has an entry a line, without the list's brackets. Each entry is trained by itself,
on one loaded base, to a file of its own; concepts are combined when they are drawn. An entry may hold any
setting that does not concern the base or the machine.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atomdiff.errors import ImageError, SettingsError
from atomdiff.files.images import check_folder
from atomdiff.files.plain_text import decode
from atomdiff.training.defaults import name_everything
from atomdiff.training.settings import TrainingSettings

SHARED = (  # settings of the run as a whole
    "base", "revision", "variant", "pretrained_vae_model_name_or_path", "output_dir", "mixed_precision",
    "allow_tf32", "enable_xformers_memory_efficient_attention", "dataset_name", "prediction_type",
    "zero_terminal_snr", "text_encoder_use_attention_mask", "concepts_list", "together",
)  # fmt: skip


def read(file: str, common: TrainingSettings, names: Mapping[str, str]) -> list[TrainingSettings]:
    """The settings of each subject: those of its entry, else `common`'s. `names` has the field of every name.

    Folders are relative to the list's own folder where they are not found from here. Raises SettingsError or
    ImageError, naming the entry, so that nothing is trained before the whole list is found sound.
    """
    path = Path(file).expanduser()
    if common.instance_data_dir:
        raise SettingsError("--concepts_list names the picture folders; drop --instance_dir.")
    try:
        entries = _entries(decode(path.read_bytes()), path.suffix.lower() == ".jsonl")
    except OSError as error:
        raise SettingsError(
            f"The list '{file}' cannot be read: {error.strerror}; give a .json or .jsonl file."
        ) from None
    except ValueError as error:
        raise SettingsError(f"The list '{file}' is no JSON: {error}.") from None
    if not isinstance(entries, list) or not entries:
        raise SettingsError(
            f"The list '{file}' must be a JSON list of subjects, each with an instance_data_dir."
        )
    found = [
        _settings(f"Entry {i} of '{file}'", e, path.parent, common, names) for i, e in enumerate(entries, 1)
    ]
    name, times = Counter(settings.name for settings in found).most_common(1)[0]
    if times > 1:
        raise SettingsError(f"{times} subjects of '{file}' are called '{name}'; give each a name of its own.")
    return found


def _entries(text: str, lines: bool) -> Any:
    """A JSON list, or a subject a line. Raises ValueError."""
    if not lines:
        return json.loads(text)
    made = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            made += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from None
    return made


def _settings(
    where: str, entry: Any, beside: Path, common: TrainingSettings, names: Mapping[str, str]
) -> TrainingSettings:
    if not isinstance(entry, dict) or not isinstance(entry.get("instance_data_dir"), str):
        raise SettingsError(f"{where} has no instance_data_dir; name the folder of the subject's pictures.")
    values: dict[str, Any] = {}
    for key, value in entry.items():
        if key not in names or names[key] in SHARED:
            why = "is of the run as a whole" if key in names else "is no setting"
            raise SettingsError(f"{where} has '{key}', which {why}; give it as a flag, or remove it.")
        values[names[key]] = value
    values["instance_data_dir"] = _folder(values["instance_data_dir"], beside)
    if values.get("class_data_dir"):
        values["class_data_dir"] = _folder(values["class_data_dir"], beside)
    try:
        check_folder(values["instance_data_dir"])
        settings = name_everything(dataclasses.replace(common, **values))
    except (SettingsError, ImageError) as error:
        raise type(error)(f"{where}: {error}") from None
    parent = Path(common.output_dir or "outputs")
    return dataclasses.replace(settings, output_dir=str(parent / settings.name))


def _folder(named: str, beside: Path) -> str:
    """A folder of an entry: as it is found from here, else from the list's own folder."""
    here = Path(named).expanduser()
    there = beside / here
    return str(there if not here.exists() and there.exists() else here)
