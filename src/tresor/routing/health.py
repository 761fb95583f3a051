"""Whether an upstream works, as one worker process has seen it: circuit breaker and latency.

No clock and no I/O: `now` is an argument everywhere, in seconds of one clock that never goes back.

A breaker is `closed` while the upstream works.  It opens after several failures in a row or many among the latest
outcomes, or because the upstream asked for a pause.  While it is `open` the upstream rests.  After a
cool-down, which doubles with every time up to a bound, it is `half_open`: one request may find out how things are.
Implements docs/spec/http-api.md section 4.7.
"""

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Literal

from tresor.errors import AttemptReason

__all__ = ["BreakerPolicy", "BreakerState", "UpstreamHealth", "Verdict", "judge", "parse_retry_after"]


class BreakerState(Enum):
    """Where a circuit breaker stands."""

    CLOSED = auto()
    OPEN = auto()
    HALF_OPEN = auto()


class _Event(Enum):
    SUCCEEDED = auto()
    FAILED = auto()
    TRIPPED = auto()  # a failure that is one too many
    PAUSED = auto()  # a failure with which the upstream asks for a pause
    COOLED = auto()


_NEXT: Final = {
    (BreakerState.CLOSED, _Event.SUCCEEDED): BreakerState.CLOSED,
    (BreakerState.CLOSED, _Event.FAILED): BreakerState.CLOSED,
    (BreakerState.CLOSED, _Event.TRIPPED): BreakerState.OPEN,
    (BreakerState.CLOSED, _Event.PAUSED): BreakerState.OPEN,
    # While it is open, only what began before can end: it says how things were, and neither ends the rest nor adds to
    # it.  A pause that is asked for is kept in every state.
    (BreakerState.OPEN, _Event.SUCCEEDED): BreakerState.OPEN,
    (BreakerState.OPEN, _Event.FAILED): BreakerState.OPEN,
    (BreakerState.OPEN, _Event.PAUSED): BreakerState.OPEN,
    (BreakerState.OPEN, _Event.COOLED): BreakerState.HALF_OPEN,
    (BreakerState.HALF_OPEN, _Event.SUCCEEDED): BreakerState.CLOSED,
    (BreakerState.HALF_OPEN, _Event.TRIPPED): BreakerState.OPEN,
    (BreakerState.HALF_OPEN, _Event.PAUSED): BreakerState.OPEN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When a breaker opens and for how long.  Counts are outcomes, times seconds.

    Attributes:
        failures_in_a_row: open it.
        window: latest outcomes that are remembered.
        failures_in_window: among these, open it.
        first_rest_s: of the first cool-down; each further one is twice as long.
        max_rest_s: of any.
        max_pause_s: of what an upstream may ask for.
        probe_s: time after which a probe that has not ended is taken for lost, and another may go.
        latency_share: of the newest sample in the average.
        latency_tolerance: factor by which the average must leave the latency that is told until another is.
        latency_kept_s: age at which the last sample says nothing any more.
    """

    failures_in_a_row: int = 5
    window: int = 20
    failures_in_window: int = 10
    first_rest_s: float = 1.0
    max_rest_s: float = 60.0
    max_pause_s: float = 300.0
    probe_s: float = 30.0
    latency_share: float = 0.2
    latency_tolerance: float = 1.5
    latency_kept_s: float = 600.0


_DEFAULT: Final = BreakerPolicy()

Verdict = Literal["works", "fails", "nothing"]

_REFUSES_THE_REQUEST: Final[frozenset[AttemptReason]] = frozenset({"upstream_rejected"})
_OURS: Final[frozenset[AttemptReason]] = frozenset({"caller_gone", "router_stopped", "overloaded"})
# Whose upstream is refused anyway while its evidence is (`UpstreamView.attestation`).  What is left are callers that
# demand more than it proves, or gave it no time to: they must not have it rest for all others.
_OF_THE_CHANNEL: Final[frozenset[AttemptReason]] = frozenset({"attestation_failed"})
_NOT_FOUND: Final = 404
_MAY_ASK_FOR_A_PAUSE: Final = frozenset({429, 503})  # RFC 6585, section 4; RFC 9110, section 15.6.4
_SECONDS: Final = re.compile(r"[0-9]{1,9}\Z")


def judge(reason: AttemptReason, *, status: int | None = None, hurried: bool = False) -> Verdict:
    """Say what the end of an attempt tells about its upstream.

    Args:
        reason: why the attempt did not serve.
        status: the upstream's HTTP status, where it sent one.
        hurried: whether the caller gave less time than the router gives by default.  Otherwise one caller with a budget
            of a millisecond could have the upstream rest for all others.

    Returns:
        `works` where an upstream answered as it should, although not what was wished: it refused the request, or does
        not know this one model.  `nothing` where the end came from our side, or its attested channel knows better.
    """
    if reason in _OURS | _OF_THE_CHANNEL or (reason == "timeout" and hurried):
        return "nothing"
    if reason in _REFUSES_THE_REQUEST or (reason == "upstream_status" and status == _NOT_FOUND):
        return "works"
    return "fails"


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds of a `Retry-After` header; None where it is absent or anything else, a date included."""
    return float(value) if value is not None and _SECONDS.match(value) else None


class UpstreamHealth:
    """What the outcomes of one upstream add up to.

    Whoever tries the upstream calls `admit` before, and `record_success` or `record_failure` whenever the outcome is
    known; of a stream that breaks behind its first content, both.

    Args:
        policy: when to rest and for how long.
    """

    __slots__ = (
        "_history",
        "_in_a_row",
        "_latency_at",
        "_latency_average_s",
        "_latency_told_s",
        "_policy",
        "_probe_until",
        "_rest_s",
        "_rest_until",
        "_state",
    )

    def __init__(self, policy: BreakerPolicy = _DEFAULT) -> None:
        self._policy = policy
        self._state = BreakerState.CLOSED
        self._in_a_row = 0
        self._history = 0  # one bit per outcome, set where it failed, the latest lowest
        self._rest_s = 0.0
        self._rest_until = 0.0
        self._probe_until = 0.0
        self._latency_average_s = 0.0
        self._latency_told_s: float | None = None
        self._latency_at = 0.0

    def __repr__(self) -> str:
        return f"<UpstreamHealth {self._state.name} failures={self._in_a_row} rest_s={self._rest_s}>"

    def state(self, now: float) -> BreakerState:
        """Return where the breaker stands at `now`."""
        if self._state is BreakerState.OPEN and now >= self._rest_until:
            self._move(_Event.COOLED)
            self._probe_until = now
        return self._state

    def available(self, now: float) -> bool:
        """Return whether `admit` would let a request through; changes nothing that another call could notice."""
        if self._state is BreakerState.CLOSED:
            return True
        return self.state(now) is BreakerState.HALF_OPEN and now >= self._probe_until

    def admit(self, now: float) -> bool:
        """Ask whether a request may go to the upstream; if the breaker is half open, that request is the probe."""
        if self._state is BreakerState.CLOSED:
            return True
        if not self.available(now):
            return False
        self._probe_until = now + self._policy.probe_s
        return True

    def latency_s(self, now: float) -> float | None:
        """Return the typical time to the first content of a stream; None where it is not known, or not any more.

        The value stays the same until the average has left it by a factor, so that a plan made from it is stable.
        """
        return self._latency_told_s if now - self._latency_at < self._policy.latency_kept_s else None

    def record_success(self, now: float, latency_s: float | None = None) -> None:
        """Take note that the upstream has answered.

        Args:
            now: when; of a stream, when its first content came.
            latency_s: seconds from the request to the first content of a stream.  Of other answers None: how long they
                take says more about the request than about the upstream.
        """
        if self.state(now) is BreakerState.CLOSED:
            self._in_a_row = 0
            if self._history:
                self._note(failed=False)
            if now >= self._rest_until + self._rest_s:  # it has worked for as long as it rested the last time
                self._rest_s = 0.0
        self._move(_Event.SUCCEEDED)
        if latency_s is not None:
            self._note_latency(now, latency_s)

    def record_failure(
        self,
        now: float,
        reason: AttemptReason,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        hurried: bool = False,
    ) -> None:
        """Take note that an attempt ended otherwise, for whatever reason; `judge` says what that means.

        Args:
            now: when.
            reason: the attempt's.
            status: the upstream's HTTP status, where it sent one.
            retry_after_s: the pause that it asks for with 429 or 503 (`parse_retry_after`).
            hurried: as of `judge`.
        """
        state = self.state(now)
        verdict = judge(reason, status=status, hurried=hurried)
        if verdict == "works":
            self.record_success(now)
        elif verdict == "nothing":
            self._probe_until = now  # if this was the probe, another may go
        elif retry_after_s and status in _MAY_ASK_FOR_A_PAUSE:
            pause_s = min(retry_after_s, self._policy.max_pause_s)
            self._rest_until = max(self._rest_until, now + pause_s)
            self._forget_outcomes()
            self._move(_Event.PAUSED)
        elif state is BreakerState.HALF_OPEN:
            self._rest(now)
        elif state is BreakerState.OPEN:
            self._move(_Event.FAILED)
        else:
            self._in_a_row += 1
            self._note(failed=True)
            if self._is_one_too_many():
                self._rest(now)
            else:
                self._move(_Event.FAILED)

    def _is_one_too_many(self) -> bool:
        policy = self._policy
        return self._in_a_row >= policy.failures_in_a_row or self._history.bit_count() >= policy.failures_in_window

    def _rest(self, now: float) -> None:
        policy = self._policy
        self._rest_s = min(max(policy.first_rest_s, 2 * self._rest_s), policy.max_rest_s)
        self._rest_until = now + self._rest_s
        self._forget_outcomes()
        self._move(_Event.TRIPPED)

    def _note(self, *, failed: bool) -> None:
        self._history = (self._history << 1 | failed) & ((1 << self._policy.window) - 1)

    def _forget_outcomes(self) -> None:
        self._in_a_row = self._history = 0

    def _note_latency(self, now: float, latency_s: float) -> None:
        told_s = self.latency_s(now)
        self._latency_at = now
        if told_s is None:
            self._latency_average_s = self._latency_told_s = latency_s
            return
        self._latency_average_s += self._policy.latency_share * (latency_s - self._latency_average_s)
        tolerance = self._policy.latency_tolerance
        if not told_s / tolerance <= self._latency_average_s <= told_s * tolerance:
            self._latency_told_s = self._latency_average_s

    def _move(self, event: _Event) -> None:
        self._state = _NEXT[self._state, event]
