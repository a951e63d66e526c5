"""What one server takes on: bounds of every request, of what waits, and of time."""

from __future__ import annotations

from dataclasses import dataclass, fields

from atomdiff.errors import SettingsError
from atomdiff.sampling.settings import DrawingSettings
from atomdiff.serving.bases import BaseInfo

MAX_TEXT = 4000  # letters of a prompt
MAX_GUIDANCE = 100
MAX_CONCEPTS = 8  # of a picture
MAX_REGIONS = 8


@dataclass(frozen=True)
class Limits:
    """Raises SettingsError for what cannot work. `pixels` of 0 is four times the base's native area, `batch`
    of 0 what suits the base."""

    pixels: int = 0
    steps: int = 100
    pictures: int = 8
    """Of a request."""
    waiting: int = 64
    """Pictures that wait at a time."""
    seconds: float = 600
    """From a request until its pictures are drawn."""
    upload: int = 64 << 20
    """Bytes of a request that brings files; others have a MiB."""
    trainings: int = 4
    """Under way at a time, for one token."""
    batch: int = 0
    window: float = 0.05
    """Seconds that a picture waits for others to be drawn with."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name in ("pixels", "batch", "window") else 1
            if not value >= least:
                raise SettingsError(f"The limit of {field.name} is at least {least}, not {value:g}.")

    def check(self, settings: DrawingSettings, count: int, info: BaseInfo) -> None:
        """Raises SettingsError for a drawing, filled in for the base, that is more than this."""
        width, height = settings.size or (info.resolution, info.resolution)
        most = self.pixels or 4 * info.resolution**2
        if width * height > most:
            raise SettingsError(
                f"A picture here has at most {most:,} pixels, not {width} × {height}: the base's own size is "
                f"{info.resolution} × {info.resolution}."
            )
        if settings.steps > self.steps:
            raise SettingsError(f"A picture here takes at most {self.steps} steps, not {settings.steps}.")
        if settings.guidance is not None and settings.guidance > MAX_GUIDANCE:
            raise SettingsError(f"The guidance here is at most {MAX_GUIDANCE}, not {settings.guidance:g}.")
        if not 1 <= count <= self.pictures:
            raise SettingsError(f"A request is for 1 to {self.pictures} pictures, not {count}.")
        if len(settings.prompt) > MAX_TEXT or len(settings.negative) > MAX_TEXT:
            raise SettingsError(f"A prompt has at most {MAX_TEXT:,} letters: shorten it.")
        if len(settings.concepts) > MAX_CONCEPTS:
            raise SettingsError(
                f"A picture has at most {MAX_CONCEPTS} concepts, not {len(settings.concepts)}."
            )
