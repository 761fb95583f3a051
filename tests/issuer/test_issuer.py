"""The issuer on a real store that fails on command: numbers without holes, whatever fails, rotates or restarts."""

import asyncio
import contextlib
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from uuid import uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tresor.errors import StoreUnavailableError
from tresor.issuer.issuer import ReceiptIssuer, key_set
from tresor.issuer.key_files import KeySlot
from tresor.jose.jwk import parse_jwks
from tresor.receipts.claims import SCHEMA, Attempt, ReceiptDraft
from tresor.receipts.verify import VerifiedReceipt, parse_receipt, verify_receipt
from tresor.store.base import NewReceipt, SigningKey
from tresor.store.sqlite.store import SqliteStore

NOW = 1_800_000_000
CUSTOMER = 1
DIGEST = "sha256:" + "0" * 64

_T = TypeVar("_T")


def draft() -> ReceiptDraft:
    attempt = Attempt(
        route="eu/alpha/m",
        outcome="served",
        reason=None,
        status=200,
        prompt_sent=True,
        started_at="2027-01-15T08:00:00Z",
    )
    return ReceiptDraft(
        schema=SCHEMA,
        receipt_type="message",
        iss="https://router.test",
        jti=str(uuid4()),
        requested_route="auto/auto/m",
        routed_model="eu/alpha/m",
        failover=False,
        attempts=(attempt,),
        prompt_tokens=1,
        completion_tokens=2,
        total_tokens=3,
        request_digest=DIGEST,
        upstream_request_digest=DIGEST,
        upstream_response_digest=DIGEST,
        response_digest=DIGEST,
        stream=False,
        status=200,
        outcome="complete",
        not_checked=("router_tee",),
    )


class FaultyStore(SqliteStore):
    """A store that does what it is told to do wrong, once for each fault, and can be held."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.faults: list[str] = []
        self.groups: list[int] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def _due(self, *faults: str) -> str | None:
        if self.faults and self.faults[0] in faults:
            return self.faults.pop(0)
        return None

    def append_receipts(self, receipts: Sequence[NewReceipt]) -> None:
        assert self.go_on.wait(30)
        self.groups.append(len(receipts))
        fault = self._due("append", "bug", "doubt")
        if fault == "append":
            raise StoreUnavailableError("the disk is full")
        if fault == "bug":
            raise ZeroDivisionError
        super().append_receipts(receipts)
        if fault == "doubt":
            raise StoreUnavailableError("written, and then the answer was lost")

    def register_signing_key(self, kid: str, x: str, y: str, *, now: int) -> SigningKey:
        if self._due("register"):
            raise StoreUnavailableError("not now")
        return super().register_signing_key(kid, x, y, now=now)

    def retire_signing_key(self, kid: str, *, now: int) -> None:
        if self._due("retire"):
            raise StoreUnavailableError("not now")
        super().retire_signing_key(kid, now=now)


@dataclass
class Bench:
    """A store, a folder for keys, a clock, and the issuers of one test."""

    folder: Path
    now: int = NOW
    slots: list[KeySlot] = field(default_factory=list)
    durable: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = FaultyStore(self.folder / "tresor.db")

    def start(self, *, max_pending: int = 1000, rotation_days: int = 0, **options: Any) -> ReceiptIssuer:
        self.slots.append(KeySlot(self.folder / "keys"))
        return ReceiptIssuer(
            self.store,
            self.slots[-1],
            max_pending=max_pending,
            rotation_days=rotation_days,
            clock=lambda: self.now,
            **options,
        )

    @contextlib.asynccontextmanager
    async def issuer(self, **options: Any) -> AsyncIterator[ReceiptIssuer]:
        """A process from its start to its orderly end."""
        issuer = self.start(**options)
        try:
            yield issuer
        finally:
            await self.stop(issuer)

    async def stop(self, issuer: ReceiptIssuer) -> None:
        self.store.go_on.set()
        await issuer.close()
        self.leave(self.slots.pop())

    @staticmethod
    def leave(slot: KeySlot) -> None:
        os.close(slot._lock)

    async def issue(self, issuer: ReceiptIssuer, count: int = 1) -> list[bool]:
        """Issue receipts at once; return which became durable."""
        drafts = [draft() for _ in range(count)]
        outcomes = await asyncio.gather(*(issuer.issue(d, CUSTOMER) for d in drafts), return_exceptions=True)
        assert all(outcome is None or isinstance(outcome, StoreUnavailableError) for outcome in outcomes)
        self.durable += [d.jti for d, outcome in zip(drafts, outcomes, strict=True) if outcome is None]
        return [outcome is None for outcome in outcomes]

    def verified(self) -> list[VerifiedReceipt]:
        """Verify every stored receipt with the key set as callers get it, oldest first."""
        listed = self.store.list_receipts(CUSTOMER, after=None, limit=10_000)
        assert listed is not None
        keys = parse_jwks(msgspec.json.encode({"keys": key_set(self.store)}))
        now = datetime.fromtimestamp(self.now, UTC)
        return [
            verify_receipt(parse_receipt(stored.jws.compact.encode()), keys, now=now) for stored in reversed(listed)
        ]

    def check(self) -> list[tuple[str, list[int]]]:
        """Check that all receipts verify and no number is missing; return the numbers by key, in the order of keys."""
        receipts = self.verified()
        assert {*self.durable} <= {receipt.claims.jti for receipt in receipts}
        by_key: dict[str, list[int]] = {key.kid: [] for key in self.store.signing_keys()}
        for receipt in receipts:
            by_key[receipt.kid].append(receipt.claims.seq)
        for key in self.store.signing_keys():
            assert by_key[key.kid] == [*range(1, key.last_seq + 1)]
        return [*by_key.items()]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    for slot in made.slots:
        made.leave(slot)
    made.store.close()


def kid_of(issuer: ReceiptIssuer) -> str:
    return issuer._signer.kid


def run(scenario: Coroutine[Any, Any, _T]) -> _T:
    return asyncio.run(scenario)


async def until(holds: Callable[[], bool]) -> None:
    """Let the loop turn until something holds; the test's own timeout ends it where it never does."""
    while not holds():  # noqa: ASYNC110 - nothing says when the issuer has taken a group
        await asyncio.sleep(0.001)


def test_numbers_go_on_over_groups(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.issuer() as issuer:
            for count in (1, 3, 300, 1):
                assert all(await bench.issue(issuer, count))

    run(scenario())
    assert [numbers for _, numbers in bench.check()] == [[*range(1, 306)]]
    assert max(bench.store.groups) <= 256
    assert [receipt.claims.iat for receipt in bench.verified()] == [NOW] * 305


def test_a_receipt_is_durable_before_its_future_is_done(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.issuer() as issuer:
            bench.store.go_on.clear()
            made = draft()
            durable = issuer.issue(made, CUSTOMER)
            await until(lambda: not issuer._waiting)
            assert not durable.done()
            bench.store.go_on.set()
            await durable
            assert bench.store.find_receipt(made.jti, CUSTOMER) is not None
            assert bench.store.find_receipt(made.jti, CUSTOMER + 1) is None

    run(scenario())


def test_what_ends_while_a_group_is_flushed_is_stored_together(bench: Bench) -> None:
    async def scenario() -> list[tuple[int, float]]:
        told: list[tuple[int, float]] = []
        async with bench.issuer(on_group=lambda size, seconds: told.append((size, seconds))) as issuer:
            bench.store.go_on.clear()
            first = issuer.issue(draft(), CUSTOMER)
            await until(lambda: not issuer._waiting)  # the store has it
            others = [issuer.issue(draft(), CUSTOMER) for _ in range(50)]
            bench.store.go_on.set()
            await asyncio.gather(first, *others)
        return told

    told = run(scenario())
    assert [size for size, _ in told] == [1, 50]
    assert all(seconds >= 0 for _, seconds in told)
    bench.check()


@pytest.mark.parametrize("fault", ["append", "bug"])
def test_a_group_that_fails_gives_its_numbers_back(bench: Bench, fault: str) -> None:
    async def scenario() -> None:
        async with bench.issuer() as issuer:
            assert await bench.issue(issuer, 2) == [True, True]
            bench.store.faults = [fault]
            bench.store.go_on.clear()
            failing = [issuer.issue(draft(), CUSTOMER) for _ in range(3)]
            await until(lambda: not issuer._waiting)
            behind = [issuer.issue(draft(), CUSTOMER) for _ in range(4)]  # numbered 6 to 9, and signed so
            bench.store.go_on.set()
            outcomes = await asyncio.gather(*failing, *behind, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [StoreUnavailableError] * 3 + [type(None)] * 4
            assert await bench.issue(issuer) == [True]

    run(scenario())
    assert [numbers for _, numbers in bench.check()] == [[*range(1, 8)]]


def test_a_group_that_was_stored_although_it_failed_keeps_its_numbers(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.issuer() as issuer:
            bench.store.faults = ["doubt"]
            assert await bench.issue(issuer, 3) == [False] * 3
            assert await bench.issue(issuer, 2) == [True] * 2
            bench.store.faults = ["doubt", "register", "append"]
            assert [await bench.issue(issuer) for _ in range(4)] == [[False], [False], [False], [True]]

    run(scenario())
    assert [numbers for _, numbers in bench.check()] == [[*range(1, 8)]]


def test_who_does_not_wait_gets_a_receipt_all_the_same(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.issuer() as issuer:
            issuer.issue(draft(), CUSTOMER).cancel()
            bench.store.faults = ["append"]
            issuer.issue(draft(), CUSTOMER).cancel()
            assert await bench.issue(issuer) in ([True], [False])  # in one group with those, or in the next

    run(scenario())
    bench.check()


def test_so_many_may_wait(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.issuer(max_pending=3) as issuer:
            bench.store.go_on.clear()
            first = issuer.issue(draft(), CUSTOMER)
            await until(lambda: not issuer._waiting)
            waiting = []
            for _ in range(3):
                assert not issuer.saturated
                waiting.append(issuer.issue(draft(), CUSTOMER))
            assert issuer.saturated
            assert repr(issuer) == f"<ReceiptIssuer {kid_of(issuer)} waiting=3>"
            bench.store.go_on.set()
            await asyncio.gather(first, *waiting)
            assert not issuer.saturated

    run(scenario())


def test_closing_stores_what_waits(bench: Bench) -> None:
    async def scenario() -> None:
        issuer = bench.start()
        waiting = [issuer.issue(draft(), CUSTOMER) for _ in range(300)]
        await bench.stop(issuer)
        assert all(durable.done() and durable.exception() is None for durable in waiting)

    run(scenario())
    assert [len(numbers) for _, numbers in bench.check()] == [300]


def test_closing_ends_although_the_store_fails(bench: Bench) -> None:
    async def scenario() -> None:
        issuer = bench.start()
        bench.store.faults = ["append"]
        durable = issuer.issue(draft(), CUSTOMER)
        await bench.stop(issuer)
        assert isinstance(durable.exception(), StoreUnavailableError)

    run(scenario())
    bench.check()


# Rotation.


async def rotate(bench: Bench, issuer: ReceiptIssuer) -> None:
    """Ask for a rotation and wait until the issuer has looked at it."""
    bench.now += 10
    bench.store.request_rotation(now=bench.now)
    bench.now += 1
    await issuer.consider_rotation()
    await until(lambda: issuer._successor is None)
    await bench.issue(issuer)  # it takes its turn behind the rotation


def test_a_rotation_goes_between_two_groups_and_loses_nothing(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.issuer() as issuer:
            old = kid_of(issuer)
            bench.store.go_on.clear()
            first = issuer.issue(draft(), CUSTOMER)
            await until(lambda: not issuer._waiting)
            behind = [issuer.issue(draft(), CUSTOMER) for _ in range(5)]  # signed with the old key
            bench.now += 10
            bench.store.request_rotation(now=bench.now)
            await issuer.consider_rotation()
            bench.store.go_on.set()
            await asyncio.gather(first, *behind)
            assert await bench.issue(issuer, 2) == [True, True]
            assert kid_of(issuer) != old

    run(scenario())
    assert [numbers for _, numbers in bench.check()] == [[1], [*range(1, 8)]]
    old, new = key_set(bench.store)
    assert (old.exp, new.iat, new.exp) == (NOW + 10, NOW + 10, None)
    assert [key.retired_at for key in bench.store.signing_keys()] == [NOW + 10, None]


def test_one_request_is_one_rotation(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.issuer() as issuer:
            await rotate(bench, issuer)
            for _ in range(3):
                await issuer.consider_rotation()
                await bench.issue(issuer)
            await rotate(bench, issuer)

    run(scenario())
    assert [numbers for _, numbers in bench.check()] == [[], [1, 2, 3, 4], [1]]


def test_a_request_older_than_the_key_is_none(bench: Bench) -> None:
    bench.store.request_rotation(now=NOW - 1)

    async def scenario() -> None:
        async with bench.issuer() as issuer:
            await issuer.consider_rotation()
            await bench.issue(issuer)

    run(scenario())
    assert len(bench.check()) == 1


def test_a_key_is_replaced_at_its_age(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.issuer(rotation_days=30) as issuer:
            for elapsed, keys in ((30 * 86_400 - 1, 1), (30 * 86_400, 2), (60 * 86_400 - 1, 2), (60 * 86_400, 3)):
                bench.now = NOW + elapsed
                await issuer.consider_rotation()
                await bench.issue(issuer)
                assert len(bench.store.signing_keys()) == keys

    run(scenario())
    assert [numbers for _, numbers in bench.check()] == [[1], [1, 2], [1]]


def test_a_rotation_that_fails_is_tried_again_and_the_old_key_goes_on(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.issuer() as issuer:
            old = kid_of(issuer)
            bench.store.faults = ["register"]
            await rotate(bench, issuer)
            assert kid_of(issuer) == old
            await issuer.consider_rotation()
            await bench.issue(issuer)
            assert kid_of(issuer) != old

    run(scenario())
    assert [numbers for _, numbers in bench.check()] == [[1], [1]]


def test_a_key_that_could_not_be_retired_is_retired_later(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.issuer() as issuer:
            bench.store.faults = ["retire"]
            await rotate(bench, issuer)
            assert [key.retired_at for key in bench.store.signing_keys()] == [None, None]
            await issuer.consider_rotation()

    run(scenario())
    assert [key.retired_at is None for key in bench.store.signing_keys()] == [False, True]
    assert [numbers for _, numbers in bench.check()] == [[], [1]]


def test_a_rotation_behind_a_group_in_doubt(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.issuer() as issuer:
            bench.store.faults = ["doubt"]
            assert await bench.issue(issuer, 2) == [False, False]
            await rotate(bench, issuer)

    run(scenario())
    assert [numbers for _, numbers in bench.check()] == [[1, 2], [1]]


def test_a_store_that_is_gone_cannot_say_whether_to_rotate(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.issuer() as issuer:
            path = bench.folder / "tresor.db"
            away = path.rename(bench.folder / "away")
            with pytest.raises(StoreUnavailableError):
                await issuer.consider_rotation()
            away.rename(path)

    run(scenario())


# Processes.


def test_a_restart_goes_on_with_the_same_key(bench: Bench) -> None:
    async def process() -> str:
        async with bench.issuer() as issuer:
            await bench.issue(issuer, 2)
            return kid_of(issuer)

    assert run(process()) == run(process())
    assert [numbers for _, numbers in bench.check()] == [[1, 2, 3, 4]]


def test_a_restart_knows_the_numbers_of_deleted_receipts(bench: Bench) -> None:
    async def process() -> None:
        async with bench.issuer() as issuer:
            await bench.issue(issuer, 2)

    run(process())
    assert bench.store.delete_receipts(NOW + 1, limit=10) == 2
    run(process())
    assert [receipt.claims.seq for receipt in bench.verified()] == [3, 4]


def test_processes_have_a_key_each(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.issuer() as one, bench.issuer() as other:
            assert kid_of(one) != kid_of(other)
            await asyncio.gather(bench.issue(one, 3), bench.issue(other, 2))

    run(scenario())
    assert Counter(len(numbers) for _, numbers in bench.check()) == Counter([3, 2])


def test_a_key_that_outlived_its_store_is_not_used_again(bench: Bench) -> None:
    async def process() -> str:
        async with bench.issuer() as issuer:
            await bench.issue(issuer)
            return kid_of(issuer)

    before = run(process())
    bench.store.close()
    for file in bench.folder.glob("tresor.db*"):
        file.unlink()
    bench.store = FaultyStore(bench.folder / "tresor.db")
    bench.durable.clear()
    after = run(process())
    assert after != before
    assert bench.check() == [(before, []), (after, [1])]  # its receipts, wherever they are, can be verified
    assert [key.retired_at is None for key in bench.store.signing_keys()] == [False, True]


def test_a_rotation_asked_for_while_no_process_ran_counts_at_the_start(bench: Bench) -> None:
    async def process() -> str:
        async with bench.issuer() as issuer:
            await bench.issue(issuer)
            await issuer.consider_rotation()
            await bench.issue(issuer)
            return kid_of(issuer)

    before = run(process())
    bench.now += 10
    bench.store.request_rotation(now=bench.now)
    bench.now += 10
    after = run(process())
    assert bench.check() == [(before, [1, 2]), (after, [1, 2])]
    assert run(process()) == after


def test_a_closed_issuer_issues_nothing(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.issuer() as issuer:
            before = issuer.ready
        assert (before, issuer.ready) == (True, False)
        with pytest.raises(StoreUnavailableError):
            issuer.issue(draft(), CUSTOMER)

    run(scenario())


def test_a_key_that_was_retired_is_not_used_again(bench: Bench) -> None:
    async def process() -> str:
        async with bench.issuer() as issuer:
            await bench.issue(issuer)
            return kid_of(issuer)

    before = run(process())
    bench.store.retire_signing_key(before, now=NOW)
    assert run(process()) != before
    assert [numbers for _, numbers in bench.check()] == [[1], [1]]


def test_no_process_begins_without_a_key_that_is_known(bench: Bench) -> None:
    async def scenario() -> None:
        bench.store.faults = ["register"]
        with pytest.raises(StoreUnavailableError):
            bench.start()

    run(scenario())
    assert bench.store.signing_keys() == []


class Life(RuleBasedStateMachine):
    """Issue, fail, rotate and restart in any order."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = TemporaryDirectory()
        self._loop = asyncio.new_event_loop()
        self._bench = Bench(Path(self._folder.name))
        self._issuer = self._do(self._start())

    def _do(self, step: Coroutine[Any, Any, _T]) -> _T:
        return self._loop.run_until_complete(asyncio.wait_for(step, 60))

    async def _start(self) -> ReceiptIssuer:
        return self._bench.start()

    @rule(count=st.integers(1, 4))
    def issue(self, count: int) -> None:
        self._do(self._bench.issue(self._issuer, count))

    @rule(counts=st.lists(st.integers(1, 3), min_size=2, max_size=3))
    def issue_while_others_are_stored(self, counts: list[int]) -> None:
        async def step() -> None:
            self._bench.store.go_on.clear()
            waiting = []
            for count in counts:
                waiting.append(asyncio.ensure_future(self._bench.issue(self._issuer, count)))
                await asyncio.sleep(0)
            self._bench.store.go_on.set()
            await asyncio.gather(*waiting)

        self._do(step())

    @rule(faults=st.lists(st.sampled_from(["append", "doubt", "bug", "register", "retire"]), max_size=3))
    def fail_next(self, faults: list[str]) -> None:
        self._bench.store.faults = faults

    @rule()
    def rotate(self) -> None:
        async def step() -> None:
            with contextlib.suppress(StoreUnavailableError):
                await rotate(self._bench, self._issuer)

        self._do(step())

    @rule()
    def restart(self) -> None:
        async def step() -> None:
            await self._bench.stop(self._issuer)
            self._bench.store.faults = []
            self._issuer = self._bench.start()

        self._do(step())

    @invariant()
    def all_verify_and_no_number_is_missing(self) -> None:
        self._bench.check()

    def teardown(self) -> None:
        self._do(self._bench.stop(self._issuer))
        self._bench.check()
        self._bench.store.close()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
        self._folder.cleanup()


def test_numbers_have_no_holes_whatever_happens() -> None:
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
