"""Claims of a receipt: types, the rules they keep among each other, encoding and strict parsing.

Implements docs/spec/receipt.md sections 3 and 4.  Unknown claims are ignored (RFC 7519 section 4); an unknown `schema`
is refused.  Nothing here signs or verifies.
"""

import re
from typing import Annotated, Final, Literal

import msgspec

from tresor.encodings import parse_json
from tresor.errors import AttemptReason, JsonError, ReceiptCode, ReceiptMalformedError

__all__ = [
    "SCHEMA",
    "Attempt",
    "AttemptOutcome",
    "NotChecked",
    "Outcome",
    "ReceiptClaims",
    "ReceiptType",
    "encode_claims",
    "parse_claims",
]

SCHEMA: Final = "tresor.receipt/v1"

ReceiptType = Literal["message", "transcription", "embedding"]
Outcome = Literal["complete", "upstream_aborted", "client_disconnected", "refused"]
AttemptOutcome = Literal["served", "failed", "rejected", "cancelled"]
NotChecked = Literal["router_tee", "cpu_tee", "gpu_tee", "tcb", "workload", "revocation", "tls_binding"]

Digest = Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
Uuid = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
Status = Annotated[int, msgspec.Meta(ge=100, le=599)]
Route = Annotated[str, msgspec.Meta(min_length=5, max_length=512, pattern=r"^[^/\s]+/[^/\s]+/[^\s]+\Z")]

_EMPTY_DIGEST = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z\Z", re.ASCII)


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try at one route.  `status` is the upstream's; `prompt_sent` says whether plaintext had left for it."""

    route: Route
    outcome: AttemptOutcome
    reason: AttemptReason | None
    status: Status | None
    prompt_sent: bool
    started_at: str


class ReceiptClaims(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Claims of a receipt, docs/spec/receipt.md section 3.  Times are Unix seconds (RFC 7519, section 2)."""

    schema: str
    receipt_type: ReceiptType
    iss: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
    jti: Uuid
    iat: Count
    requested_route: Route
    routed_model: Route | None
    failover: bool
    seq: Annotated[int, msgspec.Meta(ge=1, lt=1 << 53)]
    attempts: tuple[Attempt, ...]
    prompt_tokens: Count | None
    completion_tokens: Count | None
    total_tokens: Count | None
    request_digest: Digest
    upstream_request_digest: Digest | None
    upstream_response_digest: Digest | None
    response_digest: Digest
    stream: bool
    status: Status | None
    outcome: Outcome
    not_checked: tuple[str, ...]
    nonce: Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+\Z")] | None = None


def encode_claims(claims: ReceiptClaims) -> bytes:
    """Encode claims as the JSON payload of a receipt."""
    return _encoder.encode(claims)


def parse_claims(payload: bytes) -> ReceiptClaims:
    """Parse the payload of a receipt.

    Raises:
        ReceiptMalformedError: not strict JSON, another schema, a claim missing or of the wrong form, or claims that
            contradict each other.
    """
    try:
        value = parse_json(payload)
    except JsonError as error:
        raise ReceiptMalformedError(ReceiptCode.JSON_MALFORMED, f"payload: {error}") from error
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema != SCHEMA:
        raise ReceiptMalformedError(ReceiptCode.SCHEMA_UNKNOWN, f"schema is {str(schema)[:64]!r}, want {SCHEMA!r}")
    try:
        claims = msgspec.convert(value, ReceiptClaims)
    except msgspec.ValidationError as error:
        raise ReceiptMalformedError(ReceiptCode.CLAIMS_INVALID, f"claims: {error}") from error
    for attempt in claims.attempts:
        if not _RFC3339.match(attempt.started_at):
            raise ReceiptMalformedError(
                ReceiptCode.CLAIMS_INVALID, "claims: started_at of an attempt is not RFC 3339 in UTC with Z"
            )
    _check_consistency(claims)
    return claims


def _check_consistency(claims: ReceiptClaims) -> None:
    """Check what docs/spec/receipt.md section 4 promises of the claims together."""
    served = [attempt for attempt in claims.attempts if attempt.outcome == "served"]
    rules = (
        (claims.request_digest != _EMPTY_DIGEST, "request_digest is that of nothing"),
        (len(served) <= 1, "more than one attempt served"),
        (not served or claims.attempts[-1] is served[0], "an attempt follows the one that served"),
        (not served or served[0].route == claims.routed_model, "routed_model is not the route that served"),
        (claims.outcome != "complete" or bool(served), "outcome is complete and no attempt served"),
        (claims.outcome != "complete" or claims.status is not None, "outcome is complete without a status"),
        (
            claims.outcome != "complete" or claims.upstream_response_digest is not None,
            "outcome is complete without an upstream response",
        ),
        (
            claims.upstream_request_digest is not None or not any(a.prompt_sent for a in claims.attempts),
            "a prompt was sent and upstream_request_digest is null",
        ),
        (claims.outcome != "refused" or not served, "outcome is refused and an attempt served"),
    )
    for holds, contradiction in rules:
        if not holds:
            raise ReceiptMalformedError(ReceiptCode.CLAIMS_INCONSISTENT, f"claims: {contradiction}")


_encoder = msgspec.json.Encoder()
