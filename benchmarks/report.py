"""What every benchmark shares: a table on the screen, the same table in Markdown, and `--check`."""

from __future__ import annotations

import argparse
import platform
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from atomdiff.errors import AtomdiffError
from atomdiff.files.atomic import write_atomically

Shown = tuple[Sequence[str], Sequence[Sequence[object]]]
"""Headers and rows."""


@dataclass(frozen=True)
class Target:
    """A figure, None if not measured, that must be at least (`low`) or at most (`high`) something."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = ""

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        return (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)

    @property
    def wanted(self) -> str:
        return f"≥ {self.low:g}" if self.low is not None else f"≤ {self.high:g}"

    @property
    def row(self) -> tuple[str, str, str, str]:
        """Name, figure, what is wanted, and whether that is met."""
        wanted = f"{self.wanted} {self.unit}".strip()
        if self.value is None:
            return self.name, "not measured", wanted, ""
        return self.name, f"{self.value:.4g} {self.unit}".strip(), wanted, "yes" if self.met else "NO"


def command(name: str, about: str | None, docs: str = "", check: bool = True) -> argparse.ArgumentParser:
    """The command line of a benchmark: --check where there are targets, and --docs where it writes a section
    of the page `docs`."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if check:
        made.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    if docs:
        made.add_argument("--docs", action="store_true", help=f"write the section of {docs}")
        made.set_defaults(page=docs)
    return made


@contextmanager
def one_sentence() -> Iterator[None]:
    """What a user can cause ends in its sentence and exit status 2."""
    try:
        yield
    except AtomdiffError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def show(title: str, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table; the first column is text, the others are right-aligned."""
    table = Table(title=title, title_justify="left")
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=160 if not sys.stdout.isatty() else None).print(table)


def markdown(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The same table for a docs page."""
    lines = ["| " + " | ".join(headers) + " |", "|---|" + "---:|" * (len(headers) - 1)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"


def write_section(path: Path, name: str, text: str) -> None:
    """Puts `text` between the marks of its section, which are appended if they are missing."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    page = path.read_text() if path.exists() else "# Results\n"
    section = begin + text.strip() + "\n" + end
    found = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    page = found.sub(lambda _: section, page) if found.search(page) else f"{page.rstrip()}\n\n{section}"
    write_atomically(path, page.encode())


def written() -> str:
    """Which command wrote a page, where and when."""
    return f"`{_command(sys.argv)}` wrote this on {machine()}"


def _command(arguments: Sequence[str]) -> str:
    """As it would be typed again: `python -m`, without --out, and FOLDER for folders of this machine."""
    file, *rest = arguments
    path = Path(file)
    name = path.parent.name if path.stem == "__main__" else path.stem
    if "--out" in rest:
        rest = rest[: (i := rest.index("--out"))] + rest[i + 2 :]
    return " ".join(["python -m benchmarks." + name, *(_quoted(argument) for argument in rest)])


def _quoted(argument: str) -> str:
    if Path(argument).is_absolute():
        return "FOLDER"
    return f'"{argument}"' if "'" in argument and '"' not in argument else shlex.quote(argument)


def machine() -> str:
    """Where and when, for beside a figure."""
    import torch

    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{(n := torch.get_num_threads())} CPU thread{'s' * (n > 1)}"
    )
    python, today = platform.python_version(), time.strftime("%Y-%m-%d")
    return f"{device}, {platform.machine()}, Python {python}, torch {torch.__version__}, {today}"


def verdict(targets: Sequence[Target], check: bool) -> None:
    """Prints each target beside its figure; with `check`, exits 1 naming the missed ones in the last line.
    What was not measured is neither met nor missed."""
    measured = [t for t in targets if t.value is not None]
    missed = [t for t in measured if not t.met]
    show("Targets", ("target", "measured", "wanted", "met"), [target.row for target in targets])
    if missed:
        print("missed: " + "; ".join(f"{t.name} {t.value:.4g} (wanted {t.wanted})" for t in missed))
    elif measured == list(targets):
        print("all targets met")
    else:
        print(f"{len(measured)} targets met; {len(targets) - len(measured)} not measured")
    if check and missed:
        sys.exit(1)


def conclude(
    a: argparse.Namespace,
    title: str,
    table: Shown,
    targets: Sequence[Target],
    section: str = "",
    legend: str = "",
) -> None:
    """Prints the table and the verdict; with --docs writes the table, below its legend, into the section of
    the page that `command` was given."""
    show(f"{title}, {machine()}", *table)
    if section and a.docs:
        parts = [f"{written()}.", legend or f"{title}:", markdown(*table)]
        write_section(Path(a.page), section, "\n\n".join([f"## {title}"] * bool(legend) + parts))
    verdict(targets, a.check)
