"""Rate limits per customer, exact over all processes that share a store, without a store write per request.

Each process takes permits of a window from the store in small lots and hands them out from memory.  The sum of all lots
never exceeds the window's limit; what a process has taken and not handed out when a window ends is lost with it.
Implements docs/spec/http-api.md section 2.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from tresor.errors import StoreUnavailableError
from tresor.settings.model import Plan
from tresor.store.base import ApiKey, Store

__all__ = ["Allowance", "RateLimiter"]

_MINUTE_S: Final = 60
_DAY_S: Final = 86_400
_LOTS: Final = 100
_MAX_LOT: Final = 1_000


class Allowance(msgspec.Struct, frozen=True, gc=False):
    """What the answer's `X-RateLimit-*` headers say; `retry_after_s` is set where the request is refused."""

    limit: int
    remaining: int
    retry_after_s: int | None = None


@dataclass(slots=True)
class _Lot:
    """Permits of one window that this process holds, all it ever took, and how many the store had left then."""

    began_at: int
    held: int = 0
    taken: int = 0
    left_in_store: int = 0
    exhausted: bool = False
    refilling: asyncio.Task[None] | None = None


class RateLimiter:
    """Counts the requests of every customer in fixed windows of a minute and a day.

    Args:
        store: keeps the counters that processes share.
        plans: limits by plan; customers of a plan that is not there are on `default`.
        clock: returns Unix seconds.
    """

    def __init__(self, store: Store, plans: dict[str, Plan], *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._plans = plans
        self._clock = clock
        self._lots: dict[tuple[int, int], _Lot] = {}

    async def take(self, key: ApiKey) -> Allowance:
        """Count one request of the key's customer, or say that it is one too many."""
        plan = self._plans.get(key.plan) or self._plans["default"]
        now = int(self._clock())
        minute = self._lot(key.customer_id, _MINUTE_S, now)
        day = self._lot(key.customer_id, _DAY_S, now)
        if minute.held and day.held:
            minute.held -= 1
            day.held -= 1
        elif (refused := await self._take_with_refill(key, plan, minute, day, now)) is not None:
            return refused
        minute_left, day_left = minute.held + minute.left_in_store, day.held + day.left_in_store
        if minute_left <= day_left:
            return Allowance(plan.requests_per_minute, minute_left)
        return Allowance(plan.requests_per_day, day_left)

    async def _take_with_refill(self, key: ApiKey, plan: Plan, minute: _Lot, day: _Lot, now: int) -> Allowance | None:
        """Take from both lots, refilled where one is empty; return a refusal, or None where both had some."""
        for lot, window, limit in ((minute, _MINUTE_S, plan.requests_per_minute), (day, _DAY_S, plan.requests_per_day)):
            while lot.held < 1 and not lot.exhausted:
                # All who find it empty wait for one refill, which goes on where one of them leaves.
                lot.refilling = lot.refilling or asyncio.create_task(self._refill(lot, key.customer_id, window, limit))
                await asyncio.shield(lot.refilling)
            if lot.held < 1:
                minute.held += lot is day  # given back
                return Allowance(limit, 0, retry_after_s=lot.began_at + window - now)
            lot.held -= 1  # at once: while the other lot is refilled, others take from this one
        return None

    def _lot(self, customer_id: int, window: int, now: int) -> _Lot:
        lot = self._lots.get((customer_id, window))
        if lot is None or now - lot.began_at >= window:
            lot = self._lots[customer_id, window] = _Lot(began_at=now - now % window)
        return lot

    async def _refill(self, lot: _Lot, customer_id: int, window: int, limit: int) -> None:
        wanted = max(1, min(limit // _LOTS, _MAX_LOT))
        try:
            taken, left = await asyncio.to_thread(
                self._store.take_permits, customer_id, window, wanted=wanted, limit=limit, now=lot.began_at
            )
        except StoreUnavailableError:
            # A store that is down does not stop completions; this process counts alone.
            taken = max(0, min(wanted, limit - lot.taken))
            left = max(0, limit - lot.taken - taken)
        lot.held += taken
        lot.taken += taken
        lot.left_in_store = left
        lot.exhausted = taken == 0
        lot.refilling = None
