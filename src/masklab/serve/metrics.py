"""Figures of a running server in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts of requests, objects and times; ``waiting`` and ``kept`` say what there is at the moment."""

    def __init__(self, waiting: Callable[[], float], kept: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("masklab_requests", "Requests answered.", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "masklab_request_seconds", "Time to answer.", ["path"], buckets=_SECONDS, registry=self.registry
        )
        self.objects = Counter("masklab_objects", "Objects answered.", registry=self.registry)
        self.pixels = Counter("masklab_pixels", "Pixels of the images that were predicted.", registry=self.registry)
        Gauge("masklab_jobs", "Images that wait or are predicted.", registry=self.registry).set_function(waiting)
        Gauge("masklab_results_kept", "Results kept for the page.", registry=self.registry).set_function(kept)

    def text(self) -> bytes:
        """All figures."""
        return generate_latest(self.registry)
