"""The service on a cluster: Ray Serve's replicas draw, each with one base at a time, in batches.

Ray starts and ends replicas as requests come, sends those of a base where it is loaded, and replaces what is
lost; a picture whose replica was lost is asked for again. A concept travels with the picture, in its few
KB, so that machines share no disk. HTTP stays with `app`, here on the first machine."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from atomdiff.errors import AtomdiffError, Interrupted, SettingsError, reason_of
from atomdiff.serving.bases import BaseInfo, info_of
from atomdiff.serving.batcher import STOPPED, Busy, Ticket
from atomdiff.serving.cluster_trainings import ClusterTrainings, Served
from atomdiff.serving.drawing import Drawer, Wanted
from atomdiff.serving.metrics import Metrics
from atomdiff.serving.service import Options, Service
from atomdiff.serving.training_jobs import precision_of

if TYPE_CHECKING:
    from PIL.Image import Image

RETRIES = 5  # of a picture whose replica was lost
NAME = "atomdiff"
STARTS = 4  # of Ray on this machine, before it is given up
FOR_ME = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_agent_register_timeout_ms": "300000",  # where machines are busy
}

log = logging.getLogger(__name__)


def connect(address: str = "") -> None:
    """Joins the cluster at an address, or makes one of this machine. Nothing is reported to anyone. Raises
    SettingsError."""
    for name, value in FOR_ME.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise SettingsError("Ray is missing: pip install 'atomdiff[ray]'.") from None
    setup = "ray._private.authentication.authentication_token_setup"
    logging.getLogger(setup).addFilter(lambda record: "is enabled" not in record.getMessage())  # as it should
    here: dict[str, Any] = {} if address else {"include_dashboard": False}
    for left in reversed(range(1 if address else STARTS)):
        if ray.is_initialized():
            return
        try:
            ray.init(address or None, logging_level=logging.WARNING, **here)
        except Exception as error:  # Ray's own kinds, and plain ones
            ray.shutdown()
            if left and "timed out" in str(error):  # after 30 seconds, which a busy machine may need
                log.warning("Ray has not started in time: this machine is busy; it is started once more")
                continue
            what = f"The cluster {address!r} cannot be joined" if address else "Ray cannot be started here"
            raise SettingsError(f"{what} ({reason_of(error)}): see `ray status`.") from None


def deploy(
    load: Callable[[str], Any], batch: int, window: float, replicas: tuple[int, int], cpus: float, gpus: float
) -> Any:
    """Starts the replicas, between so many; the handle by which they are asked."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # which tells every step of its own

    class Replica:
        """Draws."""

        @serve.multiplexed(max_num_models_per_replica=1)
        async def drawer(self, base: str) -> Drawer:
            return await asyncio.to_thread(lambda: Drawer(load(base)))

        @serve.batch(max_batch_size=batch, batch_wait_timeout_s=window)
        async def drawn(self, wanted: list[Wanted]) -> list[Any]:
            together: dict[Any, list[int]] = {}
            for i, one in enumerate(wanted):
                together.setdefault(one.key, []).append(i)
            made: dict[int, Any] = {}
            for places in together.values():
                drawer = await self.drawer(wanted[places[0]].base)
                some = [wanted[i] for i in places]
                made |= zip(places, await asyncio.to_thread(drawer.draw, some, _unwatched), strict=True)
            return [made[i] for i in range(len(wanted))]

        async def __call__(self, wanted: Wanted) -> Any:
            return await self.drawn(wanted)

        async def info(self, base: str) -> tuple[BaseInfo, str]:
            """Of a base, and the precision in which concepts are trained on it."""
            loaded = (await self.drawer(base)).base
            return info_of(loaded), precision_of(loaded.dtype)

        async def process(self) -> int:
            return os.getpid()

    least, most = replicas
    scaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": 2 * batch}
    deployment: Any = serve.deployment(
        name="Replica",
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        max_ongoing_requests=4 * batch,
        autoscaling_config={**scaling, "upscale_delay_s": 5.0},
        graceful_shutdown_timeout_s=120,
    )(Replica)
    serve.start(proxy_location="Disabled")
    return serve.run(deployment.bind(), name=NAME, route_prefix=None)


def _unwatched(done: int, total: int) -> None: ...


class ClusterBatcher:
    """What `batcher.Batcher` is on one machine: takes requests, and hands each picture to the replicas."""

    def __init__(self, handle: Any, waiting: int, metrics: Metrics) -> None:
        self._handle, self._room, self._metrics = handle, waiting, metrics
        self._tickets: dict[Ticket, Any] = {}
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="atomdiff-cluster", daemon=True).start()

    def submit(self, owner: str, wanted: Sequence[Wanted]) -> Ticket:
        """Takes a request. Raises Busy if too much is under way."""
        ticket = Ticket(owner, wanted)
        with self._lock:
            under_way = sum(len(one.wanted) - len(one.made) for one in self._tickets)
            if under_way + len(wanted) > self._room:
                raise Busy(f"{under_way} pictures wait already: ask again in a few seconds.")
            self._tickets[ticket] = asyncio.run_coroutine_threadsafe(self._all(ticket), self._loop)
        self._metrics.waiting.set(under_way + len(wanted))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Nobody wants these pictures any more: those that wait are not drawn."""
        ticket.cancelled = True
        with self._lock:
            task = self._tickets.pop(ticket, None)
        if task is not None:
            task.cancel()
        ticket.finish(None if ticket.made else Interrupted(STOPPED))

    def of(self, owner: str) -> list[Ticket]:
        """The owner's requests that are not finished."""
        with self._lock:
            return [ticket for ticket in self._tickets if ticket.owner == owner]

    async def _all(self, ticket: Ticket) -> None:
        error: BaseException | None = None
        try:
            await asyncio.gather(*(self._one(ticket, i) for i in range(len(ticket.wanted))))
        except asyncio.CancelledError:
            error = Interrupted(STOPPED)
        except Exception as broken:
            error = broken
        with self._lock:
            self._tickets.pop(ticket, None)
        ticket.finish(error)

    async def _one(self, ticket: Ticket, number: int) -> None:
        """One picture, asked for again where its replica was lost."""
        from ray.exceptions import RayError

        one = ticket.wanted[number]
        for left in reversed(range(RETRIES)):
            answer = self._handle.options(multiplexed_model_id=one.base).remote(one)
            try:
                made: Image | AtomdiffError = await answer
                break
            except asyncio.CancelledError:
                answer.cancel()
                raise
            except RayError as error:
                if not left or _is_ours(error):
                    raise
                log.warning("a replica was lost; its picture is asked for again")
                await asyncio.sleep(1)
        if isinstance(made, AtomdiffError):
            raise made
        ticket.made[number], ticket.steps[number] = made, (1, 1)
        self._metrics.pictures.inc()


def _is_ours(error: BaseException) -> bool:
    """Whether our code in the replica raised it, so that another would too."""
    from ray.exceptions import RayTaskError

    return isinstance(error, RayTaskError)


class ClusterService(Service):
    """A service that draws and trains on a cluster that Ray is connected to, on several `bases`; a replica,
    and a training, has so many `cpus` and `gpus`."""

    def __init__(
        self,
        options: Options,
        bases: Sequence[str],
        replicas: tuple[int, int] = (1, 4),
        cpus: float = 1,
        gpus: float = 0,
    ) -> None:
        self._open(options)
        limits = self.limits
        self._handle = deploy(options.load, limits.batch or 8, limits.window, replicas, cpus, gpus)
        self._infos: dict[str, BaseInfo] = {}
        precision: dict[str, str] = {}
        for base in bases:  # under the name that it was asked by: that is what replicas load
            told, precision[base] = self._handle.options(multiplexed_model_id=base).info.remote(base).result()
            self._infos[base] = replace(told, name=base)
        self.batcher: Any = ClusterBatcher(self._handle, limits.waiting, self.metrics)
        self.trainings: Any = ClusterTrainings(
            options.out, self._infos, precision, limits.trainings, self._keep, cpus, gpus
        )
        self.trainings.take_up_all()

    def info(self, base: str = "") -> BaseInfo:
        """What is known of a base, by default of the first. Raises SettingsError for one that is not
        served."""
        known = Served(self._infos)
        known.check(base or self.models()[0])
        return known.info(base or self.models()[0])

    def models(self) -> list[str]:
        """The names of the bases that can be asked for."""
        return list(self._infos)

    def measure(self) -> bytes:
        """The metrics."""
        return self._text()

    def close(self) -> None:
        """Stops trainings, which go on at the next start, and ends the replicas."""
        from ray import serve

        self.trainings.jobs.close()
        serve.delete(NAME)
