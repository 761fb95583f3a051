"""Deadlines for many connections with one timer.

A timer per request would cost more than the request's hashes.  A connection notes when it must be looked at; one sweep,
four times a second, looks at those whose time has come.  Times are `loop.time()`; the resolution is `INTERVAL_S`.
"""

import asyncio
from typing import Final, Protocol

__all__ = ["INTERVAL_S", "Sweeper", "Swept"]

INTERVAL_S: Final = 0.25


class Swept(Protocol):
    """Something with deadlines."""

    def sweep(self, now: float) -> None:
        """Act on every deadline that lies before `now`."""


class Sweeper:
    """Looks at its members every `INTERVAL_S`, from `start` to `stop`."""

    def __init__(self) -> None:
        self._members: set[Swept] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, member: Swept) -> None:
        """Begin to look at `member`."""
        self._members.add(member)

    def remove(self, member: Swept) -> None:
        """Stop looking at `member`."""
        self._members.discard(member)

    def start(self) -> None:
        """Begin to sweep in the running loop."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(INTERVAL_S, self._sweep, loop)

    def stop(self) -> None:
        """Sweep no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for member in tuple(self._members):
            member.sweep(now)
        self._timer = loop.call_later(INTERVAL_S, self._sweep, loop)
