"""Verify a receipt: pure functions over bytes, a key set and an instant.  No I/O.

Implements docs/spec/receipt.md section 8, whose step numbers stand in the code:

    (1) the API's JSON or a bare token      parse_receipt -> UnverifiedReceipt
    (2) one compact JWS with our header
    (3) a key from the set, by kid          verify_signature -> GenuineReceipt
    (4) the signature
    (5) schema, claims, claims among each other
    (6) times: not in the future, inside the key's life     verify_receipt -> VerifiedReceipt
    (7) what the caller holds: id, nonce, request, response, the `tresor` member in the response
    (8) the attestation blocks: the key that signed is the one that is bound; the evidence, under a trust bundle

Not checked here, and therefore in `VerifiedReceipt.not_checked`: every item the router itself names in `not_checked`,
evidence for which the caller brought no release root, whether the key set is the router's own where no evidence says
so, and each of (7) for which the caller brought nothing.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from tresor.encodings import JsonValue, digest_string, parse_json
from tresor.errors import (
    Finding,
    JsonError,
    ReceiptCode,
    ReceiptMalformedError,
    ReceiptMismatchError,
    ReceiptSignatureError,
    ReceiptUndecidedError,
)
from tresor.jose.jwk import ReceiptKey, parse_jwks
from tresor.jose.jws import UnverifiedJws, parse_compact, verify_compact
from tresor.limits import MAX_RECEIPT_BYTES
from tresor.receipts.appraise import Held, Omission, check_held, check_times, omissions
from tresor.receipts.attested import Trust, check_attestation
from tresor.receipts.claims import ReceiptClaims, parse_claims

__all__ = [
    "GenuineReceipt",
    "UnverifiedReceipt",
    "VerifiedReceipt",
    "appraise_receipt",
    "attested_key",
    "parse_receipt",
    "verify_receipt",
    "verify_signature",
]


class _EvidenceItem(msgspec.Struct, frozen=True):
    media_type: str
    data: str


@dataclass(frozen=True, slots=True, repr=False)
class UnverifiedReceipt:
    """A well-formed receipt token, and what came with it if it came in the API's JSON.

    Attributes:
        jws: the token.
        id: the id it was handed out under.
        evidence: digest to bytes of what the receipt may refer to; each digest is that of its bytes.
    """

    jws: UnverifiedJws
    id: str | None
    evidence: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, repr=False)
class GenuineReceipt:
    """A receipt that a key of the given set signed.  Nothing says yet that it is of this exchange, or in time.

    Attributes:
        claims: what the router said.
        key: the key that signed.
        id: the id it was handed out under; not signed.
        evidence: digest to bytes of what it may refer to.
    """

    claims: ReceiptClaims
    key: ReceiptKey
    id: str | None
    evidence: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, repr=False)
class VerifiedReceipt:
    """A receipt that a key of the given set signed and that contradicts nothing the caller holds.

    Attributes:
        claims: what the router said.
        kid: the key that signed.
        checked: every check that was made, in order.
        not_checked: what was not; as much part of the result as `checked`.
        simulated: the evidence it refers to is of no hardware.
    """

    claims: ReceiptClaims
    kid: str
    checked: tuple[Finding, ...]
    not_checked: tuple[Omission, ...]
    simulated: bool = False


def parse_receipt(data: bytes) -> UnverifiedReceipt:
    """Read a receipt from the API's whole JSON answer or from a bare token.

    White space around either is allowed; nothing else is.

    Raises:
        ReceiptMalformedError: neither of the two.
    """
    if len(data) > MAX_RECEIPT_BYTES:
        raise ReceiptMalformedError(
            ReceiptCode.TOKEN_TOO_LARGE, f"receipt is {len(data)} bytes, want at most {MAX_RECEIPT_BYTES}"
        )
    data = data.strip(b" \t\r\n")
    if not data.startswith(b"{"):  # (1)
        try:
            return UnverifiedReceipt(jws=parse_compact(data.decode("ascii")), id=None)  # (2)
        except UnicodeDecodeError as error:
            raise ReceiptMalformedError(ReceiptCode.TOKEN_MALFORMED, "token is not ASCII") from error
    try:
        document = parse_json(data)
    except JsonError as error:
        raise ReceiptMalformedError(ReceiptCode.JSON_MALFORMED, f"receipt: {error}") from error
    token, receipt_id = (document.get("receipt"), document.get("id")) if isinstance(document, dict) else (None, None)
    if not isinstance(token, str) or not isinstance(receipt_id, str):
        raise ReceiptMalformedError(
            ReceiptCode.TOKEN_MALFORMED, "JSON is not {id, receipt} with two strings (compact JWS only)"
        )
    evidence = _parse_evidence(document.get("evidence", {}) if isinstance(document, dict) else {})
    return UnverifiedReceipt(jws=parse_compact(token), id=receipt_id, evidence=evidence)  # (2)


def _parse_evidence(value: JsonValue) -> Mapping[str, bytes]:
    """Read the member `evidence` of the API's JSON; digests are compared here, once."""
    try:
        items = msgspec.convert(value, dict[str, _EvidenceItem])
        held = {digest: base64.b64decode(item.data, validate=True) for digest, item in items.items()}
    except (msgspec.ValidationError, binascii.Error, ValueError) as error:
        raise ReceiptMalformedError(
            ReceiptCode.TOKEN_MALFORMED, "evidence is not an object of digests to {media_type, data} in base64"
        ) from error
    for digest, data in held.items():
        if digest_string(data) != digest:
            raise ReceiptMalformedError(
                ReceiptCode.EVIDENCE_DIGEST_MISMATCH,
                f"evidence of {len(data)} bytes stands under {digest[:80]!r} and has {digest_string(data)}",
            )
    return held


def attested_key(receipt: UnverifiedReceipt) -> dict[str, ReceiptKey]:
    """Return the key that a receipt's own `router_attestation` says signed it, by kid.

    Nothing is known of it: only evidence that is accepted under a trust bundle makes it the router's.

    Raises:
        ReceiptMalformedError: the content is not a receipt, or the block's key is none.
        ReceiptUndecidedError: there is no such block, so that a key set is needed.
    """
    block = parse_claims(receipt.jws.payload).router_attestation
    if block is None:
        raise ReceiptUndecidedError(
            ReceiptCode.ROUTER_ATTESTATION_MISSING, "the receipt has no router_attestation, and no key set is given"
        )
    return parse_jwks(msgspec.json.encode({"keys": [block.receipt_key]}))


def verify_signature(receipt: UnverifiedReceipt, keys: Mapping[str, ReceiptKey]) -> GenuineReceipt:
    """Verify that a key of the set signed a receipt.

    Does not look at times, nor at the life of the key, nor at the exchange: that is `appraise_receipt`.

    Args:
        receipt: what `parse_receipt` read.
        keys: the router's key set by kid, from `tresor.jose.jwk.parse_jwks`.

    Raises:
        ReceiptSignatureError: no key of the set signed it.
        ReceiptMalformedError: the signature cannot be one, or what was signed is not a receipt.
    """
    key = keys.get(receipt.jws.kid)  # (3)
    if key is None:
        raise ReceiptSignatureError(
            ReceiptCode.KID_UNKNOWN, f"kid {receipt.jws.kid[:64]!r} is not among the {len(keys)} keys of the set"
        )
    payload = verify_compact(receipt.jws, key.public_key)  # (4)
    return GenuineReceipt(claims=parse_claims(payload), key=key, id=receipt.id, evidence=receipt.evidence)  # (5)


def appraise_receipt(
    receipt: GenuineReceipt,
    *,
    now: datetime,
    request: bytes | None = None,
    response: bytes | None = None,
    nonce: str | None = None,
    trust: Trust | None = None,
) -> VerifiedReceipt:
    """Hold a genuine receipt against the clock, the exchange and the evidence that it refers to.

    Args:
        receipt: what `verify_signature` found to be signed.
        now: instant of verification (aware).
        request: exact bytes of the request body, to be compared with `request_digest`.
        response: exact bytes of the response body, transfer coding removed, to be compared with `response_digest`.
        nonce: the `X-Tresor-Nonce` the caller sent.
        trust: what the evidence is held against; None where the caller trusts no release root.

    Raises:
        ReceiptMismatchError: it contradicts the clock, the life of its key, what the caller holds or what the caller
            trusts, or its evidence cannot be judged; holds every finding.
    """
    claims, key = receipt.claims, receipt.key
    held = Held(id=receipt.id, nonce=nonce, request=request, response=response)
    findings = [
        Finding("signature", f"ES256 by {key.kid}"),
        Finding("claims", f"{claims.schema}, complete and consistent"),
        *check_times(claims, key, now),  # (6)
        *check_held(claims, held),  # (7)
    ]
    attested = check_attestation(claims, key, receipt.evidence, trust)  # (8)
    findings += attested.findings
    if any(finding.code is not None for finding in findings):
        raise ReceiptMismatchError(findings)
    return VerifiedReceipt(
        claims=claims,
        kid=key.kid,
        checked=tuple(findings),
        not_checked=(*omissions(claims, findings), *attested.not_checked),
        simulated=attested.simulated,
    )


def verify_receipt(
    receipt: UnverifiedReceipt,
    keys: Mapping[str, ReceiptKey],
    *,
    now: datetime,
    request: bytes | None = None,
    response: bytes | None = None,
    nonce: str | None = None,
    trust: Trust | None = None,
) -> VerifiedReceipt:
    """Verify a receipt: `verify_signature`, then `appraise_receipt`.

    Raises:
        ReceiptMalformedError: the token's content is not a receipt.
        ReceiptSignatureError: no key of the set signed it.
        ReceiptMismatchError: it contradicts the clock, the life of its key, or what the caller holds.
    """
    genuine = verify_signature(receipt, keys)
    return appraise_receipt(genuine, now=now, request=request, response=response, nonce=nonce, trust=trust)
