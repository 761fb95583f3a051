"""Rate limits: exact over all processes, by the clock that is given; and without a store each process for itself."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tresor.accounts.rate_limits import Allowance, RateLimiter
from tresor.errors import StoreUnavailableError
from tresor.settings.model import Plan
from tresor.store.base import ApiKey
from tresor.store.sqlite.store import SqliteStore

DAY_S = 86_400
MIDNIGHT = 20_000 * DAY_S


class CountingStore(SqliteStore):
    """A store that counts what is taken from it and can be down."""

    down = False
    calls = 0

    def take_permits(self, customer_id: int, window: int, *, wanted: int, limit: int, now: int) -> tuple[int, int]:
        self.calls += 1
        if self.down:
            raise StoreUnavailableError("down")
        return super().take_permits(customer_id, window, wanted=wanted, limit=limit, now=now)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CountingStore]:
    made = CountingStore(tmp_path / "tresor.db")
    yield made
    made.close()


class Clock:
    def __init__(self, now: float = MIDNIGHT) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def key(plan: str = "default", customer_id: int = 1) -> ApiKey:
    return ApiKey("key_1", customer_id, "acme", plan, b"", "", 0, None, frozenset())


def limiter(store: CountingStore, clock: Clock, *, minute: int = 1000, day: int = 100_000) -> RateLimiter:
    plans = {"default": Plan(requests_per_minute=minute, requests_per_day=day)}
    return RateLimiter(store, plans, clock=clock)


def take(limiter: RateLimiter, count: int = 1, wanted: ApiKey | None = None) -> list[Allowance]:
    """Take as many at once."""

    async def scenario() -> list[Allowance]:
        return await asyncio.gather(*(limiter.take(wanted or key()) for _ in range(count)))

    return asyncio.run(scenario())


def granted(answers: list[Allowance]) -> int:
    return sum(answer.retry_after_s is None for answer in answers)


def test_a_minute_has_so_many_and_begins_anew(store: CountingStore) -> None:
    clock = Clock(MIDNIGHT + 30.7)
    limited = limiter(store, clock, minute=3)
    answers = [take(limited)[0] for _ in range(5)]
    assert answers == [
        Allowance(3, 2),
        Allowance(3, 1),
        Allowance(3, 0),
        Allowance(3, 0, retry_after_s=30),
        Allowance(3, 0, retry_after_s=30),
    ]
    clock.now = MIDNIGHT + 59.9
    assert take(limited) == [Allowance(3, 0, retry_after_s=1)]
    clock.now = MIDNIGHT + 60
    assert take(limited) == [Allowance(3, 2)]


def test_a_day_has_so_many_whatever_the_minute_has(store: CountingStore) -> None:
    clock = Clock(MIDNIGHT + DAY_S - 100)
    limited = limiter(store, clock, minute=3, day=5)
    assert granted(take(limited, 10)) == 3
    clock.now += 60
    answers = [take(limited)[0] for _ in range(4)]
    assert answers[:2] == [Allowance(5, 1), Allowance(5, 0)]
    assert answers[2:] == [Allowance(5, 0, retry_after_s=40)] * 2
    clock.now += 40
    assert take(limited) == [Allowance(3, 2)]


def test_a_refusal_by_the_day_costs_no_permit_of_the_minute(store: CountingStore) -> None:
    clock = Clock(MIDNIGHT)
    limited = limiter(store, clock, minute=4, day=2)
    assert granted(take(limited, 50)) == 2
    lot = limited._lots[1, 60]
    assert lot.held + lot.left_in_store == 2


@pytest.mark.parametrize(
    ("minute", "day", "said"),
    [(5, 100, Allowance(5, 4)), (100, 5, Allowance(5, 4)), (5, 5, Allowance(5, 4)), (300, 1000, Allowance(300, 299))],
)
def test_the_window_of_which_fewer_are_left_is_named(
    store: CountingStore, minute: int, day: int, said: Allowance
) -> None:
    assert take(limiter(store, Clock(), minute=minute, day=day)) == [said]


@pytest.mark.parametrize("limit", [1, 7, 99, 100, 101, 250])
def test_two_processes_together_hand_out_the_limit_and_no_more(store: CountingStore, limit: int) -> None:
    clock = Clock()
    one, other = limiter(store, clock, minute=limit), limiter(store, clock, minute=limit)

    async def scenario() -> list[Allowance]:
        return await asyncio.gather(*((one, other)[n % 2].take(key()) for n in range(2 * limit + 20)))

    assert granted(asyncio.run(scenario())) == limit
    assert granted(take(one, 3) + take(other, 3)) == 0


@given(
    limit=st.integers(1, 400),
    turns=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40), st.sampled_from([0, 0, 0, 20])), max_size=20),
)
@settings(deadline=None, max_examples=12)
def test_no_window_hands_out_more_than_its_limit(
    tmp_path_factory: pytest.TempPathFactory, limit: int, turns: list[tuple[int, int, int]]
) -> None:
    store = CountingStore(tmp_path_factory.mktemp("store") / "tresor.db")
    clock = Clock()
    limiters = [limiter(store, clock, minute=limit) for _ in range(3)]
    by_minute: dict[float, int] = {}
    for process, count, elapsed in turns:
        clock.now += elapsed
        minute = clock.now // 60
        by_minute[minute] = by_minute.get(minute, 0) + granted(take(limiters[process], count))
        assert by_minute[minute] <= limit
    store.close()


def test_a_process_that_is_late_takes_nothing_that_another_has(store: CountingStore) -> None:
    early, late = Clock(MIDNIGHT + 60), Clock(MIDNIGHT + 59)
    assert granted(take(limiter(store, early, minute=10), 8)) == 8
    assert granted(take(limiter(store, late, minute=10), 8)) == 2


def test_customers_and_plans_are_apart(store: CountingStore) -> None:
    plans = {
        "default": Plan(requests_per_minute=2, requests_per_day=9),
        "gold": Plan(requests_per_minute=4, requests_per_day=9),
    }
    limited = RateLimiter(store, plans, clock=Clock())
    assert granted(take(limited, 5, key("default", 1))) == 2
    assert granted(take(limited, 5, key("default", 2))) == 2
    assert granted(take(limited, 5, key("gold", 3))) == 4
    assert granted(take(limited, 5, key("a plan that was removed", 4))) == 2


def test_the_store_is_not_asked_for_every_request(store: CountingStore) -> None:
    limited = limiter(store, Clock(), minute=10_000, day=1_000_000)
    assert granted(take(limited, 1)) == 1
    for _ in range(99):
        take(limited)
    assert store.calls == 2


def test_a_restart_does_not_begin_the_window_anew(store: CountingStore) -> None:
    assert granted(take(limiter(store, Clock(), minute=5), 4)) == 4
    assert granted(take(limiter(store, Clock(), minute=5), 4)) == 1


def test_without_the_store_a_process_counts_alone(store: CountingStore) -> None:
    clock = Clock()
    one, other = limiter(store, clock, minute=5), limiter(store, clock, minute=5)
    store.down = True
    assert granted(take(one, 20)) == 5
    assert granted(take(other, 20)) == 5
    assert take(one) == [Allowance(5, 0, retry_after_s=60)]
    clock.now += 60
    assert take(one) == [Allowance(5, 4)]


def test_what_was_taken_before_the_store_went_away_counts(store: CountingStore) -> None:
    clock = Clock()
    limited = limiter(store, clock, minute=5)
    assert granted(take(limited, 3)) == 3
    store.down = True
    assert granted(take(limited, 20)) == 2
    store.down = False
    assert granted(take(limited, 20)) == 0
