"""Receipt vectors 500 to 699: signed by the right key, and yet no receipt, or one of another time."""

from collections.abc import Iterator
from typing import Any

from receipt_case import Case
from receipt_material import (
    HEADER,
    IAT,
    JTI,
    KEY,
    ROUTE,
    attempt,
    b64,
    claims,
    digest,
    json_bytes,
    jwk,
    jwks,
    sign,
    token,
    token_of,
)

__all__ = ["claim_values", "contradictions", "times"]

_OTHER_ROUTE = "us/other/gpt-oss-120b"
_PAYLOAD = json_bytes(claims())
_HEX = "ab" * 32


def _of_bytes(payload: bytes) -> bytes:
    return token(payload).encode()


def _raw(claim: str, value: bytes) -> bytes:
    """Return a token one of whose claims has a value that `json` would not write."""
    marker = "8a5edab282632443219e051e4ade2d1d"
    return _of_bytes(json_bytes(claims(**{claim: marker})).replace(b'"%s"' % marker.encode(), value))


def claim_values() -> Iterator[Case]:
    """Yield payloads that are not strict JSON, not of this schema, or not of its form."""
    json_code, schema, invalid = "json_malformed", "schema_unknown", "claims_invalid"
    envelope = {"schema": "tresor.attestation/v1", "workload": "router", "issued_at": "2026-03-01T12:00:00Z"}
    for number, name, title, receipt, code in (
        (500, "empty", "The payload is empty", sign(f"{b64(json_bytes(HEADER))}.").encode(), json_code),
        (501, "no-json", "The payload is text", _of_bytes(b"complete"), json_code),
        (502, "member-twice", "outcome stands twice", _of_bytes(b'{"outcome":"refused",' + _PAYLOAD[1:]), json_code),
        (
            503,
            "member-twice-inside",
            "prompt_sent stands twice in an attempt",
            _of_bytes(_PAYLOAD.replace(b'"prompt_sent":true', b'"prompt_sent":false,"prompt_sent":true')),
            json_code,
        ),
        (
            504,
            "member-twice-in-unknown-claim",
            "A name stands twice in an unknown claim",
            _raw("later", b'{"a":1,"a":2}'),
            json_code,
        ),
        (505, "nan", "NaN", _raw("later", b"NaN"), json_code),
        (506, "infinity", "Infinity", _raw("prompt_tokens", b"-Infinity"), json_code),
        (507, "giant-integer", "An integer of 5000 digits", _raw("later", b"9" * 5000), json_code),
        (508, "surrogate", "A lone surrogate", _raw("iss", b'"\\udfff"'), json_code),
        (509, "byte-order-mark", "A byte order mark", _of_bytes(b"\xef\xbb\xbf" + _PAYLOAD), json_code),
        (510, "nested", "Nested without end", _raw("later", b"[" * 5_000 + b"]" * 5_000), json_code),
        (511, "not-utf-8", "Bytes that are no UTF-8", _raw("iss", b'"\xff"'), json_code),
        (512, "overlong-utf-8", "An overlong encoding of /", _raw("iss", b'"\xc0\xaf"'), json_code),
        (513, "bytes-behind", "Bytes behind the claims", _of_bytes(_PAYLOAD + b"\0"), json_code),
        (514, "control-character", "A line end inside a string", _raw("iss", b'"a\nb"'), json_code),
        (515, "comment", "A comment", _of_bytes(_PAYLOAD[:-1] + b"/* */}"), json_code),
        (516, "trailing-comma", "A comma behind the last claim", _of_bytes(_PAYLOAD[:-1] + b",}"), json_code),
        (517, "leading-zero", "A number with a zero in front", _raw("seq", b"01"), json_code),
        (520, "array", "The claims are an array", _of_bytes(b"[" + _PAYLOAD + b"]"), schema),
        (521, "schema-missing", "schema is missing", token_of(schema=...), schema),
        (522, "schema-later", "A later schema", token_of(schema="tresor.receipt/v2"), schema),
        (
            523,
            "schema-attestation",
            "An attestation envelope, signed as a receipt",
            _of_bytes(json_bytes(envelope)),
            schema,
        ),
        (524, "schema-capitals", "The schema in capitals", token_of(schema="TRESOR.RECEIPT/V1"), schema),
        (525, "schema-object", "A schema that is an object", token_of(schema={"tresor.receipt/v1": True}), schema),
        (530, "iat-float", "iat 1.7e9", _raw("iat", b"1.7723664e9"), invalid),
        (531, "iat-float-whole", "iat with a fraction of nought", _raw("iat", b"1772366400.0"), invalid),
        (532, "iat-boolean", "iat is true", token_of(iat=True), invalid),
        (533, "iat-text", "iat is text", token_of(iat=str(IAT)), invalid),
        (534, "iat-negative", "iat before 1970", token_of(iat=-1), invalid),
        (535, "iat-giant", "iat beyond the year 9999", token_of(iat=253_402_300_800), invalid),
        (536, "iat-milliseconds", "iat in milliseconds", token_of(iat=IAT * 1000), invalid),
        (537, "seq-zero", "seq is 0", token_of(seq=0), invalid),
        (538, "seq-giant", "seq is 2^53", token_of(seq=1 << 53), invalid),
        (539, "stream-number", "stream is 1", token_of(stream=1), invalid),
        (540, "failover-text", "failover is text", token_of(failover="false"), invalid),
        (541, "status-out-of-range", "status 0", token_of(status=0), invalid),
        (542, "status-boolean", "status is true", token_of(status=True), invalid),
        (543, "tokens-negative", "Fewer tokens than none", token_of(prompt_tokens=-1), invalid),
        (544, "tokens-float", "Half a token", token_of(completion_tokens=6.5), invalid),
        (545, "tokens-giant", "2^64 tokens", token_of(total_tokens=1 << 64), invalid),
        (550, "request-digest-missing", "request_digest is missing", token_of(request_digest=...), invalid),
        (551, "routed-model-missing", "routed_model is missing, not null", token_of(routed_model=...), invalid),
        (552, "not-checked-missing", "not_checked is missing", token_of(not_checked=...), invalid),
        (553, "attempts-missing", "attempts is missing", token_of(attempts=...), invalid),
        (554, "iss-null", "iss is null", token_of(iss=None), invalid),
        (555, "iss-empty", "iss is empty", token_of(iss=""), invalid),
        (556, "request-digest-null", "request_digest is null", token_of(request_digest=None), invalid),
        (560, "digest-unnamed", "A digest that does not name its hash", token_of(request_digest=_HEX), invalid),
        (561, "digest-other-hash", "A digest of another hash", token_of(request_digest=f"sha512:{_HEX}"), invalid),
        (562, "digest-truncated", "Half a digest", token_of(request_digest=f"sha256:{_HEX[:32]}"), invalid),
        (563, "digest-capitals", "A digest in capitals", token_of(response_digest=f"sha256:{_HEX.upper()}"), invalid),
        (564, "digest-base64", "A digest in base64url", token_of(response_digest=f"sha256:{b64(bytes(32))}"), invalid),
        (565, "digest-line-end", "A line end behind the digest", token_of(response_digest=f"sha256:{_HEX}\n"), invalid),
        (566, "digest-array", "A digest as numbers", token_of(response_digest=list(bytes(32))), invalid),
        (570, "jti-no-uuid", "jti is a number of the house", token_of(jti="receipt-1"), invalid),
        (571, "jti-capitals", "jti in capitals", token_of(jti=JTI.upper()), invalid),
        (572, "jti-urn", "jti as a URN", token_of(jti=f"urn:uuid:{JTI}"), invalid),
        (573, "route-of-two-parts", "A route of two parts", token_of(requested_route="eu/gpt"), invalid),
        (574, "route-with-line-end", "A route with a line end", token_of(routed_model=f"{ROUTE}\nPASS"), invalid),
        (575, "receipt-type-unknown", "An unknown receipt_type", token_of(receipt_type="bundle"), invalid),
        (576, "outcome-unknown", "An unknown outcome", token_of(outcome="completed"), invalid),
        (
            577,
            "outcome-control-characters",
            "An outcome that writes to the terminal",
            token_of(outcome="\x1b[2J\x1b[1;1HPASS"),
            invalid,
        ),
        (578, "reason-unknown", "An unknown reason", token_of(attempts=[attempt(reason="bad luck")]), invalid),
        (579, "attempt-text", "An attempt that is text", token_of(attempts=[ROUTE]), invalid),
        (
            580,
            "prompt-sent-missing",
            "An attempt that does not say whether the prompt was sent",
            token_of(attempts=[_without("prompt_sent")]),
            invalid,
        ),
        (581, "started-at-without-zone", "A time without its zone", _started_at("2026-03-01T11:59:58"), invalid),
        (
            582,
            "started-at-with-offset",
            "A time with another offset than Z",
            _started_at("2026-03-01T12:59:58+01:00"),
            invalid,
        ),
        (583, "started-at-impossible", "The 30th of February", _started_at("2026-02-30T12:00:00Z"), invalid),
        (584, "started-at-other-digits", "Digits of another script", _started_at("\u0662026-03-01T11:59:58Z"), invalid),
        (585, "nonce-empty", "A nonce of no characters", token_of(nonce=""), invalid),
        (586, "nonce-too-long", "A nonce of 129 characters", token_of(nonce="n" * 129), invalid),
        (587, "nonce-with-line-end", "A nonce with a line end", token_of(nonce="n\n"), invalid),
        (
            588,
            "not-checked-no-word",
            "Something in not_checked that is no word",
            token_of(not_checked=["\x1b[8m"]),
            invalid,
        ),
        (589, "not-checked-text", "not_checked is text", token_of(not_checked="gpu_tee"), invalid),
    ):
        spec = "7" if number < 520 else "3"
        yield Case(name=f"{number}-{name}", title=title, spec=spec, receipt=receipt, expect=code)


def _without(member: str) -> dict[str, Any]:
    return {name: value for name, value in attempt().items() if name != member}


def _started_at(text: str) -> bytes:
    return token_of(attempts=[attempt(started_at=text)])


def contradictions() -> Iterator[Case]:
    """Yield claims each of which is possible, and which are not possible together."""
    failed = attempt(outcome="failed", reason="timeout", status=None)
    unsent = attempt(outcome="failed", reason="connect_failed", status=None, prompt_sent=False)
    rejected = attempt(outcome="rejected", reason="upstream_rejected", status=400)
    broken = attempt(outcome="failed", reason="stream_broken")
    gone = attempt(outcome="cancelled", reason="caller_gone")
    refused = {"outcome": "refused", "status": 503, "routed_model": None, "upstream_response_digest": None}
    untouched = {"upstream_request_digest": None, "upstream_response_digest": None}
    left = refused | {"outcome": "client_disconnected", "status": None}
    for number, name, title, receipt in (
        (600, "two-served", "Two attempts served", token_of(attempts=[attempt(), attempt()])),
        (601, "attempt-behind-served", "An attempt behind one that served", token_of(attempts=[attempt(), failed])),
        (
            602,
            "attempt-behind-rejected",
            "The prompt went on after it had been rejected",
            token_of(attempts=[rejected, attempt()]),
        ),
        (
            603,
            "attempt-behind-cancelled",
            "The prompt went on after the caller had left",
            token_of(attempts=[gone, attempt()]),
        ),
        (
            604,
            "failed-without-reason",
            "An attempt failed for no reason",
            token_of(**refused | {"attempts": [failed | {"reason": None}]}),
        ),
        (
            605,
            "complete-and-broken",
            "A partial stream with a complete receipt",
            token_of(attempts=[attempt(reason="stream_broken")]),
        ),
        (606, "complete-by-failed-attempt", "A complete answer of an attempt that failed", token_of(attempts=[broken])),
        (
            607,
            "complete-without-attempt",
            "A complete answer that nobody gave",
            token_of(routed_model=None, attempts=[], **untouched),
        ),
        (608, "refused-and-served", "A refusal, and an attempt served", token_of(outcome="refused", routed_model=None)),
        (609, "aborted-and-served", "Broken off, and the attempt served", token_of(outcome="upstream_aborted")),
        (
            610,
            "complete-and-rejected",
            "A rejected request, and the caller left a stream",
            token_of(outcome="client_disconnected", attempts=[rejected]),
        ),
        (
            611,
            "other-route-served",
            "routed_model hides the route that served",
            token_of(attempts=[attempt(route=_OTHER_ROUTE)]),
        ),
        (
            612,
            "route-had-no-prompt",
            "A route answered that had no prompt",
            token_of(attempts=[failed, attempt(prompt_sent=False)]),
        ),
        (613, "route-without-status", "A route answered without a status", token_of(attempts=[attempt(status=None)])),
        (
            614,
            "route-without-response",
            "A route answered, and no digest says what",
            token_of(upstream_response_digest=None),
        ),
        (
            615,
            "route-without-attempt",
            "The route of no attempt, in a stream that was left",
            token_of(**left | {"routed_model": ROUTE, "status": 200, "attempts": [], "upstream_request_digest": None}),
        ),
        (616, "complete-without-route", "A complete answer of no route", token_of(routed_model=None)),
        (
            617,
            "aborted-without-route",
            "Broken off, and no route had answered",
            token_of(**refused | {"outcome": "upstream_aborted", "attempts": [broken]}),
        ),
        (618, "refused-with-route", "A refusal, and a route answered", token_of(outcome="refused", attempts=[broken])),
        (619, "complete-without-status", "A complete answer without a status", token_of(status=None)),
        (
            620,
            "refused-without-status",
            "A refusal without a status",
            token_of(**refused | {"status": None, "attempts": [failed]}),
        ),
        (
            621,
            "response-without-status",
            "A response without a status",
            token_of(**left | {"attempts": [gone | {"status": None}]}),
        ),
        (622, "request-empty", "A request of no bytes", token_of(request_digest=digest(b""))),
        (
            623,
            "forwarded-unsaid",
            "A prompt was sent, and no digest says which",
            token_of(upstream_request_digest=None),
        ),
        (
            624,
            "forwarded-and-unsent",
            "No prompt was sent, and a digest says which",
            token_of(**refused | {"attempts": [unsent]}),
        ),
        (
            625,
            "response-to-nothing",
            "An upstream answered, and no prompt was sent",
            token_of(
                **refused
                | {"attempts": [unsent], "upstream_request_digest": None, "upstream_response_digest": digest(b"{}")}
            ),
        ),
    ):
        yield Case(name=f"{number}-{name}", title=title, spec="4.4", receipt=receipt, expect="claims_inconsistent")


def times() -> Iterator[Case]:
    """Yield receipts from the future, and of keys that were not alive when they were issued."""
    good = token().encode()
    for number, name, title, at, code in (
        (650, "iat-in-future", "Issued tomorrow", "2026-02-28T12:00:00Z", "iat_in_future"),
        (651, "iat-beyond-skew", "Issued 61 seconds from now", "2026-03-01T11:58:59Z", "iat_in_future"),
    ):
        yield Case(name=f"{number}-{name}", title=title, spec="8.1", receipt=good, at=at, expect=code)
    revoked = {"revoked_at": IAT + 1, "reason": "compromised"}
    for number, name, title, members, code, also in (
        (660, "before-key", "Issued before its key was made", {"iat": IAT + 61}, "key_not_yet_valid", ()),
        (661, "after-key", "Issued after its key was retired", {"exp": IAT - 61}, "key_retired", ()),
        (662, "key-revoked", "The key was revoked", {"revoked": revoked}, "key_revoked", ()),
        (
            663,
            "key-revoked-later",
            "Revoked after it signed, which proves nothing",
            {"revoked": revoked | {"revoked_at": IAT * 2}},
            "key_revoked",
            (),
        ),
        (
            664,
            "key-retired-and-revoked",
            "Retired and revoked",
            {"exp": IAT - 61, "revoked": revoked},
            "key_retired",
            ("key_revoked",),
        ),
    ):
        yield Case(
            name=f"{number}-{name}",
            title=title,
            spec="6.3",
            receipt=good,
            jwks=jwks(jwk(KEY, **members)),
            expect=code,
            also=also,
        )
