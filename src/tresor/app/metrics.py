"""Counters for Prometheus, summed over all worker processes (docs/operations/metrics.md).

Labels are routes and outcomes from closed lists; nothing a caller sent ever becomes one.
"""

from collections import defaultdict
from pathlib import Path
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from tresor.routing.view import AttestationState

__all__ = ["METRICS_CONTENT_TYPE", "Metrics", "collect", "forget"]

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
        self._channels = Gauge(
            "tresor_upstream_channels",
            "Worker processes by upstream and state of its channel",
            ("upstream", "state"),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._bound = Gauge(
            "tresor_keys_bound",
            "Worker processes whose signing key evidence binds now",
            registry=registry,
            multiprocess_mode="livesum",
        )
        # Added up here and handed on once a second by `flush`: a counter shared with other processes locks at every
        # call.
        self._pending: dict[tuple[Counter, str, str], int] = defaultdict(int)

    def response(self, endpoint: str, status: int) -> None:
        """Count a response."""
        self._pending[self._responses, endpoint, str(status)] += 1

    def exchange(self, route: str, outcome: str) -> None:
        """Count an exchange that ended."""
        self._pending[self._exchanges, route, outcome] += 1

    def attempt(self, route: str, reason: str | None) -> None:
        """Count a try; `reason` is None for the one that served."""
        self._pending[self._attempts, route, reason or "served"] += 1

    def tokens(self, route: str, prompt: int | None, completion: int | None) -> None:
        """Count tokens an upstream reported."""
        if prompt:
            self._pending[self._tokens, route, "prompt"] += prompt
        if completion:
            self._pending[self._tokens, route, "completion"] += completion

    def channel(self, upstream: str, state: str) -> None:
        """Note where the channel to an upstream stands."""
        for name in get_args(AttestationState):
            self._channels.labels(upstream, name).set(name == state)

    def bound(self, *, now: bool) -> None:
        """Note whether evidence binds the signing key."""
        self._bound.set(now)

    def receipt_group(self, size: int, seconds: float) -> None:
        """Note a group of receipts that became durable."""
        self._group_size.observe(size)
        self._group_seconds.observe(seconds)

    def flush(self) -> None:
        """Hand on what was counted since the last time."""
        for (counter, first, second), amount in self._pending.items():
            counter.labels(first, second).inc(amount)
        self._pending.clear()


def forget(folder: Path, pid: int) -> None:
    """Drop what a process that has ended said of its present state; its counters stay."""
    mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]  # the library types it not


def collect(folder: Path) -> bytes:
    """Return the counters of all processes, living and dead, in Prometheus' text format."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]  # the library types it not
    return generate_latest(registry)
