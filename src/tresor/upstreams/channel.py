"""The attested channel to one upstream: evidence first, then a pin, then prompts.

    UNVERIFIED   accepted -> VERIFIED     not accepted -> REFUSED
    VERIFIED     renewed -> VERIFIED      expired, or another TLS key -> UNVERIFIED
    REFUSED      accepted later -> VERIFIED

The upstream is asked over a connection of the pool, with a fresh nonce and without the operator's key; what it answers
is appraised in a thread, for this very connection.  A renewal that fails leaves what was verified as it is, until that
expires.  Implements docs/spec/attestation.md section 9.
"""

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from tresor import __version__
from tresor.attestation.binding import NONCE_BYTES
from tresor.attestation.blocks import ChannelBinding, EvidenceReference, InferenceAttestation
from tresor.attestation.envelope import TRUST_BUNDLE
from tresor.attestation.evidence import Collateral, Need
from tresor.attestation.hop import (
    TRUST_BUNDLE_TARGET,
    HopAnswer,
    HopAppraisal,
    HopKind,
    HopPolicy,
    appraise_hop,
    hop_needs,
    hop_target,
)
from tresor.attestation.results import Claim, Claims
from tresor.encodings import digest_string, rfc3339
from tresor.errors import UpstreamError
from tresor.issuer.keys import AttestationBlock
from tresor.store.base import EvidenceItem

__all__ = ["Asking", "AttestedChannel", "ChannelState", "Endorse", "Standing", "unattested"]

_log = logging.getLogger(__name__)

Endorse = Callable[[Callable[[Collateral], tuple[Need, ...]], Collateral], Collateral]
"""Given what is needed besides what is at hand, and what is at hand, returns all that is at hand then; blocking."""

_FIRST_RETRY_S: Final = 1.0
_MAX_RETRY_S: Final = 60.0
_RESTLESS_S: Final = 5.0
"""A TLS key that changes twice within this time is not asked about again before it has passed."""
_MAX_DETAIL_CHARS: Final = 500
_ALL: Final = ("cpu_tee", "gpu_tee", "tcb", "workload", "revocation", "tls_binding")


class ChannelState(StrEnum):
    """Where a channel stands."""

    UNVERIFIED = "unverified"
    VERIFIED = "verified"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, repr=False)
class Standing:
    """What is known of the upstream behind a connection, for receipts and for callers' demands.

    Attributes:
        block: the claim `inference_attestation`.
        proven: names of the claims that are proven.
        not_checked: what was not established, in the words of docs/spec/receipt.md section 4.
        pin: SHA-256 of the SubjectPublicKeyInfo that connections must have, 32 bytes; None for none.
        renew_at: Unix seconds from which it is to be renewed.
        expires_at: Unix seconds from which it counts no more.
    """

    block: AttestationBlock
    proven: frozenset[str]
    not_checked: tuple[str, ...]
    pin: bytes | None
    renew_at: float
    expires_at: float


def unattested(provider: str) -> Standing:
    """Return the standing of an upstream whose operator wrote `attestation = "none"`."""
    unknown = Claim(status="unknown", source="operator", reason="the operator asks for no evidence")
    block = InferenceAttestation(
        provider=provider,
        tee="none",
        status="unverified",
        required=False,
        origin="none",
        verified_at=None,
        expires_at=None,
        verifier=f"tresor/{__version__}",
        channel_binding=ChannelBinding(type="none"),
        measurements={},
        claims=Claims(cpu_tee=unknown, gpu_tee=unknown, tcb=unknown, workload=unknown),
        evidence=(),
    )
    never = float("inf")
    return Standing(AttestationBlock(msgspec.json.encode(block), (), never), frozenset(), _ALL, None, never, never)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How an upstream is asked.

    Attributes:
        kind: which protocol it speaks.
        policy: what is demanded of it.
        trust_bundle: of a Tresor node: the bundle to use; None to take the one it serves.
        max_age_s: longest time for which an answer counts.
        get: fetches paths of the upstream over one new connection and returns the connection's SPKI digest with the
            bodies; raises `UpstreamError`.
        endorse: gets endorsements.
    """

    kind: HopKind
    policy: HopPolicy
    trust_bundle: bytes | None
    max_age_s: float
    get: Callable[[tuple[str, ...]], Awaitable[tuple[bytes, tuple[bytes, ...]]]]
    endorse: Endorse


class _Appraised(NamedTuple):
    """An answer, the connection it came over, and what was found out, at Unix seconds `at`."""

    answer: HopAnswer
    spki_sha256: bytes
    appraisal: HopAppraisal
    collateral: Collateral
    at: float


class AttestedChannel:
    """Verifies one upstream and keeps the result while it is good.

    Args:
        provider: its name, for receipts.
        asking: how it is asked.
        on_change: called when connections that were opened before must not be used any more.
        clock: returns Unix seconds.

    Attributes:
        state: where the channel stands.
        reason: code of why the last attempt failed, which a standing may outlive; None where it did not.
    """

    def __init__(
        self,
        provider: str,
        asking: Asking,
        *,
        on_change: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.state = ChannelState.UNVERIFIED
        self.reason: str | None = None
        self._provider = provider
        self._asking = asking
        self._on_change = on_change
        self._clock = clock
        self._standing: Standing | None = None
        self._verification: asyncio.Task[None] | None = None
        self._retry_at = 0.0
        self._retry_s = _FIRST_RETRY_S
        self._changed_at = float("-inf")
        self._closed = False
        self._min_bundle_version = 0  # of a Tresor node: versions only grow

    def __repr__(self) -> str:
        return f"<AttestedChannel {self._provider} {self.state} {self.reason or ''}>"

    @property
    def standing(self) -> Standing | None:
        """What is verified and has not expired."""
        standing = self._standing
        if standing is not None and self._clock() >= standing.expires_at:
            self._standing = standing = None
            self._on_change()
            if self.state is ChannelState.VERIFIED:
                self.state = ChannelState.UNVERIFIED
        return standing

    async def ensure(self, timeout_s: float) -> Standing:
        """Return what is verified, verifying first where nothing is.

        Raises:
            UpstreamError: the upstream is refused, or could not be verified in time; nothing was sent to it but the
                question.
        """
        standing = self.standing
        if standing is None:
            if self._verification is None and (self._closed or self._clock() < self._retry_at):
                raise UpstreamError("attestation_failed", f"the upstream's evidence is refused: {self.reason}")
            done, _ = await asyncio.wait({self._verify()}, timeout=timeout_s)  # it goes on without this caller
            if not done:
                raise UpstreamError("attestation_failed", "the upstream was not verified in time")
            standing = self.standing
        if standing is None:
            raise UpstreamError("attestation_failed", f"the upstream's evidence is refused: {self.reason}")
        return standing

    def key_changed(self) -> None:
        """Take note that a connection ended at another key than the one that is bound: verify anew.

        At once, unless it happens again and again, as behind a balancer of several nodes: then after a rest.
        """
        now = self._clock()
        restless, self._changed_at = now - self._changed_at < _RESTLESS_S, now
        _log.warning("upstream's TLS key changed", extra={"provider": self._provider})
        self._standing = None
        self.state = ChannelState.UNVERIFIED
        self._on_change()
        self._retry_at = now + _RESTLESS_S if restless else 0.0
        if not self._closed and not restless:
            self._verify()

    def upkeep(self) -> None:
        """Begin whatever is due: the first verification, a renewal, another attempt; called about once a second."""
        now = self._clock()
        standing = self.standing
        if not self._closed and now >= self._retry_at and (standing is None or now >= standing.renew_at):
            self._verify()

    async def close(self) -> None:
        """Stop verifying, for good."""
        self._closed = True
        if self._verification is not None:
            self._verification.cancel()
            await asyncio.gather(self._verification, return_exceptions=True)

    def _verify(self) -> "asyncio.Task[None]":
        """Return the verification that runs, begun where none does."""
        if self._verification is None:
            self._verification = asyncio.create_task(self._run())
        return self._verification

    async def _run(self) -> None:
        try:
            await self._attempt()
        except UpstreamError as error:
            self._failed(error.reason, str(error))
        except Exception as error:  # noqa: BLE001 - whatever it was, the channel must not be taken for verified
            self._failed("internal_error", type(error).__name__)
        finally:
            self._verification = None

    async def _attempt(self) -> None:
        asking, nonce = self._asking, secrets.token_bytes(NONCE_BYTES)
        wants_bundle = asking.kind == "tresor" and asking.trust_bundle is None
        targets = (hop_target(asking.kind, nonce), *([TRUST_BUNDLE_TARGET] if wants_bundle else []))
        spki, bodies = await asking.get(targets)
        bundle = bodies[1].strip() if wants_bundle else asking.trust_bundle
        answer = HopAnswer(kind=asking.kind, document=bodies[0], nonce=nonce, trust_bundle=bundle)
        appraised = await asyncio.to_thread(self._appraise, answer, spki)
        result = appraised.appraisal.result
        if result.outcome != "accepted":
            failing = "; ".join(check.detail for check in result.checks if check.status != "ok")
            self._failed(str(result.code), failing[:_MAX_DETAIL_CHARS])
            return
        self._min_bundle_version = int(result.details.get("trust_bundle_version", 0))
        self._accepted(_standing(self._provider, asking, appraised))

    def _appraise(self, answer: HopAnswer, spki: bytes) -> "_Appraised":
        asking, now = self._asking, self._clock()
        collateral = asking.endorse(lambda held: hop_needs(answer, held), Collateral())
        floor = max(asking.policy.min_bundle_version, self._min_bundle_version)
        appraisal = appraise_hop(
            answer,
            spki_sha256=spki,
            policy=replace(asking.policy, min_bundle_version=floor),
            collateral=collateral,
            now=datetime.fromtimestamp(now, UTC),
        )
        return _Appraised(answer, spki, appraisal, collateral, now)

    def _accepted(self, standing: Standing) -> None:
        changed = self._standing is None or self._standing.pin != standing.pin
        self._standing = standing
        simulated = "cpu_tee" not in standing.proven
        self.state = ChannelState.UNVERIFIED if simulated else ChannelState.VERIFIED
        self.reason = None
        self._retry_at, self._retry_s = 0.0, _FIRST_RETRY_S
        if changed:
            self._on_change()

    def _failed(self, code: str, detail: str) -> None:
        """Take note of an attempt that failed; what was verified before stays, while it lasts."""
        self._retry_at = self._clock() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _MAX_RETRY_S)
        if self.reason != code:
            _log.error("upstream not verified", extra={"provider": self._provider, "code": code, "fault": detail})
        self.reason = code
        if self.standing is None:
            self.state = ChannelState.REFUSED


def _standing(provider: str, asking: Asking, accepted: "_Appraised") -> Standing:
    """Return what an accepted answer amounts to."""
    answer, result, now = accepted.answer, accepted.appraisal.result, accepted.at
    expires_at = now + asking.max_age_s
    if result.valid_until is not None:
        expires_at = min(expires_at, result.valid_until.timestamp())
    parts = [("answer", "application/json", answer.document)]
    if answer.trust_bundle is not None:
        parts.append((TRUST_BUNDLE, "application/jose", answer.trust_bundle))
    parts += [("collateral", kind, item) for kind, item in accepted.collateral.documents()]
    block = InferenceAttestation(
        provider=provider,
        tee=result.tee,
        status="unverified" if result.simulated else "verified",
        required=True,
        origin=asking.kind,
        verified_at=rfc3339(now),
        expires_at=rfc3339(expires_at),
        verifier=f"tresor/{__version__}",
        channel_binding=accepted.appraisal.channel,
        measurements=dict(result.measurements),
        claims=result.claims,
        nonce=answer.nonce.hex(),
        exceptions=result.exceptions,
        evidence=tuple(
            EvidenceReference(type=role, digest=digest_string(data), media_type=media_type, size=len(data))
            for role, media_type, data in parts
        ),
    )
    evidence = tuple(EvidenceItem(hashlib.sha256(data).digest(), kind, data) for _, kind, data in parts)
    proven = frozenset(name for name in Claims.__struct_fields__ if getattr(result.claims, name).status == "proven")
    open_items = [name for name in ("cpu_tee", "gpu_tee", "tcb", "workload") if name not in proven]
    if "revocation" in result.not_checked or result.simulated:
        open_items.append("revocation")
    return Standing(
        block=AttestationBlock(msgspec.json.encode(block), evidence, expires_at),
        proven=proven,
        not_checked=tuple(open_items),
        pin=accepted.spki_sha256,
        renew_at=now + (expires_at - now) / 2,
        expires_at=expires_at,
    )
