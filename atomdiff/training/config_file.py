"""Settings in a TOML file: every flag without its dashes, and sections, which mean nothing, as kohya's have
them.

    base = "sd15"
    resolution = 512

    [output]
    name = "dog"

What the command line says goes before the file.
"""

import dataclasses
import json
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atomdiff.errors import SettingsError
from atomdiff.files.plain_text import decode

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRESETS = Path(__file__).parent / "presets"


def presets() -> list[str]:
    """Names of the files that come with atomdiff."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def read(given: str, names: Mapping[str, str], elsewhere: Mapping[str, str]) -> dict[str, Any]:
    """The settings in a file, or in a preset, by field.

    `names` has the field of each name that a setting may be given under; `elsewhere` what became of other
    trainers' flags. Raises SettingsError, naming the file and the key, for what is no such file.
    """
    path = Path(given).expanduser()
    if given in presets() and not path.is_file():
        path = PRESETS / f"{given}.toml"
    try:
        parsed = tomllib.loads(decode(path.read_bytes()))
    except OSError as error:
        known = ", ".join(presets())
        raise SettingsError(
            f"The settings '{given}' cannot be read: {error.strerror}; give a TOML file, or one of {known}."
        ) from None
    except ValueError as error:  # TOMLDecodeError, and what is no text
        raise SettingsError(f"The settings '{given}' are no TOML: {error}.") from None
    found: dict[str, Any] = {}
    for key, value in _flat(parsed).items():
        if key not in names:
            hint = elsewhere.get(f"--{key}")
            raise SettingsError(
                f"There is no setting '{key}', which '{given}' has: "
                f"{hint or 'the flags in --help, without their dashes, are what there is'}."
            )
        found[names[key]] = tuple(value) if isinstance(value, list) else value
    return found


def write(settings: Any, comments: Mapping[str, str]) -> str:
    """A dataclass as TOML that `read` takes; a field that is None is a comment, since TOML has no such
    value."""
    lines = []
    for item in dataclasses.fields(settings):
        value, comment = getattr(settings, item.name), comments.get(item.name, "")
        if comment:
            lines.append(f"# {comment}")
        if value is None:
            kind = (typing.get_args(item.type) or (item.type,))[0]
            lines.append(f"# {item.name} = {getattr(kind, '__name__', kind)}, as it suits the base")
        else:
            lines.append(f"{item.name} = {_text(value)}")
    return "\n".join(lines) + "\n"


def _flat(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of all sections."""
    found: dict[str, Any] = {}
    for key, value in parsed.items():
        found |= _flat(value) if isinstance(value, dict) else {key: value}
    return found


def _text(value: Any) -> str:
    """TOML's strings escape as JSON's do, but for the one control character that JSON leaves as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_text, value))}]"
    return repr(value)
