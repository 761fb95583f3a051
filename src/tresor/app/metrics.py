"""Counters for Prometheus, summed over all worker processes (docs/operations/metrics.md).

Labels are routes and outcomes from closed lists; nothing a caller sent ever becomes one.
"""

from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

__all__ = ["METRICS_CONTENT_TYPE", "Metrics", "collect"]

METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What one worker process counts."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._responses = Counter(
            "tresor_responses", "Responses by endpoint and status", ("endpoint", "status"), registry=registry
        )
        self._exchanges = Counter(
            "tresor_exchanges", "Exchanges by serving route and outcome", ("route", "outcome"), registry=registry
        )
        self._attempts = Counter(
            "tresor_upstream_attempts", "Tries by route and reason of failure", ("route", "reason"), registry=registry
        )
        self._tokens = Counter("tresor_tokens", "Tokens by route and kind", ("route", "kind"), registry=registry)
        self._group_size = Histogram(
            "tresor_receipt_group_size",
            "Receipts made durable by one flush",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=registry,
        )
        self._group_seconds = Histogram(
            "tresor_receipt_flush_seconds",
            "Time to sign and flush one group",
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
            registry=registry,
        )
        # `labels` locks and looks up at every call; the counters of this process are few and never go away.
        self._children: dict[tuple[Counter, str, str], Counter] = {}

    def response(self, endpoint: str, status: int) -> None:
        """Count a response."""
        self._child(self._responses, endpoint, str(status)).inc()

    def exchange(self, route: str, outcome: str) -> None:
        """Count an exchange that ended."""
        self._child(self._exchanges, route, outcome).inc()

    def attempt(self, route: str, reason: str | None) -> None:
        """Count a try; `reason` is None for the one that served."""
        self._child(self._attempts, route, reason or "served").inc()

    def tokens(self, route: str, prompt: int | None, completion: int | None) -> None:
        """Count tokens an upstream reported."""
        if prompt:
            self._child(self._tokens, route, "prompt").inc(prompt)
        if completion:
            self._child(self._tokens, route, "completion").inc(completion)

    def receipt_group(self, size: int, seconds: float) -> None:
        """Note a group of receipts that became durable."""
        self._group_size.observe(size)
        self._group_seconds.observe(seconds)

    def _child(self, counter: Counter, first: str, second: str) -> Counter:
        child = self._children.get((counter, first, second))
        if child is None:
            child = self._children[counter, first, second] = counter.labels(first, second)
        return child


def collect(folder: Path) -> bytes:
    """Return the counters of all processes, living and dead, in Prometheus' text format."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    return generate_latest(registry)
