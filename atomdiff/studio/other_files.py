"""LoRAs and textual inversions of others that a studio has: files in two folders beside its history."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atomdiff.errors import SettingsError
from atomdiff.files.atomic import write_atomically
from atomdiff.sampling import adapters
from atomdiff.sampling.infotext import UsedFile
from atomdiff.sampling.settings import used_file


class OtherFiles:
    """The folders `loras` and `embeddings`, which one may also fill by hand; names are those of files."""

    def __init__(self, folder: Path) -> None:
        self.folders = {"lora": folder / "loras", "embedding": folder / "embeddings"}

    def names(self, kind: str) -> list[str]:
        """Of all that there are of a kind, "lora" or "embedding"."""
        return sorted(path.stem for path in self.folders[kind].glob("*.safetensors"))

    def path(self, kind: str, name: str) -> Path:
        """Raises SettingsError if there is none of this name."""
        path = self.folders[kind] / f"{name}.safetensors"
        if name not in self.names(kind):
            raise SettingsError(
                f"There is no {kind} {name!r} here (any more): {self.folders[kind]} has them."
            )
        return path

    def paths(
        self, loras: Sequence[tuple[str, float]], embeddings: Sequence[str]
    ) -> tuple[tuple[tuple[Path, float], ...], tuple[Path, ...]]:
        """Both as files. Raises SettingsError."""
        return (
            tuple((self.path("lora", name), strength) for name, strength in loras),
            tuple(self.path("embedding", name) for name in embeddings),
        )

    def add(self, file: Path) -> tuple[str, str]:
        """Takes a file in; gives its kind and name. Raises ConceptError for one that is neither,
        SettingsError where another of its name is there."""
        kind, data = adapters.kind_of(file), file.read_bytes()
        target = self.folders[kind] / file.name
        if target.exists() and target.read_bytes() != data:
            raise SettingsError(f"There is another {kind} {file.stem!r} here: rename one of the two files.")
        write_atomically(target, data)
        return kind, target.stem

    def known(self, kind: str, used: UsedFile) -> str | None:
        """The name of the very file that a picture was drawn with, if it is here."""
        if used.name not in self.names(kind):
            return None
        here = used_file(self.path(kind, used.name), after_header=kind == "lora")
        return used.name if used.sha256 in ("", here.sha256) else None
