"""The trainings of a service on a cluster: each is a task of Ray's, which places it beside the replicas, and
what it leaves is in the library of the first machine, from which every picture takes its concepts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from atomdiff.errors import Interrupted, SettingsError, TrainingError
from atomdiff.files.atomic import write_atomically
from atomdiff.serving import remote_training
from atomdiff.serving.bases import BaseInfo
from atomdiff.serving.batcher import STOPPED
from atomdiff.serving.job_queue import Job, JobQueue
from atomdiff.serving.remote_training import Outcome, Report, pictures_of, told
from atomdiff.serving.training_jobs import settling
from atomdiff.serving.training_session import TrainingSession
from atomdiff.serving.trainings import Trainings
from atomdiff.training.run import concept_path

LOOK = 1.0  # seconds between two looks at a training


class SideBySide(JobQueue):
    """Jobs that wait for the cluster alone: all at a time, a thread each."""

    def submit(self, owner: str, work: Callable[[Job], None], background: bool = False) -> Job:
        """Begins a job. Raises SettingsError while the server closes."""
        with self._change:
            if self._closed:
                raise SettingsError("The server is closing: ask again once it is back.")
            job = Job(owner, work, background)
            self._jobs.append(job)
        threading.Thread(target=job.run, name="atomdiff-training", daemon=True).start()
        return job

    def close(self, seconds: float = 30) -> None:
        """Stops every job, and waits for each at most so long."""
        with self._change:
            self._closed, jobs = True, self._unfinished()
        for job in jobs:
            job.cancel()
        for job in jobs:
            job.wait(seconds)


class Served:
    """The bases of a cluster, as `Trainings` asks for them: by the name that they are served under."""

    def __init__(self, infos: Mapping[str, BaseInfo]) -> None:
        self._infos = infos

    def check(self, name: str) -> None:
        """Raises SettingsError for a base that is not served."""
        if name not in self._infos:
            raise SettingsError(
                f"There is no model {name[:80]!r} here: choose one of {', '.join(self._infos)}."
            )

    def info(self, name: str) -> BaseInfo:
        """What is known of one."""
        return self._infos[name]


class ClusterTrainings(Trainings):
    """Trainings of so many `cpus` and `gpus` each, in the `precision` of their base."""

    def __init__(
        self, folder: Path, infos: Mapping[str, BaseInfo], precision: Mapping[str, str], each: int,
        kept: Callable[[TrainingSession], str], cpus: float, gpus: float,
    ) -> None:  # fmt: skip
        self.jobs = SideBySide()
        self._precision, self._board = precision, remote_training.make_board()
        self._task = remote_training.task(cpus, gpus)
        bases: Any = Served(infos)
        super().__init__(folder, self.jobs, bases, str, each, kept)

    def drop(self, owner: str, ident: str, patience: float = 60) -> None:
        """As of any training; its files on the cluster are removed too."""
        super().drop(owner, ident, patience)
        remote_training.forget_everywhere(ident)

    def _work(self, session: TrainingSession) -> Callable[[Job], None]:
        def work(job: Job) -> None:
            with settling(session):
                session.change(stage="Waiting for the cluster")
                outcome = self._outcome(session, job)
                for note in outcome.notes:
                    session.note(note)
                if outcome.error:
                    raise TrainingError(outcome.error)
                write_atomically(concept_path(session.settings), outcome.data)
                kept, steps = self._kept(session), session.status().steps
                session.change(state="done", step=steps, seconds_left=None, concept=kept)

        return work

    def _outcome(self, session: TrainingSession, job: Job) -> Outcome:
        """What came of it on the cluster. Raises Interrupted if the job was cancelled."""
        import ray

        key, settings = session.ident, session.settings
        self._bases.check(settings.base)  # which an earlier start may have had
        what = told(settings) | {"mixed_precision": self._precision[settings.base]}
        ref = self._task.remote(what, dict(pictures_of(settings)), key, self._board, False)
        ended = False
        while not ended:  # what it said last is read when it has ended, too
            ended = bool(ray.wait([ref], timeout=LOOK)[0])
            if job.cancelled and not ended:
                ray.cancel(ref, force=True)
                ray.wait([ref], timeout=60)
                raise Interrupted(STOPPED)
            if report := remote_training.said(self._board, [one.ident for one in self.all()]).get(key):
                show(session, report)
        return remote_training.outcome_of(ref)


def show(session: TrainingSession, report: Report) -> None:
    """Puts what the cluster says of a training into its status."""
    before = session.status()
    losses = before.losses
    if report.loss is not None and report.step > before.step:
        losses = (*losses, (report.step, report.loss))
    session.change(
        state="running", stage=report.stage, step=max(report.step, before.step),
        losses=losses, seconds_left=report.seconds_left,
    )  # fmt: skip
