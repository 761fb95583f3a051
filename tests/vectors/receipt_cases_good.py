"""Receipt vectors 000 to 099: what every verifier must accept."""

from collections.abc import Iterator

from receipt_case import Case
from receipt_material import (
    IAT,
    JTI,
    KEY,
    MALLORY,
    OLD_KEY,
    P256_N,
    REQUEST,
    RESPONSE,
    ROUTE,
    STREAM,
    STREAM_REQUEST,
    api_json,
    attempt,
    b64,
    claims,
    digest,
    integers,
    json_bytes,
    jwk,
    jwks,
    kid_of,
    raw_signature,
    stream_claims,
    token,
    token_of,
)

__all__ = ["good"]

_OTHER_ROUTE = "eu/other/gpt-oss-120b"
_CRLF_STREAM = STREAM.replace(b"\n", b"\r\n")
_BROKEN_STREAM = (
    STREAM[: STREAM.index(b'data: {"id":"chatcmpl-1","model":"openai/gpt-oss-120b","choices":[{"index":0,"delta":{},')]
    + b"data: "
    + json_bytes(
        {"error": {"message": "the upstream broke off", "code": "upstream_error"}, "tresor": {"receipt_id": JTI}}
    )
    + b"\n\n"
)
_ENVELOPE = json_bytes(
    {
        "error": {"message": "no route is available", "type": "api_error", "code": "no_route_available", "param": None},
        "request_id": "req-1",
    }
)
_NOTHING_CAME = {
    "routed_model": None,
    "upstream_response_digest": None,
    "response_digest": digest(_ENVELOPE),
} | dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"))


def _high_s_twin() -> bytes:
    signing_input = token().rpartition(".")[0]
    r, s = integers(signing_input.encode())
    return f"{signing_input}.{b64(raw_signature(r, P256_N - s))}".encode()


def good() -> Iterator[Case]:
    """Yield the cases."""
    yield Case(
        name="001-bare-token",
        title="A bare token, held against request and response",
        spec="2.1",
        receipt=token().encode(),
        request=REQUEST,
        response=RESPONSE,
    )
    yield Case(
        name="002-api-json",
        title="The whole JSON answer of the API",
        spec="2.4",
        receipt=api_json(token()),
        request=REQUEST,
        response=RESPONSE,
    )
    yield Case(
        name="003-api-json-with-more-members",
        title="The API's JSON with evidence, and a member of a later version",
        spec="2.4",
        receipt=api_json(token(), evidence={digest(b"quote"): {"media_type": "a/b", "data": "cXVvdGU="}}, later=[1]),
    )
    yield Case(
        name="004-white-space-around",
        title="White space around the token, as editors and shells leave it",
        spec="2.4",
        receipt=b"\r\n \t" + token().encode() + b"\n\n",
    )
    yield Case(
        name="005-nonce",
        title="The caller's nonce",
        spec="8.1",
        receipt=token_of(nonce="n-0S6_WzA2Mj"),
        nonce="n-0S6_WzA2Mj",
    )
    yield Case(
        name="006-nonce-not-compared",
        title="A nonce in the receipt and none given: passes, and says that it was not compared",
        spec="8.1",
        receipt=token_of(nonce="n-0S6_WzA2Mj"),
    )
    yield Case(
        name="007-stream",
        title="A stream with its framing, the `tresor` member and [DONE]",
        spec="5.2",
        receipt=api_json(token(stream_claims())),
        request=STREAM_REQUEST,
        response=STREAM,
    )
    yield Case(
        name="008-stream-crlf",
        title="A stream whose lines end with CRLF",
        spec="5.2",
        receipt=token(stream_claims(response_digest=digest(_CRLF_STREAM))).encode(),
        response=_CRLF_STREAM,
    )
    yield Case(
        name="009-stream-broken",
        title="A stream that broke off after content, and says so",
        spec="4.2",
        receipt=token(
            stream_claims(
                outcome="upstream_aborted",
                attempts=[attempt(outcome="failed", reason="stream_broken")],
                response_digest=digest(_BROKEN_STREAM),
            )
        ).encode(),
        response=_BROKEN_STREAM,
    )
    yield Case(
        name="010-caller-gone-in-stream",
        title="The caller left a stream",
        spec="4.2",
        receipt=token(
            stream_claims(
                outcome="client_disconnected",
                attempts=[attempt(outcome="cancelled", reason="caller_gone")],
                response_digest=digest(STREAM[:300]),
            )
        ).encode(),
        response=STREAM[:300],
    )
    yield Case(
        name="011-caller-gone-before-anything",
        title="The caller left before anything was sent to it",
        spec="4.2",
        receipt=token_of(
            **_NOTHING_CAME
            | {
                "outcome": "client_disconnected",
                "status": None,
                "attempts": [attempt(outcome="cancelled", reason="caller_gone", status=None)],
                "response_digest": digest(b""),
            }
        ),
        response=b"",
    )
    yield Case(
        name="012-refused-without-attempt",
        title="No route was available",
        spec="4.2",
        receipt=token_of(
            **_NOTHING_CAME | {"outcome": "refused", "status": 503, "attempts": [], "upstream_request_digest": None}
        ),
        response=_ENVELOPE,
    )
    yield Case(
        name="013-refused-by-the-upstream",
        title="The upstream rejected the request, which was passed on",
        spec="4.2",
        receipt=token_of(
            **_NOTHING_CAME
            | {
                "outcome": "refused",
                "status": 400,
                "attempts": [attempt(outcome="rejected", reason="upstream_rejected", status=400)],
                "upstream_response_digest": digest(b"{}"),
            }
        ),
    )
    yield Case(
        name="014-failover",
        title="The second route served",
        spec="4.1",
        receipt=token_of(
            routed_model=_OTHER_ROUTE,
            failover=True,
            attempts=[
                attempt(outcome="failed", reason="connect_failed", status=None, prompt_sent=False),
                attempt(route=_OTHER_ROUTE),
            ],
        ),
    )
    yield Case(
        name="015-tokens-not-counted",
        title="The upstream counted nothing",
        spec="3",
        receipt=token_of(prompt_tokens=None, completion_tokens=None, total_tokens=None),
    )
    yield Case(
        name="016-unknown-claims",
        title="Claims of a later version are ignored",
        spec="3",
        receipt=token_of(later={"a": [1, 2.5, None]}, aud="anybody"),
    )
    yield Case(
        name="017-unknown-not-checked",
        title="A word of a later version in not_checked is shown as it stands",
        spec="4.3",
        receipt=token_of(not_checked=["something_new"]),
    )
    yield Case(
        name="018-embedding",
        title="The receipt of an embedding",
        spec="3",
        receipt=token_of(receipt_type="embedding", completion_tokens=None),
    )
    yield Case(
        name="019-json-of-another-writer",
        title="Members in another order, white space and escapes: the signed bytes are what counts",
        spec="7",
        receipt=token(
            b" {\n"
            + b",\n".join(
                b'  "%s" : %s' % (name.encode().replace(b"status", b"\\u0073tatus"), json_bytes(value))
                for name, value in reversed(claims().items())
            )
            + b"\n} ",
            header=b'{ "typ":"tresor-receipt+jwt", "kid":"%s","alg" : "E\\u0053256" }' % kid_of(KEY).encode(),
        ).encode(),
    )
    yield Case(
        name="020-high-s-twin",
        title="The other signature that verifies: the same receipt, for its identity is its jti and claims",
        spec="2.3",
        receipt=_high_s_twin(),
    )
    yield Case(
        name="021-key-set-of-many",
        title="One of several keys, each once the router's",
        spec="6.1",
        receipt=token().encode(),
        jwks=jwks(
            jwk(OLD_KEY, exp=IAT - 1), jwk(KEY), jwk(MALLORY, revoked={"revoked_at": IAT, "reason": "compromised"})
        ),
    )
    yield Case(
        name="022-key-with-four-members",
        title="A key without alg, use and times: kty, crv, x, y and kid are enough",
        spec="6.1",
        receipt=token().encode(),
        jwks=jwks({name: value for name, value in jwk(KEY).items() if name not in ("alg", "use", "iat")}),
    )
    yield Case(
        name="023-key-retired-later",
        title="The key was retired after it signed; retired keys verify for ever",
        spec="6.3",
        receipt=token().encode(),
        jwks=jwks(jwk(KEY, exp=IAT + 1, key_ops=["verify"])),
        at="2036-03-01T12:00:00Z",
    )
    yield Case(
        name="024-clock-behind",
        title="The verifier's clock is a minute behind the router's",
        spec="8.1",
        receipt=token().encode(),
        at="2026-03-01T11:59:00Z",
    )
    yield Case(
        name="025-time-with-offset",
        title="An instant given with another offset than Z",
        spec="8.3",
        receipt=token().encode(),
        at="2026-03-01T14:05:00+02:00",
    )
    yield Case(
        name="026-route-with-slashes",
        title="A model key that holds slashes and letters of any script",
        spec="3",
        receipt=token_of(requested_route="eu/auto/müller/llama-3", routed_model=ROUTE),
    )
