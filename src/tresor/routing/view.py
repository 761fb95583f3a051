"""What routing knows of an upstream at one instant."""

from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["AttestationState", "UpstreamView", "Views"]

AttestationState = Literal["unverified", "verified", "refused"]


class Views(Protocol):
    """The upstreams by their position in the settings."""

    def __getitem__(self, position: int, /) -> "UpstreamView":
        """Return what is known of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamView:
    """One upstream as this worker process sees it now.

    Attributes:
        available: whether its circuit breaker would let a request through (`UpstreamHealth.available`).
        attested: whether the operator demands evidence of it, that is `attestation` is not `none`.
        attestation: state of its channel; an upstream of which no evidence is demanded stays `unverified`.
        claims: names of the claims that are proven; empty unless `verified`.
        fresh_until: instant until which the evidence counts, on the clock of the plan's `now`, in seconds.
        latency_s: typical time to the first content of a stream; None where it is not known.
        weight: the operator's, above 0.
        in_flight: requests that are being served by it.
        limit: most requests it may serve at one time; 0 for no limit.
    """

    available: bool = True
    attested: bool = False
    attestation: AttestationState = "unverified"
    claims: frozenset[str] = frozenset()
    fresh_until: float = 0.0
    latency_s: float | None = None
    weight: float = 1.0
    in_flight: int = 0
    limit: int = 0

    def is_fresh(self, now: float) -> bool:
        """Return whether its evidence is verified and still counts."""
        return self.attestation == "verified" and now < self.fresh_until

    def may_prove(self, claims: frozenset[str], now: float) -> bool:
        """Return whether `claims` are proven, or can still turn out to be before a prompt leaves.

        A channel without fresh evidence verifies before it is used, so what it proves is not known yet; whoever uses it
        owes the check of `claims` after that.  Nothing is ever proven of an upstream of which no evidence is demanded.
        """
        if not self.attested or self.attestation == "refused":
            return False
        return claims <= self.claims if now < self.fresh_until else True
