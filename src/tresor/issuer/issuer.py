"""`ReceiptIssuer`: one thread that numbers, signs and stores the receipts of a process, in groups.

All exchanges that end while a group is being flushed wait together for the next flush.  A number is given out only when
its receipt is signed, and counts only once the group is durable: a group that fails takes its numbers back, so `seq` has
no holes, and nobody has seen a token of it.  Implements docs/spec/receipt.md sections 3 (`seq`, `iat`) and 6 (rotation).
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from queue import Empty, SimpleQueue
from typing import Final
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric import ec

from tresor.errors import KeyFileError, StoreUnavailableError, TresorError
from tresor.issuer.key_files import KeySlot
from tresor.jose.jwk import Jwk, public_jwk
from tresor.jose.jws import encode_protected_header, sign_compact
from tresor.receipts.claims import ReceiptDraft, complete_draft, encode_claims
from tresor.store.base import NewReceipt, SigningKey, Store

__all__ = ["ReceiptIssuer", "key_set"]

_log = logging.getLogger(__name__)

_MAX_GROUP: Final = 256
_GATHER_S: Final = 0.002
"""Pause before the next flush while exchanges end faster than one at a time; it makes groups larger and flushes fewer."""
_DAY_S: Final = 86_400


class _Command(Enum):
    ROTATE = auto()
    STOP = auto()


@dataclass(slots=True, repr=False)
class _Pending:
    draft: ReceiptDraft
    customer_id: int
    durable: asyncio.Future[None]


@dataclass(slots=True, repr=False)
class _Signer:
    """The key that signs now.  `last_seq` is that of the last durable receipt."""

    kid: str
    private_key: ec.EllipticCurvePrivateKey
    protected_header: bytes
    created_at: int
    last_seq: int


class ReceiptIssuer:
    """Issues the receipts of one router process.

    Args:
        store: where receipts go.
        slot: this process's place for its key.
        max_pending: receipts that may wait before `saturated` says so.
        rotation_days: age at which the key is replaced; 0 for never.
        on_group: told the size and duration (seconds) of each durable group.
        clock: returns Unix seconds.

    Raises:
        KeyFileError, StoreUnavailableError: no key could be had and made known.
    """

    def __init__(
        self,
        store: Store,
        slot: KeySlot,
        *,
        max_pending: int,
        rotation_days: int,
        on_group: Callable[[int, float], None] = lambda _size, _seconds: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._slot = slot
        self._max_pending = max_pending
        self._rotation_s = rotation_days * _DAY_S
        self._on_group = on_group
        self._clock = clock
        self._queue: SimpleQueue[_Pending | _Command] = SimpleQueue()
        self._rotate = threading.Event()
        self._rotation_handled = 0
        self._in_doubt = False
        self._signer = self._first_signer()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="receipt-issuer", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<ReceiptIssuer {self._signer.kid} waiting={self._queue.qsize()}>"

    @property
    def saturated(self) -> bool:
        """Whether so many receipts wait that no further exchange should begin."""
        return self._queue.qsize() >= self._max_pending

    @property
    def kid(self) -> str:
        """Id of the key that signs now."""
        return self._signer.kid

    def issue(self, draft: ReceiptDraft, customer_id: int) -> asyncio.Future[None]:
        """Have a receipt signed and stored.

        Returns:
            A future that is done when the receipt is durable, or fails with `StoreUnavailableError`.  Cancelling it does
            not stop the receipt.
        """
        durable = self._loop.create_future()
        self._queue.put(_Pending(draft, customer_id, durable))
        return durable

    def consider_rotation(self) -> None:
        """Replace the key if its age or an operator asks for it; blocking, called about once a second."""
        asked_at = self._store.rotation_requested_at()
        asked = asked_at >= self._signer.created_at and asked_at != self._rotation_handled
        aged = self._rotation_s > 0 and self._clock() - self._signer.created_at >= self._rotation_s
        if asked or aged:
            self._rotation_handled = asked_at
            self._rotate.set()
            self._queue.put(_Command.ROTATE)

    async def close(self) -> None:
        """Store what waits, and stop."""
        self._queue.put(_Command.STOP)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while True:
            first = self._queue.get()
            if first is _Command.STOP:
                return
            group, stop = self._gather(first)
            if self._rotate.is_set():
                self._replace_signer()
            if group:
                self._loop.call_soon_threadsafe(_settle, group, self._store_group(group))
            if stop:
                return

    def _gather(self, first: _Pending | _Command) -> tuple[list[_Pending], bool]:
        """Return the receipts that wait by now, and whether the issuer is to stop behind them."""
        if not self._queue.empty():
            time.sleep(_GATHER_S)
        group = [first] if isinstance(first, _Pending) else []
        while len(group) < _MAX_GROUP:
            try:
                item = self._queue.get_nowait()
            except Empty:
                break
            if item is _Command.STOP:
                return group, True
            if isinstance(item, _Pending):
                group.append(item)
        return group, False

    def _store_group(self, group: list[_Pending]) -> TresorError | None:
        began = time.perf_counter()
        try:
            if self._in_doubt:
                self._signer.last_seq = self._registered(self._signer.private_key).last_seq
                self._in_doubt = False
            signer = self._signer
            now = int(self._clock())
            receipts = [
                self._sign(signer, pending, now, seq) for seq, pending in enumerate(group, start=signer.last_seq + 1)
            ]
            self._store.append_receipts(receipts)
        except StoreUnavailableError as error:
            self._in_doubt = True
            _log.error("receipts not stored", extra={"receipts": len(group), "fault": str(error)})
            return error
        except Exception:  # whatever it was, the exchanges that wait must hear of it
            self._in_doubt = True
            _log.exception("receipts not stored")
            return StoreUnavailableError("the receipt could not be made")
        signer.last_seq += len(group)
        self._on_group(len(group), time.perf_counter() - began)
        return None

    @staticmethod
    def _sign(signer: _Signer, pending: _Pending, now: int, seq: int) -> NewReceipt:
        claims = complete_draft(pending.draft, iat=now, seq=seq)
        return NewReceipt(
            id=UUID(claims.jti),
            customer_id=pending.customer_id,
            kid=signer.kid,
            seq=seq,
            issued_at=now,
            token=sign_compact(signer.private_key, signer.protected_header, encode_claims(claims)),
        )

    def _first_signer(self) -> _Signer:
        """Go on with the key of this slot if the store knows it and it is not retired; otherwise make one.

        A key file that outlived its store is never used again: its numbers would begin anew.
        """
        private_key = self._slot.load()
        if private_key is not None:
            kid = public_jwk(private_key.public_key()).kid
            known = next((key for key in self._store.signing_keys() if key.kid == kid), None)
            if known is not None and known.retired_at is None:
                return self._signer_of(private_key)
        return self._signer_of(self._slot.make())

    def _replace_signer(self) -> None:
        """Rotate between two groups: the new key is known to the store before it signs, the old one stays known."""
        old = self._signer
        self._rotate.clear()
        try:
            self._signer = self._signer_of(self._slot.make())
            self._in_doubt = False
            self._store.retire_signing_key(old.kid, now=int(self._clock()))
        except (KeyFileError, StoreUnavailableError) as error:
            _log.error("signing key not replaced or not retired", extra={"kid": old.kid, "fault": str(error)})
        else:
            _log.info("signing key replaced", extra={"kid": self._signer.kid, "retired": old.kid})

    def _signer_of(self, private_key: ec.EllipticCurvePrivateKey) -> _Signer:
        known = self._registered(private_key)
        return _Signer(
            kid=known.kid,
            private_key=private_key,
            protected_header=encode_protected_header(known.kid),
            created_at=known.created_at,
            last_seq=known.last_seq,
        )

    def _registered(self, private_key: ec.EllipticCurvePrivateKey) -> SigningKey:
        jwk = public_jwk(private_key.public_key())
        return self._store.register_signing_key(jwk.kid, jwk.x, jwk.y, now=int(self._clock()))


def _settle(group: list[_Pending], error: TresorError | None) -> None:
    for pending in group:
        if not pending.durable.done():
            if error is None:
                pending.durable.set_result(None)
            else:
                pending.durable.set_exception(error)


def key_set(store: Store) -> list[Jwk]:
    """Return every receipt key ever used with this store, as `GET /.well-known/jwks.json` shows them; blocking."""
    return [
        Jwk(
            kty="EC",
            crv="P-256",
            x=key.x,
            y=key.y,
            kid=key.kid,
            alg="ES256",
            use="sig",
            iat=key.created_at,
            exp=key.retired_at,
        )
        for key in store.signing_keys()
    ]
