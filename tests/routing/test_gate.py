"""The concurrency limit: order, bounds, and that no place is lost or given twice, however requests end."""

import asyncio
from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tresor.errors import UpstreamError
from tresor.routing.gate import ConcurrencyGate

FOREVER = float("inf")


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def waiting(gate: ConcurrencyGate, count: int) -> list[asyncio.Task[None]]:
    return [asyncio.create_task(gate.acquire(FOREVER)) for _ in range(count)]


def test_without_a_limit_nobody_waits() -> None:
    gate = ConcurrencyGate(0, 0, 1.0)
    assert all(gate.try_acquire() for _ in range(1000))
    assert (gate.in_flight, gate.queued) == (1000, 0)
    gate.release()
    assert gate.in_flight == 999


def test_places_go_to_those_that_wait_in_their_order() -> None:
    async def scene() -> None:
        gate = ConcurrencyGate(2, 10, 60.0)
        order: list[int] = []

        async def serve(n: int) -> None:
            await gate.acquire(FOREVER)
            order.append(n)

        tasks = [asyncio.create_task(serve(n)) for n in range(5)]
        await settle()
        assert (order, gate.in_flight, gate.queued) == ([0, 1], 2, 3)
        gate.release()
        assert not gate.try_acquire()  # it is promised already
        await settle()
        assert order == [0, 1, 2]
        gate.release()
        gate.release()
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2, 3, 4]
        assert (gate.in_flight, gate.queued) == (2, 0)

    asyncio.run(scene())


def test_a_full_queue_refuses_at_once() -> None:
    async def scene() -> None:
        gate = ConcurrencyGate(1, 1, 60.0)
        assert gate.try_acquire()
        tasks = waiting(gate, 1)
        await settle()
        with pytest.raises(UpstreamError) as caught:
            await gate.acquire(FOREVER)
        assert caught.value.reason == "overloaded"
        gate.release()
        await asyncio.gather(*tasks)

    asyncio.run(scene())


def test_without_a_queue_a_full_gate_refuses_at_once() -> None:
    async def scene() -> None:
        gate = ConcurrencyGate(1, 0, 60.0)
        await gate.acquire(FOREVER)
        with pytest.raises(UpstreamError):
            await gate.acquire(FOREVER)
        assert gate.in_flight == 1

    asyncio.run(scene())


@pytest.mark.parametrize(("timeout_s", "budget_s"), [(0.02, 60.0), (60.0, 0.02), (60.0, -1.0)])
def test_a_wait_ends(timeout_s: float, budget_s: float) -> None:
    async def scene() -> None:
        gate = ConcurrencyGate(1, 5, timeout_s)
        assert gate.try_acquire()
        with pytest.raises(UpstreamError) as caught:
            await asyncio.wait_for(gate.acquire(asyncio.get_running_loop().time() + budget_s), 5)
        assert caught.value.reason == "overloaded"
        assert (gate.in_flight, gate.queued) == (1, 0)

    asyncio.run(scene())


def test_a_cancelled_wait_leaves_the_queue() -> None:
    async def scene() -> None:
        gate = ConcurrencyGate(1, 5, 60.0)
        assert gate.try_acquire()
        first, second = waiting(gate, 2)
        await settle()
        first.cancel()
        await settle()
        assert first.cancelled()
        assert gate.queued == 1
        gate.release()
        await second
        assert (gate.in_flight, gate.queued) == (1, 0)

    asyncio.run(scene())


def steps() -> Iterator[tuple[str, ...]]:
    """Yield every order of what can happen to two that wait, with and without a turn of the loop between."""
    moves = ("release", "cancel-0", "cancel-1", "turn")
    return product(moves, repeat=4)


@pytest.mark.parametrize("moves", list(steps()), ids="+".join)
def test_no_interleaving_loses_a_place(moves: tuple[str, ...]) -> None:
    async def scene() -> None:
        gate = ConcurrencyGate(2, 5, 60.0)
        held = 0
        while gate.try_acquire():
            held += 1
        tasks = waiting(gate, 2)
        await settle()
        for move in moves:
            if move == "turn":
                await asyncio.sleep(0)
            elif move == "release" and held:
                held -= 1
                gate.release()
            elif move.startswith("cancel"):
                tasks[int(move[-1])].cancel()
        await settle()
        got = sum(task.done() and not task.cancelled() for task in tasks)
        assert gate.in_flight == held + got <= 2
        assert gate.queued == sum(not task.done() for task in tasks)
        assert gate.queued == 0 or gate.in_flight == 2  # nobody waits before a free place
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(held + got):
            gate.release()
        assert (gate.in_flight, gate.queued) == (0, 0)

    asyncio.run(scene())


@given(
    limit=st.integers(1, 3),
    queue=st.integers(0, 3),
    lives=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.none() | st.integers(0, 6)), max_size=12),
)
def test_any_crowd_is_served_within_the_limits(
    limit: int, queue: int, lives: list[tuple[int, int, int | None]]
) -> None:
    async def scene() -> None:
        gate = ConcurrencyGate(limit, queue, 60.0)
        served = most = 0

        async def live(arrival: int, work: int) -> None:
            nonlocal served, most
            for _ in range(arrival):
                await asyncio.sleep(0)
            await gate.acquire(FOREVER)
            served += 1
            most = max(most, served)
            try:
                for _ in range(work):
                    await asyncio.sleep(0)
            finally:
                served -= 1
                gate.release()

        async def watch(arrival: int, work: int, leaves: int | None) -> None:
            task = asyncio.create_task(live(arrival, work))
            if leaves is not None:
                for _ in range(leaves):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and (error := task.exception()) is not None:
                assert isinstance(error, UpstreamError)
                assert error.reason == "overloaded"

        await asyncio.gather(*(watch(*one) for one in lives))
        assert most <= limit
        assert (served, gate.in_flight, gate.queued) == (0, 0, 0)

    asyncio.run(scene())
