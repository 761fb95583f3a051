"""What endorses evidence, from the vendors' servers and from what was fetched before: for whoever must not wait long.

Verifiers get what is missing themselves, so that failing here costs nothing but their time; after a failure the network
is left alone for a while.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tresor.attestation.evidence import Collateral, Need
from tresor.collateral.cache import CollateralCache
from tresor.collateral.fetcher import Fetcher, FetchLimits

__all__ = ["Needs", "endorser"]

_log = logging.getLogger(__name__)

_LIMITS: Final = FetchLimits(timeout_s=5.0, exchange_s=10.0, total_s=20.0, attempts=2)
_REST_S: Final = 60.0


Needs = Callable[[Collateral], tuple[Need, ...]]
"""What is needed besides the collateral given."""


def endorser(directory: Path | None, *, online: bool) -> Callable[[Needs, Collateral], Collateral]:
    """Return a function from needs and what is at hand to all that is at hand then; it blocks and never raises.

    Args:
        directory: where answers are kept; None keeps nothing.
        online: whether to ask anybody; what is kept is used either way.

    Raises:
        OSError: the directory cannot be made.
    """
    cache = None if directory is None else CollateralCache(directory)
    fetcher, kept = Fetcher(cache=cache, limits=_LIMITS), Fetcher(cache=cache, online=False)
    rests_until = 0.0

    def endorse(needs: Needs, collateral: Collateral) -> Collateral:
        nonlocal rests_until
        if not needs(collateral):
            return collateral
        if not online or time.monotonic() < rests_until:
            return kept.complete(needs, collateral).collateral
        fetched = fetcher.complete(needs, collateral)
        if fetched.failures:
            rests_until = time.monotonic() + _REST_S
            faults = sorted(set(fetched.failures.values()))
            _log.warning("endorsements not fetched", extra={"count": len(fetched.failures), "fault": faults[0]})
        return fetched.collateral

    return endorse
