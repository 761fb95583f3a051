"""Verify a receipt: pure functions over bytes, a key set and an instant.  No I/O.

Implements docs/spec/receipt.md section 8, whose step numbers stand in the code:

    (1) the API's JSON or a bare token      parse_receipt -> UnverifiedReceipt
    (2) one compact JWS with our header
    (3) a key from the set, by kid          verify_signature -> GenuineReceipt
    (4) the signature
    (5) schema, claims, claims among each other
    (6) times: not in the future, inside the key's life     verify_receipt -> VerifiedReceipt
    (7) what the caller holds: id, nonce, request, response, the `tresor` member in the response

Not checked here, and therefore in `VerifiedReceipt.not_checked`: every item the router itself names in `not_checked`,
any attestation, whether the key set is the router's own, and each of (7) for which the caller brought nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from tresor.encodings import parse_json
from tresor.errors import (
    Finding,
    JsonError,
    ReceiptCode,
    ReceiptMalformedError,
    ReceiptMismatchError,
    ReceiptSignatureError,
)
from tresor.jose.jwk import ReceiptKey
from tresor.jose.jws import UnverifiedJws, parse_compact, verify_compact
from tresor.limits import MAX_RECEIPT_BYTES
from tresor.receipts.appraise import Held, Omission, check_held, check_times, omissions
from tresor.receipts.claims import ReceiptClaims, parse_claims

__all__ = [
    "GenuineReceipt",
    "UnverifiedReceipt",
    "VerifiedReceipt",
    "appraise_receipt",
    "parse_receipt",
    "verify_receipt",
    "verify_signature",
]


@dataclass(frozen=True, slots=True, repr=False)
class UnverifiedReceipt:
    """A well-formed receipt token, and the id it was handed out under if it came in the API's JSON."""

    jws: UnverifiedJws
    id: str | None


@dataclass(frozen=True, slots=True, repr=False)
class GenuineReceipt:
    """A receipt that a key of the given set signed.  Nothing says yet that it is of this exchange, or in time.

    Attributes:
        claims: what the router said.
        key: the key that signed.
        id: the id it was handed out under; not signed.
    """

    claims: ReceiptClaims
    key: ReceiptKey
    id: str | None


@dataclass(frozen=True, slots=True, repr=False)
class VerifiedReceipt:
    """A receipt that a key of the given set signed and that contradicts nothing the caller holds.

    Attributes:
        claims: what the router said.
        kid: the key that signed.
        checked: every check that was made, in order.
        not_checked: what was not; as much part of the result as `checked`.
    """

    claims: ReceiptClaims
    kid: str
    checked: tuple[Finding, ...]
    not_checked: tuple[Omission, ...]


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
    return UnverifiedReceipt(jws=parse_compact(token), id=receipt_id)  # (2)


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
    return GenuineReceipt(claims=parse_claims(payload), key=key, id=receipt.id)  # (5)


def appraise_receipt(
    receipt: GenuineReceipt,
    *,
    now: datetime,
    request: bytes | None = None,
    response: bytes | None = None,
    nonce: str | None = None,
) -> VerifiedReceipt:
    """Hold a genuine receipt against the clock and the exchange.

    Args:
        receipt: what `verify_signature` found to be signed.
        now: instant of verification (aware).
        request: exact bytes of the request body, to be compared with `request_digest`.
        response: exact bytes of the response body, transfer coding removed, to be compared with `response_digest`.
        nonce: the `X-Tresor-Nonce` the caller sent.

    Raises:
        ReceiptMismatchError: it contradicts the clock, the life of its key, or what the caller holds; holds every
            contradiction.
    """
    claims, key = receipt.claims, receipt.key
    held = Held(id=receipt.id, nonce=nonce, request=request, response=response)
    findings = [
        Finding("signature", f"ES256 by {key.kid}"),
        Finding("claims", f"{claims.schema}, complete and consistent"),
        *check_times(claims, key, now),  # (6)
        *check_held(claims, held),  # (7)
    ]
    if any(finding.code is not None for finding in findings):
        raise ReceiptMismatchError(findings)
    return VerifiedReceipt(
        claims=claims, kid=key.kid, checked=tuple(findings), not_checked=tuple(omissions(claims, findings))
    )


def verify_receipt(
    receipt: UnverifiedReceipt,
    keys: Mapping[str, ReceiptKey],
    *,
    now: datetime,
    request: bytes | None = None,
    response: bytes | None = None,
    nonce: str | None = None,
) -> VerifiedReceipt:
    """Verify a receipt: `verify_signature`, then `appraise_receipt`.

    Raises:
        ReceiptMalformedError: the token's content is not a receipt.
        ReceiptSignatureError: no key of the set signed it.
        ReceiptMismatchError: it contradicts the clock, the life of its key, or what the caller holds.
    """
    return appraise_receipt(verify_signature(receipt, keys), now=now, request=request, response=response, nonce=nonce)
