"""Claims of a receipt: types, the rules they keep among each other, encoding and strict parsing.

Implements docs/spec/receipt.md sections 3 and 4.  Unknown claims are ignored (RFC 7519 section 4); an unknown `schema`
is refused.  Nothing here signs or verifies.
"""

import re
from datetime import datetime
from typing import Annotated, Final, Literal

import msgspec

from tresor.attestation.blocks import InferenceAttestation, RouterAttestation, instant_of
from tresor.encodings import parse_json
from tresor.errors import AttemptReason, JsonError, ReceiptCode, ReceiptMalformedError

__all__ = [
    "SCHEMA",
    "Attempt",
    "AttemptOutcome",
    "NotChecked",
    "Outcome",
    "ReceiptClaims",
    "ReceiptDraft",
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
_ENUM_VALUE = re.compile(r"^Invalid enum value '.*'", re.DOTALL)  # msgspec quotes what was got, whatever its length
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z\Z", re.ASCII)


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try at one route.  `status` is the upstream's; `prompt_sent` says whether plaintext had left for it."""

    route: Route
    outcome: AttemptOutcome
    reason: AttemptReason | None
    status: Status | None
    prompt_sent: bool
    started_at: str


class ReceiptDraft(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything a receipt says except what its signer adds; docs/spec/receipt.md section 3."""

    schema: str
    receipt_type: ReceiptType
    iss: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
    jti: Uuid
    requested_route: Route
    routed_model: Route | None
    failover: bool
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
    not_checked: tuple[Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,63}\Z")], ...]
    nonce: Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+\Z")] | None = None


class ReceiptClaims(ReceiptDraft, frozen=True, kw_only=True, omit_defaults=True):
    """Claims of a receipt, docs/spec/receipt.md section 3.  Times are Unix seconds (RFC 7519, section 2)."""

    router_attestation: RouterAttestation | None = None
    inference_attestation: InferenceAttestation | None = None

    iat: Annotated[int, msgspec.Meta(ge=0, lt=253_402_300_800)]  # the year 10000, which RFC 3339 cannot write
    seq: Annotated[int, msgspec.Meta(ge=1, lt=1 << 53)]


def encode_claims(draft: ReceiptDraft, *, iat: int, seq: int, members: bytes = b"") -> bytes:
    """Encode the JSON payload of a receipt.

    Args:
        draft: what it says.
        iat: time of issue, Unix seconds.
        seq: its number under the key that signs it.
        members: attestation blocks that are the same for many receipts and were encoded before: JSON members, each
            with a comma behind it, set at the payload's beginning.
    """
    return b'{%b%b,"iat":%d,"seq":%d}' % (members, _encoder.encode(draft)[1:-1], iat, seq)


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
        got = repr(schema[:64]) if isinstance(schema, str) else "no string"
        raise ReceiptMalformedError(ReceiptCode.SCHEMA_UNKNOWN, f"schema is {got}, want {SCHEMA!r}")
    try:
        claims = msgspec.convert(value, ReceiptClaims)
    except msgspec.ValidationError as error:
        detail = _ENUM_VALUE.sub("Invalid value", str(error))
        raise ReceiptMalformedError(ReceiptCode.CLAIMS_INVALID, f"claims: {detail}") from error
    for attempt in claims.attempts:
        _check_started_at(attempt.started_at)
    _check_block_times(claims)
    _check_consistency(claims)
    return claims


def _check_started_at(text: str) -> None:
    try:
        if not _RFC3339.match(text):
            raise ValueError
        datetime.fromisoformat(text)  # the 31st of February has the form too
    except ValueError as error:
        raise ReceiptMalformedError(
            ReceiptCode.CLAIMS_INVALID, "claims: started_at of an attempt is not RFC 3339 in UTC with Z"
        ) from error


def _check_block_times(claims: ReceiptClaims) -> None:
    router, inference = claims.router_attestation, claims.inference_attestation
    times = [] if router is None else [router.issued_at]
    times += [] if inference is None else [t for t in (inference.verified_at, inference.expires_at) if t is not None]
    try:
        for time in times:
            instant_of(time)
    except ValueError as error:
        raise ReceiptMalformedError(
            ReceiptCode.CLAIMS_INVALID, f"claims: a time of an attestation block is none: {error}"
        ) from error


def _check_consistency(claims: ReceiptClaims) -> None:
    """Check what docs/spec/receipt.md section 4.4 promises of the claims together, rule by rule in its order."""
    attempts, outcome, routed = claims.attempts, claims.outcome, claims.routed_model is not None
    last = attempts[-1] if attempts else None
    served = last is not None and last.outcome == "served"
    answered = (
        last is not None
        and last.route == claims.routed_model
        and last.prompt_sent
        and last.status is not None
        and claims.upstream_response_digest is not None
    )
    prompt_sent = any(attempt.prompt_sent for attempt in attempts)
    silent = claims.response_digest == _EMPTY_DIGEST and not routed
    rules = (
        (all(a.outcome == "failed" for a in attempts[:-1]), "an attempt follows one that did not fail"),
        (
            all((a.reason is None) == (a.outcome == "served") for a in attempts),
            "reason is null where an attempt failed, or is not where it served",
        ),
        (served == (outcome == "complete"), f"outcome is {outcome} and the last attempt says otherwise"),
        (last is None or last.outcome != "rejected" or outcome == "refused", f"rejected, and outcome is {outcome}"),
        (answered or not routed, "routed_model is not a route that answered in the last attempt"),
        (routed or outcome in ("refused", "client_disconnected"), f"outcome is {outcome} and no route answered"),
        (not routed or outcome != "refused", "outcome is refused and a route answered"),
        (routed or claims.inference_attestation is None, "an upstream is attested, and none answered"),
        (claims.status is not None or outcome == "client_disconnected", f"outcome is {outcome} without a status"),
        (claims.status is not None or silent, "something was sent without a status"),
        (claims.request_digest != _EMPTY_DIGEST, "request_digest is that of nothing"),
        ((claims.upstream_request_digest is None) != prompt_sent, "upstream_request_digest and prompt_sent disagree"),
        (prompt_sent or claims.upstream_response_digest is None, "an upstream answered to nothing"),
    )
    for holds, contradiction in rules:
        if not holds:
            raise ReceiptMalformedError(ReceiptCode.CLAIMS_INCONSISTENT, f"claims: {contradiction}")


_encoder = msgspec.json.Encoder()
