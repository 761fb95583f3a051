"""Hold a receipt's claims against the clock, the life of its key, and what the caller has of the exchange.

Steps (6) and (7) of docs/spec/receipt.md section 8.  Pure: knows claims and keys, and neither tokens nor signatures.
Every check is made and every failure reported; whoever calls decides that one failure is enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from tresor.encodings import JsonValue, digest_string
from tresor.errors import Finding, ReceiptCode
from tresor.jose.jwk import ReceiptKey
from tresor.receipts.claims import ReceiptClaims
from tresor.wire.sse import event_data, split_events

__all__ = ["CLOCK_SKEW_S", "Held", "Omission", "check_held", "check_times", "omissions"]

CLOCK_SKEW_S = 60
"""Two honest clocks may differ by this much."""


@dataclass(frozen=True, slots=True)
class Omission:
    """Something that was not checked, and that a passing result therefore does not say."""

    item: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Held:
    """What the caller holds of the exchange; None where it holds nothing, which is not the same as empty.

    Attributes:
        id: the id that the receipt was handed out under.
        nonce: the `X-Tresor-Nonce` of the request.
        request: exact bytes of the request body.
        response: exact bytes of the response body, transfer coding removed.
    """

    id: str | None = None
    nonce: str | None = None
    request: bytes | None = None
    response: bytes | None = None


def check_times(claims: ReceiptClaims, key: ReceiptKey, now: datetime) -> list[Finding]:
    """Check that the receipt is not from the future and that its key was alive (step 6)."""
    clock = int(now.timestamp())
    if claims.iat > clock + CLOCK_SKEW_S:
        time = Finding("time", f"iat is {claims.iat}, later than the clock's {clock}", ReceiptCode.IAT_IN_FUTURE)
    else:
        time = Finding("time", "issued in the past")
    failed: list[Finding] = []
    if key.not_before is not None and claims.iat < key.not_before - CLOCK_SKEW_S:
        detail = f"iat is {claims.iat}, before the key was made at {key.not_before}"
        failed.append(Finding("key", detail, ReceiptCode.KEY_NOT_YET_VALID))
    if key.not_after is not None and claims.iat > key.not_after + CLOCK_SKEW_S:
        detail = f"iat is {claims.iat}, after the key was retired at {key.not_after}"
        failed.append(Finding("key", detail, ReceiptCode.KEY_RETIRED))
    if key.revoked is not None:
        detail = f"the key was revoked at {key.revoked.revoked_at}; whoever holds it can write any iat"
        failed.append(Finding("key", detail, ReceiptCode.KEY_REVOKED))
    since = "" if key.not_before is not None else "; the key set does not say since when it exists"
    return [time, *(failed or [Finding("key", f"alive when the receipt was issued, not revoked{since}")])]


def check_held(claims: ReceiptClaims, held: Held) -> list[Finding]:
    """Check whatever the caller holds against what the receipt says of it (step 7)."""
    findings: list[Finding] = []
    if held.id is not None:
        findings.append(_check_id(claims, held.id))
    if held.nonce is not None:
        findings.append(_check_nonce(claims, held.nonce))
    if held.request is not None:
        findings.append(
            _check_body("request", held.request, claims.request_digest, ReceiptCode.REQUEST_DIGEST_MISMATCH)
        )
    if held.response is not None:
        findings.append(
            _check_body("response", held.response, claims.response_digest, ReceiptCode.RESPONSE_DIGEST_MISMATCH)
        )
        if extensions := _extensions(held.response, stream=claims.stream):
            findings.append(_check_extensions(claims, extensions))
    return findings


def omissions(claims: ReceiptClaims, findings: Sequence[Finding]) -> list[Omission]:
    """Return what a passing result does not say: what the router names, and what no finding is about."""
    made = {finding.check for finding in findings}
    lines = [Omission(item, "the router did not establish it for this exchange") for item in claims.not_checked]
    if "router_tee" not in made:
        lines.append(Omission("key_set", "that it is the router's own is for you to know"))
    if "id" not in made:
        lines.append(Omission("id", "the token came without the id it was handed out under"))
    if "nonce" not in made:
        lines.append(Omission("nonce", f"not given; the receipt holds {'none' if claims.nonce is None else 'one'}"))
    lines += [Omission(item, "not given") for item in ("request", "response") if item not in made]
    if "response" in made and "tresor" not in made:
        lines.append(Omission("tresor", "the response holds no `tresor` member"))
    return lines


def _check_id(claims: ReceiptClaims, held: str) -> Finding:
    if held != claims.jti:
        return Finding("id", f"handed out as {held[:64]!r}, signed as {claims.jti!r}", ReceiptCode.ID_MISMATCH)
    return Finding("id", "that of the answer it came in")


def _check_nonce(claims: ReceiptClaims, held: str) -> Finding:
    if claims.nonce is None:
        return Finding("nonce", "the receipt holds no nonce", ReceiptCode.NONCE_MISMATCH)
    if claims.nonce != held:
        return Finding("nonce", "the receipt holds another nonce", ReceiptCode.NONCE_MISMATCH)
    return Finding("nonce", "the one given")


def _check_body(check: str, held: bytes, signed_digest: str, code: ReceiptCode) -> Finding:
    if (digest := digest_string(held)) != signed_digest:
        return Finding(check, f"{check} of {len(held)} bytes is {digest}, the receipt says {signed_digest}", code)
    return Finding(check, f"{len(held)} bytes, {digest}")


def _check_extensions(claims: ReceiptClaims, extensions: list[dict[str, JsonValue]]) -> Finding:
    signed: dict[str, JsonValue] = {
        "receipt_id": claims.jti,
        "requested_route": claims.requested_route,
        "routed_model": claims.routed_model,
        "failover": claims.failover,
    }
    differing = sorted(
        name
        for name, value in signed.items()
        # `is not` on the types, because 1 == True.
        if any(name in got and (type(got[name]) is not type(value) or got[name] != value) for got in extensions)
    )
    if differing:
        return Finding(
            "tresor",
            f"{', '.join(differing)} of the `tresor` member in the response is not what the receipt says",
            ReceiptCode.RESPONSE_TRESOR_MISMATCH,
        )
    return Finding("tresor", "the `tresor` member in the response says what the receipt says")


class _WithExtension(msgspec.Struct):
    tresor: Any = None


def _extensions(body: bytes, *, stream: bool) -> list[dict[str, JsonValue]]:
    """Return every `tresor` member of a response body; what is no JSON object has none."""
    if not _may_extend(body):
        return []
    events = filter(_may_extend, split_events(body)) if stream else ()
    documents = map(event_data, events) if stream else (body,)
    found: list[dict[str, JsonValue]] = []
    for document in documents:
        if document is None:
            continue
        try:
            extension = _decode(document).tresor
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        if isinstance(extension, dict):
            found.append(extension)
    return found


def _may_extend(data: bytes) -> bool:
    """Whether there can be a `tresor` member: most of a stream needs no closer look."""
    return b'"tresor"' in data or b"\\u" in data


_decode = msgspec.json.Decoder(_WithExtension).decode
