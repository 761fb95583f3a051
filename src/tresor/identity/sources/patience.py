"""Waiting for hardware that is busy, for a bounded time."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tresor.identity.source import EvidenceSourceError, SourceCode

__all__ = ["Patience"]

T = TypeVar("T")
_PASSING = (SourceCode.BUSY, SourceCode.INTERFERED)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try again.  Times are seconds.

    Attributes:
        limit_s: no try begins later than this behind the first.
        pause_s: the first pause; each is twice as long as the one before, up to `longest_pause_s`, and is shortened
            by chance to between half and all of it, so that processes which failed together do not come together.
        clock: monotonic.
        sleep: waits.
    """

    limit_s: float = 20.0
    pause_s: float = 0.05
    longest_pause_s: float = 2.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def until_done(self, attempt: Callable[[], T]) -> T:
        """Return what `attempt` returns, which is called again while it is busy or interfered with.

        Raises:
            EvidenceSourceError: what the last attempt raised.
        """
        end = self.clock() + self.limit_s
        pause = self.pause_s
        while True:
            try:
                return attempt()
            except EvidenceSourceError as error:
                wait = pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, keeps no secret
                if error.code not in _PASSING or self.clock() + wait > end:
                    raise
            self.sleep(wait)
            pause = min(2 * pause, self.longest_pause_s)
