"""What the service counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """One service's numbers, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.seconds = Histogram(
            "haq_request_seconds", "From a request's arrival to its answer.", buckets=_SECONDS, registry=self.registry
        )
        self.requests = Counter("haq_requests", "Requests by status.", ["status"], registry=self.registry)
        self.answers = Counter(
            "haq_answers", "Samples by the member that answered.", ["member"], registry=self.registry
        )
        self.queue = Gauge("haq_queue", "Requests that wait.", registry=self.registry)
        self.drift = Gauge("haq_drift_psi", "Largest population stability index, last window.", registry=self.registry)
        self.threshold = Gauge("haq_drift_threshold", "From which it counts as drift.", registry=self.registry)
        self.version = Gauge("haq_version", "Number of the ranges in use.", registry=self.registry)
        self.calibrations = Counter(
            "haq_calibrations", "Calibrations by what became of them.", ["outcome"], registry=self.registry
        )
        self.reservoir = Gauge("haq_reservoir_bytes", "Inputs kept to calibrate from.", registry=self.registry)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
