"""Training from the command line: flags in, sentences out."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from atomdiff.cli.train_flags import Parser, as_file, job_of
from atomdiff.errors import (
    AtomdiffError,
    BaseError,
    ConceptError,
    ImageError,
    Interrupted,
    SettingsError,
    reason_of,
    sentence_of,
)
from atomdiff.training import accelerate_launch
from atomdiff.training.settings import TrainingSettings

if TYPE_CHECKING:
    from atomdiff.base.stable_diffusion import Base
    from atomdiff.training.reporting import Reporter
    from atomdiff.training.terminal import Terminal


def main(parser: Parser, arguments: Sequence[str] | None = None) -> None:
    """Parse, train, and turn every foreseen error into one sentence.

    Exit status: 0 done; 2 something is wrong; 130 stopped, with the state saved.
    """
    try:
        job = job_of(parser, arguments)
        if job.print_config:
            print("\n".join(map(as_file, job.runs)), end="")
            return
        launch = accelerate_launch.detect()
        if job.together > 1 and (launch.processes > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1):
            raise SettingsError("--together trains in one process; start one, or drop the flag.")
        if launch.processes > 1:
            status = accelerate_launch.run_all(launch, accelerate_launch.this_command())
            _explain_launcher(status)
            sys.exit(status)
        if launch.threads:
            import torch  # late: it takes seconds to load

            torch.set_num_threads(launch.threads)
        from atomdiff.training.terminal import Terminal

        with Terminal() as terminal:
            _train_all(job.runs, terminal, job.together)
    except Interrupted as stopped:
        _fail(str(stopped), 130)
    except KeyboardInterrupt:
        _fail("Stopped before the first step; class pictures drawn so far are kept for the next run.", 130)
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        alike = isinstance(error, (SettingsError, ImageError, BaseError))  # found by every process
        _fail(sentence, everyone=not alike)


def _train_all(runs: Sequence[TrainingSettings], told: "Terminal", together: int = 1) -> None:
    """One run after another, or so many in one batch; several share one loaded base."""
    from atomdiff.training.hub_dataset import with_dataset
    from atomdiff.training.run import fit, shared_base, with_own_name

    main, named = int(os.environ.get("RANK", "0")) == 0, []
    for given in runs:
        settings, renamed = with_own_name(with_dataset(given))
        named.append(settings)
        if renamed and main:
            told.notice(renamed)
    runs = named
    repos = [_repository(settings) if settings.push_to_hub else "" for settings in runs]
    base = shared_base(runs[0]) if len(runs) > 1 else None
    if base is not None and together > 1:
        _train_together(list(zip(runs, repos, strict=True)), base, told, together)
        return
    for number, (settings, repo) in enumerate(zip(runs, repos, strict=True), 1):
        if len(runs) > 1 and main:
            told.notice(f"Subject {number} of {len(runs)}: {settings.name}")
        fit(settings, reporter=told, base=base)
        if repo and main:
            _push(settings, repo, told)


def _train_together(
    runs: "Sequence[tuple[TrainingSettings, str]]", base: "Base", told: "Terminal", together: int
) -> None:
    """So many runs at a time in one batch, each pushed to its repository if it has one. What ends one of them
    leaves the others; the first such error is raised when all are done."""
    from atomdiff.training.together import train_together

    failed: list[AtomdiffError] = []
    for first in range(0, len(runs), together):
        some = runs[first : first + together]
        heard = [told.subject(settings.name) for settings, _ in some]
        names = ", ".join(settings.name for settings, _ in some)
        told.notice(f"Subjects {first + 1} to {first + len(some)} of {len(runs)} together: {names}")
        made = train_together([settings for settings, _ in some], base, reporters=heard)
        for (settings, repo), result, own in zip(some, made, heard, strict=True):
            if isinstance(result, AtomdiffError):
                own.warn(str(result))
                failed.append(type(result)(f"{settings.name}: {result}"))
            elif repo:
                _push(settings, repo, own)
    if failed:
        raise failed[0]


def _repository(settings: TrainingSettings) -> str:
    """user/name of --push_to_hub, with the right to write asked for before anything is trained. Raises
    ConceptError."""
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise ConceptError(
            "--push_to_hub needs a token of your account with the right to write: log in with `hf auth "
            "login`, or set HF_TOKEN."
        )
    if settings.hub_model_id:
        return settings.hub_model_id
    try:
        user = HfApi().whoami()["name"]
    except Exception as error:  # the client's own and its HTTP library's
        raise ConceptError(
            f"The hub does not say who you are ({reason_of(error)}): go online, or name the repository with "
            "--hub_model_id user/name."
        ) from error
    return f"{user}/{settings.name}"


def _push(settings: TrainingSettings, repo: str, told: "Reporter") -> None:
    """Put the finished concept on the hub; where that fails it is still on the disk, which is told."""
    from atomdiff.library.hub import MAX_SAMPLES, push
    from atomdiff.training.run import concept_path

    path = concept_path(settings)
    drawn = sorted(path.parent.glob("validation/step-*-*.png"))
    last = [p for p in drawn if drawn and p.name.split("-")[1] == drawn[-1].name.split("-")[1]]
    try:
        told.notice(
            f"On the hub: {push(path, repo, private=settings.hub_private, pictures=last[:MAX_SAMPLES])}"
        )
    except AtomdiffError as error:
        told.warn(f"{error} The concept is in '{path}'; `atomdiff push '{path}' {repo}` puts it there later.")


def _fail(sentence: str, status: int = 2, everyone: bool = False) -> NoReturn:
    """Print one sentence and exit; of several processes the first, unless the trouble may be another's."""
    rank = int(os.environ.get("RANK", "0"))
    if rank == 0 or everyone:
        who = f"process {rank}: " if rank else ""
        print(f"{who}{'' if status == 130 else 'error: '}{sentence}", file=sys.stderr, flush=True)
    if "RANK" not in os.environ:
        _explain_launcher(status)
    sys.exit(status)


def _explain_launcher(status: int) -> None:
    """`accelerate launch` puts a traceback of its own below whatever fails: say so first."""
    if status == 2 and accelerate_launch.adds_traceback():
        print(
            "(What follows is accelerate's own report of exit status 2; accelerate launch -q leaves it out.)",
            file=sys.stderr,
            flush=True,
        )
