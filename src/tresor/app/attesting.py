"""A node's own evidence, as callers see it: `GET /attestation`, the trust bundle, and keeping both current.

Evidence without a nonce is that which receipts refer to; it is renewed at half of its life.  Evidence for a nonce is
made for that one caller: equal questions share one answer, the hardware is asked one question at a time, and a caller
has only so many a minute.  Implements docs/spec/http-api.md section 12.
"""

import asyncio
import re
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from tresor.errors import KeyNotAttestedError, RequestError
from tresor.identity.attested_keys import AttestedKeys
from tresor.issuer.keys import KeyAttestation
from tresor.server.request import Request

__all__ = ["Attesting", "BoundKey"]

_NONCE = re.compile(r"[0-9a-fA-F]{64}\Z")
_MAX_CALLERS: Final = 4096
_MAX_WAITING: Final = 16
_MINUTE_S: Final = 60
_FIRST_RETRY_S: Final = 1.0
_MAX_RETRY_S: Final = 60.0


class BoundKey(Protocol):
    """A key, and the evidence that binds it: of a router, its issuer's."""

    attestation_fault: str | None
    """Why evidence could not be had when it was asked for last; None where it could."""

    @property
    def attestation(self) -> KeyAttestation | None:
        """What binds the key; None where nothing does."""

    @property
    def may_sign(self) -> bool:
        """Whether evidence binds the key now, where it must."""

    @property
    def signing_key(self) -> ec.EllipticCurvePrivateKey:
        """The key itself."""

    async def renew_attestation(self) -> None:
        """Have the key bound anew; a failure is noted in `attestation_fault`."""


class Attesting:
    """Serves and renews the evidence of one worker.

    Args:
        key: the key that is bound, and what binds it.
        keys: where its signing keys come from; None where nothing is attested.
        trust_bundle_file: what `/.well-known/tresor-trust-bundle` serves; None for nothing.
        nonces_per_minute: fresh evidence per caller's address.
    """

    def __init__(
        self, key: BoundKey, keys: AttestedKeys | None, trust_bundle_file: Path | None, *, nonces_per_minute: int
    ) -> None:
        self._key = key
        self._keys = keys
        self._trust_bundle_file = trust_bundle_file
        self._limiter = _NonceLimiter(nonces_per_minute)
        self._asked: dict[str, asyncio.Future[bytes]] = {}
        # One question at a time; and hardware that is slow keeps no thread from those who wait for the store.
        self._hardware = ThreadPoolExecutor(1, "attesting")
        self._retry_at = 0.0
        self._retry_s = _FIRST_RETRY_S

    async def attestation(self, request: Request) -> None:
        """`GET /attestation`: the envelope of this process, for a nonce where one is given."""
        if self._keys is None:
            raise RequestError(404, "not_found", "this node attests nothing")
        nonce = request.query.get("nonce")
        if nonce is None:
            current = self._key.attestation
            if current is None or not self._key.may_sign:
                raise self.unavailable()
            request.respond(200, current.envelope, headers="Cache-Control: no-store\r\n")
            return
        if not _NONCE.match(nonce):
            raise RequestError(400, "invalid_field", "nonce is not 64 hexadecimal digits", param="nonce")
        wait_s = self._limiter.take(request.peer, time.monotonic())
        if wait_s is not None:
            raise RequestError(429, "rate_limit_exceeded", "too many nonces in this minute", retry_after_s=wait_s)
        envelope = await self._fresh(self._keys, nonce.lower())
        request.respond(200, envelope, headers="Cache-Control: no-store\r\n")

    async def trust_bundle(self, request: Request) -> None:
        """`GET /.well-known/tresor-trust-bundle`: the trust bundle of this router's workload, if it serves one."""
        if self._trust_bundle_file is None:
            raise RequestError(404, "not_found", "this node serves no trust bundle")
        try:
            bundle = await asyncio.to_thread(self._trust_bundle_file.read_bytes)
        except OSError as error:
            raise RequestError(
                503, "service_unavailable", "the trust bundle cannot be read", retry_after_s=5
            ) from error
        request.respond(200, bundle.strip(), "application/jose")

    async def upkeep(self) -> None:
        """Renew what binds the signing key where that is due; called about once a second."""
        now, current = time.time(), self._key.attestation
        due = current is None or now >= (current.issued_at + current.expires_at) / 2
        if self._keys is None or not due or now < self._retry_at:
            return
        await self._key.renew_attestation()
        if self._key.attestation_fault is None:
            self._retry_at, self._retry_s = 0.0, _FIRST_RETRY_S
        else:
            self._retry_at, self._retry_s = now + self._retry_s, min(2 * self._retry_s, _MAX_RETRY_S)

    def unavailable(self) -> RequestError:
        """Return the answer to whatever needs evidence that cannot be had."""
        fault = self._key.attestation_fault or "its evidence has run out"
        code = fault.partition(":")[0] if ":" in fault else "expired"
        return RequestError(
            503, "attestation_failed", f"this node cannot prove what it is now ({code})", retry_after_s=5
        )

    async def _fresh(self, keys: AttestedKeys, nonce: str) -> bytes:
        task = self._asked.get(nonce)
        if task is None:
            if len(self._asked) >= _MAX_WAITING:
                raise RequestError(503, "service_unavailable", "too many callers wait for evidence", retry_after_s=1)
            loop = asyncio.get_running_loop()
            task = self._asked[nonce] = loop.run_in_executor(self._hardware, self._make, keys, nonce)
            task.add_done_callback(lambda done: self._answered(nonce, done))
        try:
            return await asyncio.shield(task)  # one caller that leaves does not take it from another
        except KeyNotAttestedError as error:
            raise RequestError(
                503, "attestation_failed", f"evidence could not be had ({error.code})", retry_after_s=5
            ) from error

    def _answered(self, nonce: str, done: "asyncio.Future[bytes]") -> None:
        del self._asked[nonce]
        if not done.cancelled():
            done.exception()  # heard, even where everybody who asked has left

    def _make(self, keys: AttestedKeys, nonce: str) -> bytes:
        key = self._key.signing_key
        return msgspec.json.encode(keys.make_envelope(key, nonce=bytes.fromhex(nonce)))


class _NonceLimiter:
    """Counts nonces per address in fixed minutes; forgets the address that asked longest ago."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._taken: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def take(self, address: str, now: float) -> int | None:
        """Take one; return the seconds to wait where there is none left."""
        minute = int(now // _MINUTE_S)
        began, taken = self._taken.pop(address, (minute, 0))
        taken = taken if began == minute else 0
        self._taken[address] = (minute, min(taken + 1, self._per_minute + 1))
        if len(self._taken) > _MAX_CALLERS:
            self._taken.popitem(last=False)
        return None if taken < self._per_minute else max(1, int((minute + 1) * _MINUTE_S - now))
