"""What a server counts, for Prometheus."""

from __future__ import annotations

import time
from typing import Any


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        to: dict[str, Any] = {"registry": self.registry}
        seconds = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
        self.requests = Counter("atomdiff_requests", "Requests answered", ["route", "status"], **to)
        self.latency = Histogram(
            "atomdiff_request_seconds", "From request to answer", ["route"], buckets=seconds, **to
        )
        self.pictures = Counter("atomdiff_pictures", "Pictures drawn", **to)
        sizes = (1, 2, 4, 8, 16, 32, 64)
        self.batches = Histogram("atomdiff_batch_pictures", "Pictures in a batch", buckets=sizes, **to)
        self.drawing = Histogram("atomdiff_batch_seconds", "Seconds of a batch", buckets=seconds, **to)
        self.waiting = Gauge("atomdiff_waiting_pictures", "Pictures that wait", **to)
        self.held = Gauge("atomdiff_held_concepts", "Concepts held ready", **to)
        self.held_bytes = Gauge("atomdiff_held_bytes", "Bytes of the concepts held ready", **to)
        self.trainings = Gauge("atomdiff_trainings", "Trainings", ["state"], **to)

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class Counted:
    """ASGI middleware that counts requests by route (not by path: anyone can make those up) and status."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self.app, self._metrics = app, metrics

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 499  # the client left

        async def told(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, told)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.latency.labels(route).observe(time.monotonic() - began)
