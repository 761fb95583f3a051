"""How many requests one upstream serves at one time, and how many wait for that, in one worker process."""

import asyncio
from collections import deque
from contextlib import suppress

from tresor.errors import UpstreamError

__all__ = ["ConcurrencyGate"]


class ConcurrencyGate:
    """A limit with a queue that is bounded in length and time; first come, first served.

    Every successful `try_acquire` or `acquire` is followed by one `release`.  A place that becomes free goes to the
    request that has waited longest and to nobody else, and none is lost when one that waits is cancelled.

    Args:
        limit: most requests at one time; 0 for no limit.
        max_queued: most requests that wait.
        queue_timeout_s: longest wait.

    Attributes:
        limit: as given.
        in_flight: places taken.
    """

    __slots__ = ("_max_queued", "_queue", "_queue_timeout_s", "in_flight", "limit")

    def __init__(self, limit: int, max_queued: int, queue_timeout_s: float) -> None:
        self.limit = limit
        self.in_flight = 0
        self._max_queued = max_queued
        self._queue_timeout_s = queue_timeout_s
        self._queue: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"<ConcurrencyGate {self.in_flight} of {self.limit or 'any'}, queued={len(self._queue)}>"

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def try_acquire(self) -> bool:
        """Take a place if one is free; it never is while others wait."""
        if self.limit and self.in_flight >= self.limit:
            return False
        self.in_flight += 1
        return True

    async def acquire(self, deadline: float) -> None:
        """Take a place, or wait for one.

        Args:
            deadline: `loop.time()` after which it is of no use.

        Raises:
            UpstreamError: `overloaded`, at once where the queue is full, or when the wait was too long.
        """
        if self.try_acquire():
            return
        if len(self._queue) >= self._max_queued:
            raise UpstreamError("overloaded", "the upstream serves as many requests as it may, and the queue is full")
        loop = asyncio.get_running_loop()
        place: asyncio.Future[None] = loop.create_future()
        self._queue.append(place)
        try:
            async with asyncio.timeout_at(min(deadline, loop.time() + self._queue_timeout_s)):
                await place
        except BaseException as ended:
            if place.done() and not place.cancelled():  # it was given at the very moment this wait ended
                self.release()
            else:
                with suppress(ValueError):  # `release` may have passed over it already
                    self._queue.remove(place)
            if isinstance(ended, TimeoutError):
                raise UpstreamError("overloaded", "no request to the upstream ended in time to make room") from ended
            raise

    def release(self) -> None:
        """Give a place back: to the first that waits, or for whoever comes."""
        while self._queue:
            place = self._queue.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.in_flight -= 1
