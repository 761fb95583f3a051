"""The attestation blocks of receipts: what the router showed of itself, and of the upstream that served.

Evidence stands in them by digest; the bytes are kept once beside the receipts.  Implements docs/spec/attestation.md
sections 6.3 and 9.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec

from tresor.attestation.results import Claims, PolicyException

__all__ = [
    "MAX_EVIDENCE",
    "ChannelBinding",
    "EvidenceReference",
    "Hex32",
    "InferenceAttestation",
    "ReceiptKeyJwk",
    "RouterAttestation",
    "Tee",
    "Text",
    "Time",
    "Word",
    "digests_of",
    "instant_of",
]

Tee = Literal["sev-snp", "tdx", "azure-sev-snp", "azure-tdx", "simulated"]
Digest = Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Word = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}\Z")]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
Coordinate = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{43}\Z")]
Time = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?Z\Z")]
MAX_EVIDENCE = 64
_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


class EvidenceReference(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that stand elsewhere: `digest` is their SHA-256, `type` the role they play, `size` their length."""

    type: Word
    digest: Digest
    media_type: Annotated[str, msgspec.Meta(min_length=3, max_length=128)]
    size: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class ReceiptKeyJwk(msgspec.Struct, frozen=True, kw_only=True):
    """The P-256 public key that signs receipts (RFC 7517); coordinates in base64url."""

    kty: Literal["EC"]
    crv: Literal["P-256"]
    x: Coordinate
    y: Coordinate
    kid: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class RouterAttestation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Claim `router_attestation`: the envelope that was current when the receipt was issued, bulky parts by digest."""

    schema: Literal["tresor.attestation/v1"]
    workload: Word
    tee: Tee
    tls_spki_sha256: Hex32
    workload_identity_tag: Hex32
    issued_at: Time
    max_age_seconds: Annotated[int, msgspec.Meta(ge=1, le=86_400)]
    receipt_key: ReceiptKeyJwk
    evidence: Annotated[tuple[EvidenceReference, ...], msgspec.Meta(min_length=1, max_length=MAX_EVIDENCE)]
    trust_bundle_url: Text | None = None
    nonce: Hex32 | None = None


class ChannelBinding(msgspec.Struct, frozen=True, kw_only=True):
    """What ties a connection to evidence: the SHA-256 of its SubjectPublicKeyInfo, or nothing."""

    type: Literal["tls_spki_sha256", "none"]
    spki_sha256: Hex32 | None = None


class InferenceAttestation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Claim `inference_attestation`: what was shown of the upstream that served (contract section 7).

    Attributes:
        status: `verified` only where evidence was accepted and the connection was pinned to it.
        required: whether a prompt could not have left without it.
        origin: the protocol by which the upstream was asked: `tresor`, `tinfoil`, `dstack`, `aci`, or `none`.
        verifier: program and version that appraised.
        nonce: the challenge that was sent.
    """

    provider: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}\Z")]
    tee: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    status: Literal["verified", "unverified"]
    required: bool
    origin: Word
    verified_at: Time | None
    expires_at: Time | None
    verifier: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    channel_binding: ChannelBinding
    measurements: dict[str, str]
    claims: Claims
    evidence: Annotated[tuple[EvidenceReference, ...], msgspec.Meta(max_length=MAX_EVIDENCE)]
    nonce: Hex32 | None = None
    exceptions: tuple[PolicyException, ...] = ()


def instant_of(time: str) -> datetime:
    """Return the instant that a `Time` names.

    Raises:
        ValueError: there is no such day or hour, or it is too far from now to reckon with.
    """
    instant = datetime.fromisoformat(time)
    if not _FIRST <= instant < _LAST:
        raise ValueError(f"{time} is not from {_FIRST.year} to {_LAST.year - 1}")
    return instant


def digests_of(*blocks: RouterAttestation | InferenceAttestation | None) -> Sequence[str]:
    """Return the digests that the blocks refer to, each once."""
    return tuple(dict.fromkeys(item.digest for block in blocks if block is not None for item in block.evidence))
