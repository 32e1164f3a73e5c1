"""What is counted while serving, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

TEXT = CONTENT_TYPE_LATEST
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Gauges:
    """Of one service; `raysurl_…`, and `process_…` of the process that listens."""

    def __init__(self, queue: int) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "raysurl_requests", "Requests answered", ("endpoint", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "raysurl_request_seconds",
            "From the head of a request to its answer, of those that reached the model",
            ("endpoint",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram(
            "raysurl_batch_size",
            "Images that went through a network together",
            buckets=BATCHES,
            registry=self.registry,
        )
        self.waiting = Gauge(
            "raysurl_queue", "Requests that are being read or wait for an answer", registry=self.registry
        )
        Gauge("raysurl_queue_limit", "The most of these at once", registry=self.registry).set(queue)
        self.resident = Gauge(
            "raysurl_replica_resident_bytes", "Memory of a replica", ("replica",), registry=self.registry
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)
