"""Pictures from a dataset on the Hugging Face hub: plain picture files, or a table (Parquet) of pictures.

What is downloaded stays in the hub's cache; pictures out of a table are written beside the class pictures.
Nothing of a dataset is ever run: only picture files, metadata.jsonl and Parquet are read.
"""

import contextlib
import hashlib
import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from atomdiff.errors import AtomdiffError, SettingsError, reason_of, refused_by_hub
from atomdiff.files.atomic import write
from atomdiff.training.captions import COLUMNS, LIST
from atomdiff.training.prior_preservation import default_folder
from atomdiff.training.settings import TrainingSettings

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".heic", ".heif", ".bmp", ".tif", ".tiff")
BESIDE = (".txt", ".caption")  # files that may belong to pictures
MOST = 1000  # pictures: a subject is a few
USUAL = re.compile(r"\b(example|dataset|images|pictures|photos)\b")  # in a dataset's name, not in a class


def with_dataset(settings: TrainingSettings) -> TrainingSettings:
    """The settings with the pictures of --dataset_name downloaded, and named after it. Raises
    SettingsError."""
    if not settings.dataset_name:
        return settings
    if settings.instance_data_dir:
        raise SettingsError("--dataset_name and --instance_dir were both given; give one of them.")
    local = Path(settings.dataset_name).expanduser()
    if local.is_dir():
        return replace(settings, dataset_name="", instance_data_dir=str(local / settings.dataset_config_name))
    folder = download(
        settings.dataset_name,
        settings.dataset_config_name,
        Columns(settings.image_column, settings.caption_column),
    )
    called = settings.dataset_name.rpartition("/")[2]
    words = " ".join(USUAL.sub(" ", re.sub(r"[\W\d_]+", " ", called).lower()).split())
    return replace(
        settings,
        dataset_name="",
        instance_data_dir=str(folder),
        name=settings.name or called,
        class_word=settings.class_word or words,
    )


@dataclass(frozen=True)
class Columns:
    """The columns of a table that hold pictures and their captions."""

    image: str = "image"
    caption: str = ""


def download(repo: str, part: str, columns: Columns) -> Path:
    """The folder with the pictures of a dataset, or of its `part`, a folder in it. Raises SettingsError."""
    from huggingface_hub import HfApi, hf_hub_download

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise SettingsError(f"--dataset_name must be user/name or a folder, but {repo!r} was given.")
    with _told(repo):
        files = [file.rfilename for file in HfApi().dataset_info(repo, timeout=20).siblings or []]

        def fetch(path: str) -> Path:
            return Path(hf_hub_download(repo, path, repo_type="dataset"))

        inside = [path for path in files if not part or part in PurePosixPath(path).parts[:-1]]
        pictures = [path for path in inside if path.lower().endswith(ENDINGS)]
        if pictures:
            return _of_files(repo, pictures, inside, fetch)
        tables = [path for path in inside if path.endswith(".parquet")]
        train = [path for path in tables if "train" in PurePosixPath(path).name] or tables
        if train:
            return _of_tables(repo, [fetch(path) for path in train], columns)
    where = f"no pictures in '{part}'" if part else "neither pictures nor Parquet tables"
    raise SettingsError(f"The dataset '{repo}' has {where}; give another, or download it to a folder.")


def _of_files(repo: str, pictures: Sequence[str], files: Sequence[str], fetch: Any) -> Path:
    folders = Counter(str(PurePosixPath(path).parent) for path in pictures)
    if len(folders) > 1:
        found = ", ".join(sorted(folders)[:5])
        raise SettingsError(
            f"The dataset '{repo}' has pictures in {len(folders)} folders ({found} ...); choose one with "
            "--dataset_config_name."
        )
    _check_count(repo, len(pictures))
    folder = PurePosixPath(next(iter(folders)))
    beside = [p for p in files if PurePosixPath(p).parent == folder and p.lower().endswith((*BESIDE, LIST))]
    return [fetch(path) for path in (*beside, *pictures)][-1].parent


def _of_tables(repo: str, tables: Sequence[Path], columns: Columns) -> Path:
    """Pictures and captions of Parquet tables, written to a folder."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise SettingsError(
            f"The dataset '{repo}' is a table, which takes pyarrow to read; install atomdiff[datasets]."
        ) from None
    key = hashlib.sha256(repr([[t.stat().st_size for t in tables], list(map(str, tables)), columns]).encode())
    folder = default_folder().parent / "datasets" / f"{repo.replace('/', '--')}-{key.hexdigest()[:10]}"
    if folder.is_dir():
        return folder
    try:
        rows = [row for table in tables for row in parquet.read_table(table).to_pylist()]
    except (ArrowException, OSError) as error:
        raise SettingsError(f"A table of '{repo}' cannot be read ({error}); give another dataset.") from None
    _check_count(repo, len(rows))
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))
    try:
        _write_rows(repo, rows, columns, part)
        part.rename(folder)
    except OSError:  # another process was faster, or the disk is full
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _write_rows(repo: str, rows: Sequence[dict[str, Any]], columns: Columns, folder: Path) -> None:
    lines = []
    for number, row in enumerate(rows):
        picture = row.get(columns.image)
        data = picture.get("bytes") if isinstance(picture, dict) else picture
        if not isinstance(data, bytes):
            raise SettingsError(
                f"The dataset '{repo}' has no pictures in the column '{columns.image}' (it has: "
                f"{', '.join(row)}); choose one with --image_column."
            )
        named = (
            PurePosixPath(str(picture.get("path") or "")) if isinstance(picture, dict) else PurePosixPath()
        )
        ending = named.suffix.lower() if named.suffix.lower() in ENDINGS else ".png"
        name = f"{number:04d}{ending}"
        write(folder / name, data, f"A picture of '{repo}'", SettingsError)
        wanted = (columns.caption,) if columns.caption else COLUMNS
        text = next((row[c] for c in wanted if isinstance(row.get(c), str)), None)
        if text is not None:
            lines.append(json.dumps({"file_name": name, columns.caption or "text": text}))
    if lines:
        write(folder / LIST, ("\n".join(lines) + "\n").encode(), f"The captions of '{repo}'", SettingsError)


def _check_count(repo: str, count: int) -> None:
    if count > MOST:
        raise SettingsError(
            f"The dataset '{repo}' has {count:,} pictures, more than the {MOST:,} of one subject; choose a "
            "part of it with --dataset_config_name, or download some to a folder."
        )


@contextlib.contextmanager
def _told(repo: str) -> Iterator[None]:
    """What the hub or its client refuses becomes one sentence."""
    try:
        yield
    except (AtomdiffError, MemoryError):
        raise
    except Exception as error:  # the client raises its own, its HTTP library's and ValueErrors
        if isinstance(error, OSError) and error.errno and error.filename:
            raise
        raise SettingsError(
            refused_by_hub(error, f"dataset '{repo}'")
            or f"The dataset '{repo}' cannot be had from the hub ({reason_of(error)}): go online, or give a "
            "folder."
        ) from error
