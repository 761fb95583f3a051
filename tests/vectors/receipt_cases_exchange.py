"""Receipt vectors 700 to 999: genuine receipts, held against what they are not of."""

from collections.abc import Iterator

from receipt_case import Case
from receipt_material import (
    FINISH_EVENT,
    JTI,
    OTHER_JTI,
    REQUEST,
    RESPONSE,
    ROUTE,
    STREAM,
    STREAM_EVENTS,
    STREAM_REQUEST,
    UPSTREAM_REQUEST,
    UPSTREAM_RESPONSE,
    api_json,
    claims,
    digest,
    gzip,
    stream_claims,
    token,
    token_of,
)

__all__ = ["extensions", "ids_and_nonces", "requests", "responses", "several", "streams"]

_NONCE = "n-0S6_WzA2Mj"


def ids_and_nonces() -> Iterator[Case]:
    """Yield ids and nonces that are nearly those of the receipt."""
    for number, name, title, receipt_id in (
        (700, "id-of-another-receipt", "Handed out under the id of another receipt", OTHER_JTI),
        (701, "id-capitals", "The id in capitals", JTI.upper()),
        (702, "id-prefix", "The beginning of the id", JTI[:8]),
        (703, "id-empty", "An empty id", ""),
        (704, "id-white-space", "White space behind the id", JTI + " "),
    ):
        receipt = api_json(token(), receipt_id)
        yield Case(name=f"{number}-{name}", title=title, spec="8.1", receipt=receipt, expect="id_mismatch")
    yield Case(
        name="710-nonce-absent",
        title="A nonce was sent, and the receipt holds none",
        spec="8.1",
        receipt=token().encode(),
        nonce=_NONCE,
        expect="nonce_mismatch",
    )
    for number, name, title, nonce in (
        (711, "nonce-other", "Another nonce", "n-1T7_XaB3Nk"),
        (712, "nonce-empty", "An empty nonce given, which is not none", ""),
        (713, "nonce-prefix", "The beginning of the nonce", _NONCE[:-1]),
        (714, "nonce-longer", "The nonce and more", _NONCE + "0"),
        (715, "nonce-zeros-in-front", "The nonce with zeros in front", "0" * 20 + _NONCE),
        (716, "nonce-capitals", "The nonce in capitals", _NONCE.upper()),
        (717, "nonce-white-space", "White space behind the nonce", _NONCE + " "),
    ):
        yield Case(
            name=f"{number}-{name}",
            title=title,
            spec="8.1",
            receipt=token_of(nonce=_NONCE),
            nonce=nonce,
            expect="nonce_mismatch",
        )


def requests() -> Iterator[Case]:
    """Yield request bodies, or digests of them, that are not of this exchange."""
    good = token().encode()
    for number, name, title, receipt, request in (
        (720, "request-byte-changed", "A byte of the request changed", good, REQUEST.replace(b"1.0", b"1.1")),
        (721, "request-written-anew", "The request written anew: 1.0 became 1", good, REQUEST.replace(b"1.0", b"1")),
        (722, "request-spaced", "The request with white space", good, REQUEST.replace(b":", b": ")),
        (723, "request-escaped", "The request with escapes", good, REQUEST.replace("ü".encode(), b"\\u00fc")),
        (
            724,
            "request-decomposed",
            "The same letters, decomposed",
            good,
            REQUEST.replace("ü".encode(), "u\u0308".encode()),
        ),
        (725, "request-line-end", "A line end behind the request", good, REQUEST + b"\n"),
        (726, "request-empty", "An empty request given, which is not none", good, b""),
        (727, "request-of-another-exchange", "The request of another exchange", good, STREAM_REQUEST),
        (728, "request-compressed", "The request compressed", good, gzip(REQUEST)),
        (729, "request-as-forwarded", "The request as it was forwarded", good, UPSTREAM_REQUEST),
        (
            730,
            "request-digest-of-forwarded",
            "The receipt holds the digest of the forwarded request",
            token_of(request_digest=digest(UPSTREAM_REQUEST)),
            REQUEST,
        ),
        (
            731,
            "request-digest-of-hex",
            "The receipt holds the digest of the hexadecimal text",
            token_of(request_digest=digest(REQUEST.hex().encode())),
            REQUEST,
        ),
        (
            732,
            "request-digest-of-digest",
            "The receipt holds the digest of the digest",
            token_of(request_digest=digest(digest(REQUEST).encode())),
            REQUEST,
        ),
    ):
        yield Case(
            name=f"{number}-{name}",
            title=title,
            spec="5.1",
            receipt=receipt,
            request=request,
            expect="request_digest_mismatch",
        )


def responses() -> Iterator[Case]:
    """Yield response bodies, or digests of them, that are not of this exchange."""
    good = token().encode()
    extension = RESPONSE[len(UPSTREAM_RESPONSE) - 1 : -1]
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(RESPONSE), RESPONSE)
    for number, name, title, receipt, response in (
        (740, "response-byte-changed", "A byte of the response changed", good, RESPONSE.replace(b"Gr", b"gr")),
        (741, "response-written-anew", "The response with white space", good, RESPONSE.replace(b":", b": ")),
        (742, "response-escaped", "The response with escapes", good, RESPONSE.replace("ü".encode(), b"\\u00fc")),
        (743, "response-line-end", "A line end behind the response", good, RESPONSE + b"\n"),
        (744, "response-empty", "An empty response given, which is not none", good, b""),
        (745, "response-cut", "The response was cut", good, RESPONSE[:-20]),
        (746, "response-compressed", "The response compressed", good, gzip(RESPONSE)),
        (747, "response-chunked", "The response with its transfer coding", good, chunked),
        (748, "response-without-tresor", "The response as the upstream sent it", good, UPSTREAM_RESPONSE),
        (
            749,
            "response-member-added",
            "A member was added behind the router",
            good,
            RESPONSE[:-1] + b',"verified":true}',
        ),
        (
            750,
            "response-tresor-moved",
            "The tresor member stands first",
            good,
            b"{" + extension[1:] + b"," + UPSTREAM_RESPONSE[1:],
        ),
        (
            751,
            "response-model-masked",
            "model was rewritten behind the router",
            good,
            RESPONSE.replace(b"openai/", b""),
        ),
        (
            752,
            "response-digest-of-upstream",
            "The receipt holds the digest of what the upstream sent",
            token_of(response_digest=digest(UPSTREAM_RESPONSE)),
            RESPONSE,
        ),
    ):
        yield Case(
            name=f"{number}-{name}",
            title=title,
            spec="5.1",
            receipt=receipt,
            response=response,
            expect="response_digest_mismatch",
        )


def extensions() -> Iterator[Case]:
    """Yield responses whose `tresor` member, though hashed and signed, says other than the receipt."""
    for number, name, title, got, wanted in (
        (770, "receipt-id", "names another receipt", JTI, OTHER_JTI),
        (771, "routed-model", "names another model", f'"routed_model":"{ROUTE}"', '"routed_model":"eu/tresor/gpt-5"'),
        (772, "requested-route", "names another request", f'"requested_route":"{ROUTE}"', '"requested_route":"eu/a/b"'),
        (773, "failover", "says that another route took over", '"failover":false', '"failover":true'),
        (774, "failover-number", "has a number for a boolean", '"failover":false', '"failover":0'),
        (775, "routed-model-null", "names no model", f'"routed_model":"{ROUTE}"', '"routed_model":null'),
        (
            776,
            "name-escaped",
            "is written with an escape",
            '"tresor":{"receipt_id":"7c',
            '"\\u0074resor":{"receipt_id":"00',
        ),
    ):
        response = RESPONSE.replace(got.encode(), wanted.encode())
        yield Case(
            name=f"{number}-tresor-{name}",
            title=f"The tresor member of the response {title}",
            spec="8.1",
            receipt=token_of(response_digest=digest(response)),
            response=response,
            expect="response_tresor_mismatch",
        )
    two = STREAM.replace(FINISH_EVENT, FINISH_EVENT + FINISH_EVENT.replace(JTI.encode(), OTHER_JTI.encode()))
    yield Case(
        name="780-tresor-of-two-receipts",
        title="Two finish chunks, of two receipts",
        spec="8.1",
        receipt=token(stream_claims(response_digest=digest(two))).encode(),
        response=two,
        expect="response_tresor_mismatch",
    )


def streams() -> Iterator[Case]:
    """Yield streams that were changed on their way, many of which parse to the same events."""
    good = token(stream_claims()).encode()
    first, second, third, finish, usage, done = STREAM_EVENTS

    def of(*events: bytes) -> bytes:
        return b"".join(events)

    for number, name, title, response in (
        (800, "reordered", "Two events changed places", of(first, third, second, finish, usage, done)),
        (801, "dropped", "An event was dropped", of(first, second, finish, usage, done)),
        (802, "duplicated", "An event came twice", of(first, second, second, third, finish, usage, done)),
        (803, "inserted", "An event was put in", of(first, second, _shout(second), third, finish, usage, done)),
        (804, "changed", "A letter of an event changed", STREAM.replace("ße".encode(), b"ss")),
        (805, "cut-in-event", "Cut inside an event", STREAM[:200]),
        (806, "cut-before-finish", "Cut before the finish chunk", of(first, second, third)),
        (807, "done-missing", "[DONE] is missing", of(first, second, third, finish, usage)),
        (808, "data-behind-done", "An event behind [DONE]", STREAM + second),
        (809, "done-twice", "[DONE] came twice", STREAM + done),
        (810, "finish-missing", "The finish chunk is missing", of(first, second, third, usage, done)),
        (
            811,
            "finish-moved",
            "The finish chunk is not behind the content",
            of(first, second, finish, third, usage, done),
        ),
        (812, "usage-stripped", "The usage chunk was stripped", of(first, second, third, finish, done)),
        (813, "usage-changed", "The usage changed", STREAM.replace(b'"total_tokens":19', b'"total_tokens":18')),
        (
            814,
            "other-stream-spliced-in",
            "The end of another stream",
            of(first, second, third) + of(finish, usage, done).replace(b"chatcmpl-1", b"chatcmpl-2"),
        ),
        (
            815,
            "choice-index-changed",
            "An event became one of another choice",
            STREAM.replace(second, second.replace(b'"index":0', b'"index":1')),
        ),
        (820, "lf-became-crlf", "Lines end with CRLF; the same events", STREAM.replace(b"\n", b"\r\n")),
        (821, "lf-became-cr", "Lines end with CR; the same events", STREAM.replace(b"\n", b"\r")),
        (
            822,
            "data-split",
            "An event over two data lines; the same JSON",
            STREAM.replace(b',"choices"', b',\ndata: "choices"', 1),
        ),
        (823, "data-space-missing", "No space behind the colon; the same events", STREAM.replace(b"data: ", b"data:")),
        (
            824,
            "comment-added",
            "A comment was put in; the same events",
            of(first, b": ping\n\n", second, third, finish, usage, done),
        ),
        (
            825,
            "event-field-added",
            "An event has an id; the same data",
            of(first, b"id: 2\n" + second, third, finish, usage, done),
        ),
        (
            826,
            "retry-field-added",
            "An event has a retry time; the same data",
            of(first, b"retry: 9\n" + second, third, finish, usage, done),
        ),
        (
            827,
            "blank-line-added",
            "A blank line more; the same events",
            of(first, b"\n", second, third, finish, usage, done),
        ),
        (828, "last-line-end-missing", "The last line end is missing", STREAM[:-1]),
        (829, "byte-order-mark", "A byte order mark in front; the same events", b"\xef\xbb\xbf" + STREAM),
        (830, "escaped", "Escapes for letters; the same events", STREAM.replace("ü".encode(), b"\\u00fc")),
        (
            831,
            "members-reordered",
            "Members in another order; the same values",
            STREAM.replace(
                b'"id":"chatcmpl-1","model":"openai/gpt-oss-120b"', b'"model":"openai/gpt-oss-120b","id":"chatcmpl-1"'
            ),
        ),
        (832, "events-merged", "Two events in one; other events", STREAM.replace(b"\n\n", b"\n", 1)),
        (833, "compressed", "The stream compressed", gzip(STREAM)),
        (834, "chunked", "The stream with its transfer coding", b"%x\r\n%s\r\n0\r\n\r\n" % (len(STREAM), STREAM)),
        (835, "answer-in-place-of-stream", "The whole answer, though it was streamed", RESPONSE),
    ):
        yield Case(
            name=f"{number}-stream-{name}",
            title=title,
            spec="5.2",
            receipt=good,
            request=STREAM_REQUEST,
            response=response,
            expect="response_digest_mismatch",
        )
    crlf = STREAM.replace(b"\n", b"\r\n")
    yield Case(
        name="840-stream-crlf-became-lf",
        title="Lines ended with CRLF and now end with LF; the same events",
        spec="5.2",
        receipt=token(stream_claims(response_digest=digest(crlf))).encode(),
        response=STREAM,
        expect="response_digest_mismatch",
    )
    commented = b": keep-alive\n\n" + STREAM
    yield Case(
        name="841-stream-comment-dropped",
        title="A comment was dropped; the same events",
        spec="5.2",
        receipt=token(stream_claims(response_digest=digest(commented))).encode(),
        response=STREAM,
        expect="response_digest_mismatch",
    )
    yield Case(
        name="842-stream-of-another-receipt",
        title="The finish chunk names another receipt",
        spec="5.2",
        receipt=good,
        response=STREAM.replace(JTI.encode(), OTHER_JTI.encode()),
        expect="response_digest_mismatch",
        also=("response_tresor_mismatch",),
    )


def _shout(event: bytes) -> bytes:
    return event.replace(b'"content":"', b'"content":"!')


def several() -> Iterator[Case]:
    """Yield receipts of which several things are wrong; every one is reported."""
    yield Case(
        name="900-request-and-response-swapped",
        title="Request and response changed places",
        spec="8.1",
        receipt=token().encode(),
        request=RESPONSE,
        response=REQUEST,
        expect="request_digest_mismatch",
        also=("response_digest_mismatch",),
    )
    yield Case(
        name="901-digests-swapped",
        title="The digests in the receipt changed places",
        spec="8.1",
        receipt=token_of(request_digest=digest(RESPONSE), response_digest=digest(REQUEST)),
        request=REQUEST,
        response=RESPONSE,
        expect="request_digest_mismatch",
        also=("response_digest_mismatch",),
    )
    yield Case(
        name="902-replay",
        title="An older receipt for the same prompt, held against a new exchange",
        spec="8.1",
        receipt=api_json(token(claims(nonce="yesterday", jti=OTHER_JTI)), OTHER_JTI),
        request=REQUEST,
        response=RESPONSE,
        nonce=_NONCE,
        expect="nonce_mismatch",
        also=("response_tresor_mismatch",),
    )
    yield Case(
        name="903-everything",
        title="Of another time, id, nonce, request and response",
        spec="8.1",
        receipt=api_json(token(), OTHER_JTI),
        request=STREAM_REQUEST,
        response=RESPONSE.replace(JTI.encode(), OTHER_JTI.encode()),
        nonce=_NONCE,
        at="2020-01-01T00:00:00Z",
        expect="iat_in_future",
        also=(
            "id_mismatch",
            "nonce_mismatch",
            "request_digest_mismatch",
            "response_digest_mismatch",
            "response_tresor_mismatch",
        ),
    )
