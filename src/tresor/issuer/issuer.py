"""`ReceiptIssuer`: numbers, signs and stores the receipts of a process, in groups.

A receipt is signed when its exchange ends, with the number that is next if all goes well.  All receipts that end while
a group is being flushed go into the store together with the next one.  A number counts only once its group is durable:
a group that fails gives its numbers back, and what was numbered behind it is signed again before it is stored.  So
`seq` has no holes, and nobody has seen a token that was not stored.  All state belongs to the event loop; one thread
does nothing but wait for the store.  Implements docs/spec/receipt.md sections 3 (`seq`, `iat`) and 6 (rotation).
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from tresor.errors import KeyFileError, KeyNotAttestedError, StoreUnavailableError
from tresor.issuer.keys import AttestationBlock, KeyAttestation, KeySource
from tresor.issuer.store_thread import StoreThread
from tresor.jose.jwk import Jwk, public_jwk
from tresor.jose.jws import encode_protected_header, sign_jws
from tresor.receipts.claims import ReceiptDraft, encode_claims
from tresor.store.base import NewReceipt, SigningKey, Store

__all__ = ["ReceiptIssuer", "key_set"]

_log = logging.getLogger(__name__)

_MAX_GROUP: Final = 256
_GATHER_S: Final = 0.002
"""How long a group may grow before it is flushed."""
_IDLE_TURN_S: Final = 0.0001
"""A turn of the loop shorter than this had nothing to do."""
_REFUSED_S: Final = 5.0
"""How long no receipts are promised behind a group that the store refused."""
_DAY_S: Final = 86_400
_EVIDENCE_MARGIN_S: Final = 3_600
"""Evidence is kept for receipts issued this much later: a stream may outlast what bound its channel."""


@dataclass(slots=True, repr=False)
class _Signer:
    """The key that signs now, and what binds it.

    Attributes:
        last_seq: number of the last durable receipt.
        attestation: evidence that binds the key; None where nothing is attested, or nothing is yet.
    """

    kid: str
    private_key: ec.EllipticCurvePrivateKey
    protected_header: bytes
    created_at: int
    last_seq: int
    attestation: KeyAttestation | None = None

    def sign(self, pending: "_Pending", *, issued_at: int, seq: int) -> NewReceipt:
        """Sign a receipt as number `seq` of this key."""
        draft = pending.draft
        pending.router = None if self.attestation is None else self.attestation.block
        payload = encode_claims(draft, iat=issued_at, seq=seq, members=_members(pending.router, pending.inference))
        return NewReceipt(
            id=draft.jti,
            customer_id=pending.customer_id,
            kid=self.kid,
            seq=seq,
            issued_at=issued_at,
            jws=sign_jws(self.private_key, self.protected_header, payload),
        )


@dataclass(slots=True, repr=False)
class _Pending:
    draft: ReceiptDraft
    inference: AttestationBlock | None
    customer_id: int
    durable: asyncio.Future[None]
    router: AttestationBlock | None = None
    receipt: NewReceipt = field(init=False)


class ReceiptIssuer:
    """Issues the receipts of one router process.

    Args:
        store: where receipts go.
        keys: where this process has its keys from.
        max_pending: receipts that may wait before `saturated` says so.
        rotation_days: age at which the key is replaced; 0 for never.
        on_group: told the size and duration (seconds) of each durable group.
        clock: returns Unix seconds.

    Raises:
        KeyFileError, StoreUnavailableError: no key could be had and made known.

    Attributes:
        in_flight: tells how many requests are being served, those included that wait for their receipt; no group waits
            for more than half of them.
        attestation_fault: why evidence could not be had when it was asked for last; None where it could.
    """

    def __init__(
        self,
        store: Store,
        keys: KeySource,
        *,
        max_pending: int,
        rotation_days: int,
        on_group: Callable[[int, float], None] = lambda _size, _seconds: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._keys = keys
        self._max_pending = max_pending
        self._rotation_s = rotation_days * _DAY_S
        self._on_group = on_group
        self.in_flight: Callable[[], int] = lambda: _MAX_GROUP
        self._clock = clock
        self._rotation_handled = 0
        self.attestation_fault: str | None = None
        self._signer = self._first_signer()
        self._last_given = self._signer.last_seq
        self._waiting: deque[_Pending] = deque()
        self._work = asyncio.Event()
        self._closing = False
        self._successor: _Signer | None = None
        self._in_doubt = False
        self._refused_until = 0.0  # `loop.time()`
        self._to_retire: set[str] = set()
        self._loop = asyncio.get_running_loop()
        self._thread = StoreThread()
        self._task = self._loop.create_task(self._run())

    def __repr__(self) -> str:
        return f"<ReceiptIssuer {self._signer.kid} waiting={len(self._waiting)}>"

    @property
    def saturated(self) -> bool:
        """Whether so many receipts wait that no further exchange should begin."""
        return len(self._waiting) >= self._max_pending

    @property
    def ready(self) -> bool:
        """Whether receipts are signed and stored: the issuer runs, and the store took the last ones.

        A store that refused some is given time to recover; then only further receipts can show whether it did.
        """
        return not self._task.done() and self._loop.time() >= self._refused_until

    @property
    def attestation(self) -> KeyAttestation | None:
        """What binds the key that signs now; None where nothing does."""
        return self._signer.attestation

    @property
    def signing_key(self) -> ec.EllipticCurvePrivateKey:
        """The key that signs now, for whoever has it bound anew."""
        return self._signer.private_key

    @property
    def may_sign(self) -> bool:
        """Whether evidence binds the key now, where it must."""
        attestation = self._signer.attestation
        return not self._keys.attested or (attestation is not None and self._clock() < attestation.expires_at)

    def issue(
        self, draft: ReceiptDraft, customer_id: int, *, inference_attestation: AttestationBlock | None = None
    ) -> asyncio.Future[None]:
        """Have a receipt signed and stored.

        Args:
            draft: what it says.
            customer_id: whose it is.
            inference_attestation: the claim of that name; None for none.

        Returns:
            A future that is done when the receipt is durable, or fails with `StoreUnavailableError`.  Cancelling it
            does not stop the receipt.

        Raises:
            StoreUnavailableError: the issuer is closed, or broke down.
        """
        if self._task.done():
            raise StoreUnavailableError("the issuer has stopped")
        if not self.may_sign:
            raise StoreUnavailableError("the evidence that binds the signing key has run out")
        self._last_given += 1
        pending = _Pending(draft, inference_attestation, customer_id, self._loop.create_future())
        pending.receipt = self._signer.sign(pending, issued_at=int(self._clock()), seq=self._last_given)
        self._waiting.append(pending)
        self._work.set()
        return pending.durable

    async def consider_rotation(self) -> None:
        """Replace the key if its age or an operator asks for it; called about once a second.

        Key and evidence are made here, where nothing waits for them; the key signs from between two groups on.

        Raises:
            StoreUnavailableError: the store cannot say whether one was asked for.
        """
        await asyncio.to_thread(self._retire)  # what could not be, when its key was replaced
        asked_at = await asyncio.to_thread(self._store.rotation_requested_at)
        asked = asked_at >= self._signer.created_at and asked_at != self._rotation_handled
        aged = self._rotation_s > 0 and self._clock() - self._signer.created_at >= self._rotation_s
        if not (asked or aged) or self._successor is not None:
            return
        try:
            self._successor = await asyncio.to_thread(self._make_signer)
        except (KeyFileError, KeyNotAttestedError, StoreUnavailableError) as error:  # to be tried again
            _log.error("signing key not replaced, or not retired", extra={"kid": self._signer.kid, "fault": str(error)})
            return
        self._rotation_handled = asked_at
        self._work.set()

    async def renew_attestation(self) -> None:
        """Have the key that signs bound anew; what binds it now goes on until then, while it lasts."""
        signer = self._signer
        try:
            attestation = await asyncio.to_thread(self._keys.attest, signer.private_key)
        except KeyNotAttestedError as error:
            if self.attestation_fault is None:
                _log.error("evidence not renewed", extra={"code": error.code, "fault": str(error)})
            self.attestation_fault = f"{error.code}: {error}"
            return
        self.attestation_fault = None
        if self._signer is signer:  # not replaced meanwhile, with evidence of its own
            signer.attestation = attestation

    async def close(self) -> None:
        """Store what waits, and stop.  A key that is gone with this process is retired."""
        self._closing = True
        self._work.set()
        await self._task
        if self._keys.attested:
            self._to_retire.add(self._signer.kid)
            with contextlib.suppress(StoreUnavailableError):
                await self._thread.call(self._retire)
        self._thread.close()

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            if self._successor is not None:
                await self._replace_signer(self._successor)
            if not self._waiting:
                if self._closing:
                    return
                self._work.clear()
                continue
            await self._gather()
            count = min(len(self._waiting), _MAX_GROUP)
            await self._store_group([self._waiting.popleft() for _ in range(count)])

    async def _gather(self) -> None:
        """Let a group grow while other exchanges are about to end, but not for long: fewer, larger flushes."""
        now = time.perf_counter()
        upto = now + _GATHER_S
        busy = True
        # What is served beside the group keeps the core busy while that is flushed: never wait for all of it.
        while busy and now < upto and len(self._waiting) < min(_MAX_GROUP, (self.in_flight() + 1) // 2):
            began = now
            await asyncio.sleep(0)  # one turn of the loop
            now = time.perf_counter()
            busy = now - began > _IDLE_TURN_S

    async def _store_group(self, group: list[_Pending]) -> None:
        began = time.perf_counter()
        fault: StoreUnavailableError | None = None
        try:
            if self._in_doubt:
                known = await self._thread.call(self._register, self._signer.private_key)
                self._signer.last_seq = known.last_seq
                self._in_doubt = False
            receipts = self._in_order(group)
            if unstored := _unstored(group):
                await self._thread.call(self._store_evidence, unstored)
            await self._thread.call(self._store.append_receipts, receipts)
        except StoreUnavailableError as error:
            fault = error
        except Exception as error:  # noqa: BLE001 - whatever it was, the exchanges that wait must hear of it
            fault = StoreUnavailableError(f"the receipts could not be stored: {type(error).__name__}")
        if fault is None:
            self._signer.last_seq += len(group)
            self._refused_until = 0.0
            self._on_group(len(group), time.perf_counter() - began)
        else:
            self._in_doubt = True
            self._refused_until = self._loop.time() + _REFUSED_S
            _log.error("receipts not stored", extra={"receipts": len(group), "fault": str(fault)})
        self._last_given = self._signer.last_seq + len(self._waiting)
        for pending in group:
            if not pending.durable.done():
                if fault is None:
                    pending.durable.set_result(None)
                else:
                    pending.durable.set_exception(fault)

    def _in_order(self, group: list[_Pending]) -> list[NewReceipt]:
        """Return the group's receipts, numbered on from the last durable one.

        After a group that failed, and after a rotation, the numbers given ahead are not the next ones any more.
        """
        signer = self._signer
        receipts = []
        for seq, pending in enumerate(group, start=signer.last_seq + 1):
            receipt = pending.receipt
            if receipt.seq != seq or receipt.kid != signer.kid:
                receipt = signer.sign(pending, issued_at=receipt.issued_at, seq=seq)
            receipts.append(receipt)
        return receipts

    async def _replace_signer(self, successor: _Signer) -> None:
        """Rotate between two groups: the new key is known to the store before it signs, the old one stays known."""
        old, self._signer, self._successor = self._signer, successor, None
        self._last_given = successor.last_seq + len(self._waiting)
        self._in_doubt = False
        self._to_retire.add(old.kid)
        _log.info("signing key replaced", extra={"kid": successor.kid, "retired": old.kid})
        try:
            await self._thread.call(self._retire)
        except StoreUnavailableError as error:  # to be tried again
            _log.error("signing key not replaced, or not retired", extra={"kid": old.kid, "fault": str(error)})

    def _retire(self) -> None:
        for kid in tuple(self._to_retire):
            self._store.retire_signing_key(kid, now=int(self._clock()))
            self._to_retire.discard(kid)

    def _first_signer(self) -> _Signer:
        """Go on with the key of this slot if the store knows it and wants it; otherwise make one.

        A key that the store does not know signed receipts of another store, or of this one before a backup of it was
        restored: it signs no more, for its numbers would begin anew, but its public half becomes known.
        """
        self._rotation_handled = self._store.rotation_requested_at()
        if (loaded := self._keys.load()) is not None:
            private_key, made_at = loaded
            jwk = public_jwk(private_key.public_key())
            known = next((key for key in self._store.signing_keys() if key.kid == jwk.kid), None)
            if known is None:
                known = self._store.register_signing_key(jwk.kid, jwk.x, jwk.y, now=made_at)
            elif known.retired_at is None and known.created_at > self._rotation_handled:
                return _signer(private_key, known)
            self._store.retire_signing_key(known.kid, now=int(self._clock()))
        if not self._keys.attested:
            return self._make_signer()
        # Hardware may take its time, or never answer: whoever runs this process asks for evidence when it can wait.
        private_key = self._keys.make()
        return _signer(private_key, self._register(private_key))

    def _make_signer(self) -> _Signer:
        """Make a key and the evidence that binds it, together."""
        private_key = self._keys.make()
        attestation = self._keys.attest(private_key)
        signer = _signer(private_key, self._register(private_key))
        signer.attestation = attestation
        return signer

    def _store_evidence(self, blocks: list[AttestationBlock]) -> None:
        """Store what receipts are about to refer to, for as long as they will, and some more."""
        until = int(self._clock()) + _EVIDENCE_MARGIN_S
        for block in blocks:
            used_until = max(until, int(block.expires_at) + _EVIDENCE_MARGIN_S)
            self._store.put_evidence(block.evidence, used_until=used_until)
            block.stored_until = used_until

    def _register(self, private_key: ec.EllipticCurvePrivateKey) -> SigningKey:
        jwk = public_jwk(private_key.public_key())
        return self._store.register_signing_key(jwk.kid, jwk.x, jwk.y, now=int(self._clock()))


def _signer(private_key: ec.EllipticCurvePrivateKey, known: SigningKey) -> _Signer:
    return _Signer(
        kid=known.kid,
        private_key=private_key,
        protected_header=encode_protected_header(known.kid),
        created_at=known.created_at,
        last_seq=known.last_seq,
    )


def _members(router: AttestationBlock | None, inference: AttestationBlock | None) -> bytes:
    """Return the blocks as members of the payload, each with a comma behind it."""
    own = b"" if router is None else b'"router_attestation":%b,' % router.json
    return own if inference is None else own + b'"inference_attestation":%b,' % inference.json


def _unstored(group: list[_Pending]) -> list[AttestationBlock]:
    """Return the blocks that receipts of the group carry and whose evidence the store would not keep for them."""
    last = max(pending.receipt.issued_at for pending in group)
    blocks = {
        id(block): block for pending in group for block in (pending.router, pending.inference) if block is not None
    }
    return [block for block in blocks.values() if block.evidence and last >= block.stored_until]


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
