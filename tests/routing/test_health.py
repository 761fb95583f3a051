"""The circuit breaker: its table, its times, which outcomes count, and the latency it tells."""

from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tresor.errors import AttemptReason
from tresor.routing.health import (
    _NEXT,
    BreakerPolicy,
    BreakerState,
    UpstreamHealth,
    Verdict,
    _Event,
    judge,
    parse_retry_after,
)

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
POLICY = BreakerPolicy()


def failing(health: UpstreamHealth, now: float, times: int = 1) -> None:
    for _ in range(times):
        health.record_failure(now, "connect_failed")


def opened(now: float = 0.0) -> UpstreamHealth:
    health = UpstreamHealth()
    failing(health, now, POLICY.failures_in_a_row)
    assert health.state(now) is OPEN
    return health


# What counts.

VERDICTS: dict[AttemptReason, Verdict] = {
    "connect_failed": "fails",
    "tls_failed": "fails",
    "attestation_failed": "nothing",
    "pin_mismatch": "fails",
    "timeout": "fails",
    "upstream_status": "fails",
    "upstream_rejected": "works",
    "invalid_response": "fails",
    "stream_broken": "fails",
    "connection_lost": "fails",
    "overloaded": "nothing",
    "caller_gone": "nothing",
    "router_stopped": "nothing",
}


def test_every_reason_has_a_verdict() -> None:
    assert {reason: judge(reason) for reason in get_args(AttemptReason)} == VERDICTS


@pytest.mark.parametrize("status", [301, 401, 403, 408, 429, 500, 502, 503, 504, 529])
def test_a_status_of_the_upstreams_own_fault_counts(status: int) -> None:
    assert judge("upstream_status", status=status) == "fails"


def test_a_model_that_is_not_there_says_nothing_against_the_upstream() -> None:
    assert judge("upstream_status", status=404) == "works"


def test_a_caller_in_a_hurry_proves_nothing() -> None:
    assert judge("timeout", hurried=True) == "nothing"
    assert judge("connect_failed", hurried=True) == "fails"
    health = UpstreamHealth()
    for _ in range(100):
        health.record_failure(0.0, "timeout", hurried=True)
    assert health.state(0.0) is CLOSED


# Opening.


def test_failures_in_a_row_open_it() -> None:
    health = UpstreamHealth()
    failing(health, 0.0, POLICY.failures_in_a_row - 1)
    assert health.available(0.0)
    failing(health, 0.0)
    assert not health.available(0.0)
    assert not health.admit(0.0)


@pytest.mark.parametrize("reason", ["upstream_rejected", None])
def test_an_answer_between_them_begins_anew(reason: AttemptReason | None) -> None:
    health = UpstreamHealth()
    for _ in range(2):
        failing(health, 0.0, POLICY.failures_in_a_row - 1)
        if reason is None:
            health.record_success(0.0)
        else:
            health.record_failure(0.0, reason, status=400)
    assert health.state(0.0) is CLOSED


def test_a_share_of_failures_opens_it() -> None:
    health = UpstreamHealth()
    for n in range(POLICY.window):
        assert health.state(n) is CLOSED
        if n % 2:
            health.record_failure(n, "stream_broken")
        else:
            health.record_success(n)
    assert health.state(POLICY.window - 1) is OPEN


def test_a_smaller_share_does_not() -> None:
    health = UpstreamHealth()
    for n in range(600):
        if n % 3 == 0:
            failing(health, n)
        else:
            health.record_success(n)
        assert health.state(n) is CLOSED


# Rest and probes.


def test_one_probe_goes_when_the_rest_is_over() -> None:
    health = opened()
    assert not health.available(0.99)
    assert health.available(1.0)
    assert health.available(1.0)  # asking takes nothing
    assert health.state(1.0) is HALF_OPEN
    assert [health.admit(1.0) for _ in range(3)] == [True, False, False]
    assert not health.available(1.0)
    health.record_success(1.5)
    assert (health.state(1.5), health.admit(1.5)) == (CLOSED, True)


def test_a_probe_that_fails_doubles_the_rest_up_to_a_bound() -> None:
    health, now, rests = opened(), 0.0, []
    for _ in range(9):
        began = now
        while not health.admit(now):
            now += 0.25
        rests.append(now - began)
        failing(health, now)
        assert health.state(now) is OPEN
    assert rests == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_the_rest_is_short_again_after_it_has_worked_for_as_long() -> None:
    health = opened()
    assert health.admit(1.0)
    failing(health, 1.0)  # rests until 3
    assert health.admit(3.0)
    health.record_success(3.0)
    failing(health, 3.1, POLICY.failures_in_a_row)  # at once again: until 7.1
    assert not health.admit(7.0)
    assert health.admit(7.1)
    health.record_success(7.1)
    health.record_success(11.1)
    failing(health, 11.2, POLICY.failures_in_a_row)
    assert not health.admit(12.1)
    assert health.admit(12.2)


@pytest.mark.parametrize("reason", ["caller_gone", "router_stopped", "overloaded"])
def test_a_probe_that_ended_from_our_side_leaves_its_place(reason: AttemptReason) -> None:
    health = opened()
    assert health.admit(1.0)
    health.record_failure(1.1, reason)
    assert [health.admit(1.1), health.admit(1.1)] == [True, False]


def test_a_probe_that_never_ends_is_taken_for_lost() -> None:
    health = opened()
    assert health.admit(1.0)
    assert not health.admit(1.0 + POLICY.probe_s - 0.1)
    assert health.admit(1.0 + POLICY.probe_s)


def test_what_began_before_the_rest_does_not_end_it() -> None:
    health = opened()
    health.record_success(0.5)
    failing(health, 0.5, 50)
    assert health.state(0.9) is OPEN
    assert health.admit(1.0)


def test_old_failures_do_not_count_after_a_rest() -> None:
    health = opened()
    assert health.admit(1.0)
    health.record_success(1.0)
    failing(health, 1.0, POLICY.failures_in_a_row - 1)
    assert health.state(1.0) is CLOSED


# A pause that is asked for.


@pytest.mark.parametrize("status", [429, 503])
def test_a_pause_is_kept(status: int) -> None:
    health = UpstreamHealth()
    health.record_failure(0.0, "upstream_status", status=status, retry_after_s=7.0)
    health.record_success(1.0)  # one that was under way
    assert not health.admit(6.9)
    assert health.admit(7.0)


def test_a_pause_is_bounded_and_never_shortens_a_rest() -> None:
    health = UpstreamHealth()
    health.record_failure(0.0, "upstream_status", status=429, retry_after_s=1e9)
    health.record_failure(1.0, "upstream_status", status=429, retry_after_s=1.0)
    assert not health.admit(POLICY.max_pause_s - 0.1)
    assert health.admit(POLICY.max_pause_s)


def test_other_statuses_cannot_ask_for_a_pause() -> None:
    health = UpstreamHealth()
    health.record_failure(0.0, "upstream_status", status=500, retry_after_s=60.0)
    health.record_failure(0.0, "upstream_status", status=429, retry_after_s=0.0)
    assert health.state(0.0) is CLOSED


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (None, None),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("1e3", None),
        (" 1", None),
        ("1\n", None),
        ("٣", None),
        ("9" * 10, None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value) == seconds


# Latency.


def test_latency_is_told_in_steps() -> None:
    health = UpstreamHealth()
    assert health.latency_s(0.0) is None
    health.record_success(0.0)
    assert health.latency_s(0.0) is None
    health.record_success(0.0, 0.2)
    assert health.latency_s(0.0) == 0.2
    for _ in range(50):
        health.record_success(0.0, 0.28)
        assert health.latency_s(0.0) == 0.2
    told = []
    for _ in range(50):
        health.record_success(0.0, 2.0)
        told.append(health.latency_s(0.0))
    assert len(set(told)) < 8
    assert told[-1] == pytest.approx(2.0, rel=0.5)


def test_one_slow_answer_says_little() -> None:
    health = UpstreamHealth()
    for _ in range(10):
        health.record_success(0.0, 0.2)
    health.record_success(0.0, 0.6)
    assert health.latency_s(0.0) == 0.2


def test_old_latency_is_forgotten() -> None:
    health = UpstreamHealth()
    health.record_success(0.0, 5.0)
    assert health.latency_s(599.0) == 5.0
    assert health.latency_s(600.0) is None
    health.record_success(601.0, 1.0)
    assert health.latency_s(601.0) == 1.0


@given(samples=st.lists(st.floats(0, 1e6), min_size=1))
def test_what_is_told_lies_among_what_was_measured(samples: list[float]) -> None:
    health = UpstreamHealth()
    for sample in samples:
        health.record_success(0.0, sample)
    told = health.latency_s(0.0)
    assert told is not None
    assert min(samples) <= told * (1 + 1e-9)
    assert told <= max(samples) * (1 + 1e-9)


# The table, and any sequence of outcomes.


def test_the_table_names_every_pair_that_can_occur() -> None:
    impossible = {
        (CLOSED, _Event.COOLED),  # there is nothing to cool down
        (HALF_OPEN, _Event.COOLED),
        (HALF_OPEN, _Event.FAILED),  # one failure is one too many
        (OPEN, _Event.TRIPPED),  # it rests already
    }
    assert set(product(BreakerState, _Event)) - set(_NEXT) == impossible


class AnyOutcomes(RuleBasedStateMachine):
    """Whatever comes, one probe goes at a time, and no rest is longer than it may be."""

    def __init__(self) -> None:
        super().__init__()
        self.health = UpstreamHealth()
        self.now = 0.0
        self.failed_ever = False
        self.probes: list[float] = []

    @rule(quarters=st.integers(1, 400))  # times that floats add exactly
    def wait(self, quarters: int) -> None:
        self.now += quarters / 4

    @rule(latency_s=st.none() | st.floats(0, 10))
    def succeed(self, latency_s: float | None) -> None:
        self.health.record_success(self.now, latency_s)
        self.probes.clear()

    @rule(
        reason=st.sampled_from(get_args(AttemptReason)),
        status=st.sampled_from([None, 404, 429, 500, 503]),
        retry_after_s=st.none() | st.integers(0, 10_000).map(float),
        hurried=st.booleans(),
    )
    def fail(self, reason: AttemptReason, status: int | None, retry_after_s: float | None, hurried: bool) -> None:
        self.health.record_failure(self.now, reason, status=status, retry_after_s=retry_after_s, hurried=hurried)
        self.probes.clear()
        self.failed_ever |= judge(reason, status=status, hurried=hurried) == "fails"

    @rule()
    def ask(self) -> None:
        before = self.health.available(self.now)
        half_open = self.health.state(self.now) is HALF_OPEN
        assert self.health.admit(self.now) == before
        if half_open and before:
            assert all(self.now - since >= POLICY.probe_s for since in self.probes)
            self.probes.append(self.now)

    @invariant()
    def open_while_it_rests(self) -> None:
        assert (self.health.state(self.now) is OPEN) == (self.now < self.health._rest_until)
        assert self.health._rest_until - self.now <= POLICY.max_pause_s

    @invariant()
    def closed_while_nothing_fails(self) -> None:
        assert self.failed_ever or self.health.state(self.now) is CLOSED


TestAnyOutcomes = AnyOutcomes.TestCase
