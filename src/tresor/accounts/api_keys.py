"""API keys: `tr-` and 96 lower-case hexadecimal digits (docs/spec/http-api.md section 2).

Only the SHA-256 of a key is stored.  A key that was found is remembered for `FRESH_S`, so a revoked key stops within
that time on every process; while the store is down, keys already known go on working for `STALE_S`.
"""

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from typing import Final

from tresor.errors import RequestError, StoreUnavailableError
from tresor.store.base import ApiKey, Store

__all__ = ["FRESH_S", "STALE_S", "Authenticator", "key_digest", "new_api_key", "new_key_id"]

FRESH_S: Final = 2.0
STALE_S: Final = 600.0
_BEARER = re.compile(r"[Bb]earer +(tr-[0-9a-f]{96})\Z")


def new_api_key() -> str:
    """Return a new key of 48 random bytes."""
    return f"tr-{secrets.token_hex(48)}"


def new_key_id() -> str:
    """Return a new public name for a key."""
    return f"key_{secrets.token_hex(8)}"


def key_digest(key: str) -> bytes:
    """Return what the store holds of a key: the SHA-256 (32 bytes) of its text."""
    return hashlib.sha256(key.encode()).digest()


class Authenticator:
    """Finds whose key a request carries.

    Args:
        store: where keys are kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[bytes, tuple[ApiKey, float]] = {}

    async def authenticate(self, authorization: str | None) -> ApiKey:
        """Return the live key of an `Authorization` header.

        Raises:
            RequestError: 401 `unauthorized`, whatever is wrong with it; 503 if the store cannot tell.
        """
        match = _BEARER.match(authorization or "")
        if match is None:
            raise _unauthorized()
        digest = key_digest(match[1])
        known, seen_at = self._known.get(digest, (None, 0.0))
        if known is None or time.monotonic() - seen_at > FRESH_S:
            known = await self._look_up(digest, known, seen_at)
        if known is None or known.revoked_at is not None or not hmac.compare_digest(known.digest, digest):
            raise _unauthorized()
        return known

    async def _look_up(self, digest: bytes, known: ApiKey | None, seen_at: float) -> ApiKey | None:
        try:
            found = await asyncio.to_thread(self._store.find_api_key, digest)
        except StoreUnavailableError as error:
            if known is not None and time.monotonic() - seen_at < STALE_S:
                return known
            raise RequestError(503, "service_unavailable", "the key cannot be checked now", retry_after_s=2) from error
        if found is None:
            self._known.pop(digest, None)
        else:
            self._known[digest] = (found, time.monotonic())
        return found


def _unauthorized() -> RequestError:
    return RequestError(401, "unauthorized", "missing, malformed, unknown or revoked API key: want 'Bearer tr-…'")
