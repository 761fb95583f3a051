"""Verify a receipt: one pure function over bytes, a key set and an instant.  No I/O.

Implements docs/spec/receipt.md section 8, whose step numbers stand in the code:

    (1) the API's JSON or a bare token      parse_receipt -> UnverifiedReceipt
    (2) one compact JWS with our header
    (3) a key from the set, by kid
    (4) the signature
    (5) schema, claims, claims among each other
    (6) times: not in the future, inside the key's life
    (7) what the caller holds: id, nonce, request, response, the `tresor` member in the response

Not checked here, and therefore in `VerifiedReceipt.not_checked`: every item the router itself names in `not_checked`,
whether the key set is the router's own, and each of (7) for which the caller brought nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import msgspec

from tresor.encodings import JsonValue, digest_string, parse_json
from tresor.errors import (
    JsonError,
    ReceiptCode,
    ReceiptMalformedError,
    ReceiptMismatchError,
    ReceiptSignatureError,
)
from tresor.jose.jwk import ReceiptKey
from tresor.jose.jws import UnverifiedJws, parse_compact, verify_compact
from tresor.receipts.claims import ReceiptClaims, parse_claims
from tresor.wire.sse import event_data, split_events

__all__ = ["CLOCK_SKEW_S", "UnverifiedReceipt", "VerifiedReceipt", "parse_receipt", "verify_receipt"]

CLOCK_SKEW_S = 60
"""Two honest clocks may differ by this much."""


@dataclass(frozen=True, slots=True, repr=False)
class UnverifiedReceipt:
    """A well-formed receipt token, and the id it was handed out under if it came in the API's JSON."""

    jws: UnverifiedJws
    id: str | None


@dataclass(frozen=True, slots=True, repr=False)
class VerifiedReceipt:
    """A receipt that a key of the given set signed and that contradicts nothing the caller holds.

    Attributes:
        claims: what the router said.
        kid: the key that signed.
        checked: what was checked, a line each, in order.
        not_checked: what was not, a line each; as much part of the result as `checked`.
    """

    claims: ReceiptClaims
    kid: str
    checked: tuple[str, ...]
    not_checked: tuple[str, ...]


def parse_receipt(data: bytes) -> UnverifiedReceipt:
    """Read a receipt from the API's whole JSON answer or from a bare token.

    White space around either is allowed; nothing else is.

    Raises:
        ReceiptMalformedError: neither of the two.
    """
    data = data.strip(b" \t\r\n")
    if not data.startswith(b"{"):
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
    return UnverifiedReceipt(jws=parse_compact(token), id=receipt_id)


def verify_receipt(
    receipt: UnverifiedReceipt,
    keys: Mapping[str, ReceiptKey],
    *,
    now: datetime,
    request: bytes | None = None,
    response: bytes | None = None,
    nonce: str | None = None,
) -> VerifiedReceipt:
    """Verify a receipt.

    Args:
        receipt: what `parse_receipt` read.
        keys: the router's key set by kid, from `tresor.jose.jwk.parse_jwks`.
        now: instant of verification (aware).
        request: exact bytes of the request body, to be compared with `request_digest`.
        response: exact bytes of the response body, transfer coding removed, to be compared with `response_digest`.
        nonce: the `X-Tresor-Nonce` the caller sent.

    Raises:
        ReceiptMalformedError: the token's content is not a receipt.
        ReceiptSignatureError: no key of the set signed it.
        ReceiptMismatchError: it contradicts the clock, the life of its key, or what the caller holds.
    """
    key = keys.get(receipt.jws.kid)  # (3)
    if key is None:
        raise ReceiptSignatureError(
            ReceiptCode.KID_UNKNOWN, f"kid {receipt.jws.kid[:64]!r} is not among the {len(keys)} keys of the set"
        )
    payload = verify_compact(receipt.jws, key.public_key)  # (4)
    claims = parse_claims(payload)  # (5)
    checked = [
        f"signature: ES256 by {key.kid}",
        f"claims: {claims.schema}, complete and consistent",
        *_check_times(claims, key, now),
    ]
    not_checked = [f"{item}: the router did not establish it for this exchange" for item in claims.not_checked]
    not_checked.append("key set: that it is the router's own is for you to know")
    comparisons = (
        ("id", None if receipt.id is None else _check_id(claims, receipt.id)),
        ("nonce", None if nonce is None else _check_nonce(claims, nonce)),
        ("request", None if request is None else _check_request(claims, request)),
        ("response", None if response is None else _check_response(claims, response)),
    )
    checked += [line for _, line in comparisons if line is not None]
    not_checked += [f"{name}: not given" for name, line in comparisons if line is None]
    return VerifiedReceipt(claims=claims, kid=key.kid, checked=tuple(checked), not_checked=tuple(not_checked))


def _check_times(claims: ReceiptClaims, key: ReceiptKey, now: datetime) -> list[str]:  # (6)
    if claims.iat > now.timestamp() + CLOCK_SKEW_S:
        raise ReceiptMismatchError(
            ReceiptCode.IAT_IN_FUTURE, f"iat is {claims.iat}, later than the clock's {int(now.timestamp())}"
        )
    if key.not_before is not None and claims.iat < key.not_before - CLOCK_SKEW_S:
        raise ReceiptMismatchError(
            ReceiptCode.KEY_NOT_YET_VALID, f"iat is {claims.iat}, before the key was made at {key.not_before}"
        )
    if key.not_after is not None and claims.iat > key.not_after + CLOCK_SKEW_S:
        raise ReceiptMismatchError(
            ReceiptCode.KEY_RETIRED, f"iat is {claims.iat}, after the key was retired at {key.not_after}"
        )
    if key.revoked is not None:
        raise ReceiptMismatchError(
            ReceiptCode.KEY_REVOKED,
            f"the key was revoked at {key.revoked.revoked_at}; whoever holds it can write any iat",
        )
    if key.not_before is None:
        return ["issued: not in the future; the key set does not say since when the key exists"]
    return ["issued: not in the future, inside the life of the key"]


def _check_id(claims: ReceiptClaims, held: str) -> str:  # (7)
    if held != claims.jti:
        raise ReceiptMismatchError(ReceiptCode.ID_MISMATCH, f"handed out as {held[:64]!r}, signed as {claims.jti!r}")
    return "id: that of the answer it came in"


def _check_nonce(claims: ReceiptClaims, held: str) -> str:
    if claims.nonce != held:
        raise ReceiptMismatchError(
            ReceiptCode.NONCE_MISMATCH,
            "receipt holds no nonce" if claims.nonce is None else "receipt holds another nonce",
        )
    return "nonce: the one given"


def _check_request(claims: ReceiptClaims, held: bytes) -> str:
    if (digest := digest_string(held)) != claims.request_digest:
        raise ReceiptMismatchError(
            ReceiptCode.REQUEST_DIGEST_MISMATCH,
            f"request of {len(held)} bytes is {digest}, receipt says {claims.request_digest}",
        )
    return f"request: {len(held)} bytes, {digest}"


def _check_response(claims: ReceiptClaims, held: bytes) -> str:
    if (digest := digest_string(held)) != claims.response_digest:
        raise ReceiptMismatchError(
            ReceiptCode.RESPONSE_DIGEST_MISMATCH,
            f"response of {len(held)} bytes is {digest}, receipt says {claims.response_digest}",
        )
    wanted: dict[str, JsonValue] = {
        "receipt_id": claims.jti,
        "requested_route": claims.requested_route,
        "routed_model": claims.routed_model,
        "failover": claims.failover,
    }
    for extension in _extensions(held, stream=claims.stream):
        for name, value in extension.items():
            if name in wanted and wanted[name] != value:
                raise ReceiptMismatchError(
                    ReceiptCode.RESPONSE_TRESOR_MISMATCH, f"tresor.{name} in the response is not what the receipt says"
                )
    return f"response: {len(held)} bytes, {digest}"


class _WithExtension(msgspec.Struct):
    tresor: dict[str, msgspec.Raw] | None = None


def _extensions(body: bytes, *, stream: bool) -> list[dict[str, JsonValue]]:
    """Return every `tresor` member of a response body; a body that is no JSON has none."""
    documents = [event_data(event) for event in split_events(body)] if stream else [body]
    found: list[dict[str, JsonValue]] = []
    for document in documents:
        if document is None or b'"tresor"' not in document:
            continue
        try:
            members = msgspec.json.decode(document, type=_WithExtension).tresor
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if members is not None:
            found.append({name: msgspec.json.decode(value) for name, value in members.items()})
    return found
