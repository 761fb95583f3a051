"""What reaches the caller is what the upstream sent with one member spliced in; the receipt has the digests of both."""

import hashlib
from typing import Any

import msgspec
import pytest

from support.router import Router, chat
from support.upstream import (
    DONE,
    Upstream,
    chunk,
    chunked,
    completion,
    finish,
    head,
    reply,
    reply_error,
    send_raw,
    sse,
    stream,
    usage_chunk,
)
from support.wire import Answer


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def spliced(answer: Answer, before: bytes, behind: bytes, comma: bytes = b",") -> dict[str, Any]:
    """Check that the body is `before`, the `tresor` member, `behind`; return the member's value."""
    start = before + comma + b'"tresor":'
    assert answer.body.startswith(start), answer.body
    assert answer.body.endswith(behind), answer.body
    value: dict[str, Any] = msgspec.json.decode(answer.body[len(start) : len(answer.body) - len(behind)])
    return value


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        (b'{"id":"1","choices":[{"message":{"content":"\\u00e9 \xc3\xa9 \\/"}}],"n":1.0,"m":1e2', b"}"),
        (b' \n{ "choices" : [ ] , "model":"whatever"  ', b"}\r\n \t"),
        (b'{"b":1,"a":{"tresor":{"receipt_id":"theirs"}},"usage":null,"error":null', b"}"),
        (b'{"big":123456789012345678901234567890,"x":"}{"', b"}"),
        (b'{"model":"a","same":1,"same":2', b"}"),
    ],
)
def test_an_answer_keeps_every_byte(router: Router, alpha: Upstream, before: bytes, behind: bytes) -> None:
    alpha.script(reply(before + behind))
    answer = router.complete(chat("solo"))
    assert answer.status == 200
    assert spliced(answer, before, behind)["receipt_id"] == answer.receipt_id
    claims = router.verify(answer.receipt_id, request=chat("solo"), response=answer.body).claims
    assert claims.upstream_response_digest == sha256(before + behind)


def test_an_empty_object_gets_no_comma(router: Router, alpha: Upstream) -> None:
    alpha.script(reply(b"{}"))
    answer = router.complete(chat("solo"))
    assert spliced(answer, b"{", b"}", comma=b"")["routed_model"] == "eu/alpha/solo"


@pytest.mark.parametrize("name", [b'"tresor"', b'"\\u0074resor"'])
def test_a_tresor_member_of_the_upstreams_is_replaced(router: Router, alpha: Upstream, name: bytes) -> None:
    alpha.script(reply(b'{"a":1.0,' + name + b':{"receipt_id":"theirs"},"b":[2e1]}'))
    answer = router.complete(chat("solo"))
    assert spliced(answer, b'{"a":1.0,"b":[2e1]', b"}")["receipt_id"] == answer.receipt_id
    assert b"theirs" not in answer.body


def test_all_four_bodies_are_hashed(router: Router, alpha: Upstream) -> None:
    request, body = chat("solo", temperature=1.0, provider="alpha"), completion("four", extra=1.0)
    alpha.script(reply(body))
    answer = router.complete(request)
    claims = router.verify(answer.receipt_id).claims
    assert claims.request_digest == sha256(request)
    assert claims.upstream_request_digest == sha256(alpha.last.body)
    assert claims.upstream_response_digest == sha256(body)
    assert claims.response_digest == sha256(answer.body)
    assert len({claims.request_digest, claims.upstream_request_digest, claims.response_digest, sha256(body)}) == 4


@pytest.mark.parametrize("wants_usage", [False, True])
def test_all_four_bodies_of_a_stream_are_hashed(router: Router, alpha: Upstream, wants_usage: bool) -> None:
    events = (
        b": hello\n\n",
        chunk("fo"),
        chunk("ur", system_fingerprint="é"),
        finish(),
        b": nearly\r\n\r\n",
        usage_chunk(),
        DONE,
    )
    alpha.script(stream(*events))
    request = chat("solo", stream=True, stream_options={"include_usage": wants_usage})
    answer = router.complete(request)
    claims = router.verify(answer.receipt_id).claims
    assert claims.request_digest == sha256(request)
    assert claims.upstream_request_digest == sha256(alpha.last.body)
    assert claims.upstream_response_digest == sha256(b"".join(events))
    assert claims.response_digest == sha256(answer.body)
    assert claims.total_tokens == 14
    finish_before = b"".join(events[:3]) + finish()[: finish().rindex(b"}")]
    behind = b"}\n\n" + events[4] + (events[5] if wants_usage else b"") + DONE
    assert spliced(answer, finish_before, behind)["receipt_id"] == answer.receipt_id


def test_answers_in_another_transfer_coding_hash_the_same(router: Router, alpha: Upstream) -> None:
    body = completion("four")
    pieces = b"".join(chunked(body[at : at + 9]) for at in range(0, len(body), 9))
    until_close = head(200, "Connection: close") + body
    alpha.script(
        reply(body), send_raw(head(200, "Transfer-Encoding: chunked"), pieces, chunked(b"")), send_raw(until_close)
    )
    answers = [router.complete(chat("solo")) for _ in range(3)]
    claims = [router.verify(answer.receipt_id, response=answer.body).claims for answer in answers]
    assert [c.upstream_response_digest for c in claims] == [sha256(body)] * 3


@pytest.mark.parametrize(("status", "message"), [(400, 'context is 4 tokens, "é" \\ \n'), (413, "big"), (422, "no")])
def test_a_refusal_that_is_passed_on_is_hashed_as_sent(
    router: Router, alpha: Upstream, status: int, message: str
) -> None:
    alpha.script(reply_error(status, message))
    answer = router.complete(chat("solo"))
    assert (answer.status, answer.error["code"], answer.error["message"]) == (status, "upstream_rejected", message)
    claims = router.verify(answer.receipt_id, request=chat("solo"), response=answer.body).claims
    assert (claims.outcome, claims.status, claims.routed_model) == ("refused", status, None)
    assert claims.upstream_response_digest is not None
    assert claims.upstream_response_digest != claims.response_digest


def test_a_content_type_of_the_upstreams_is_not_taken_for_json(router: Router, alpha: Upstream) -> None:
    alpha.script(reply(completion(), content_type="text/html"))
    answer = router.complete(chat("solo"))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")


def test_headers_of_the_upstreams_stay_there(router: Router, alpha: Upstream) -> None:
    alpha.script(
        reply(completion(), "Set-Cookie: a=1", "X-Request-Id: theirs", "Server: them", "X-Tresor-Receipt-Id: x")
    )
    answer = router.complete(chat("solo"))
    assert set(answer.headers) == {
        "date",
        "content-type",
        "content-length",
        "connection",
        "x-request-id",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-tresor-receipt-id",
    }
    assert answer.headers["x-request-id"] != "theirs"
    assert answer.receipt_id == answer.json["tresor"]["receipt_id"]


def test_a_stream_that_differs_in_form_passes_as_it_came(router: Router, alpha: Upstream) -> None:
    events = (
        sse({"choices": [{"index": 0, "delta": {"content": "a"}}]}, end=b"\r\n"),
        b'event: x\nid: 7\ndata:{"choices":\ndata: [{"index":0,"delta":{"content":"b"},"finish_reason":null}]}\n\n',
        b'data: {"choices":[],"prompt_filter_results":[{"x":1.0}]}\n\n',
        b"retry: 10\n\n",
    )
    last = b'event: message\r\ndata: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}] }\r\n\r\n'
    alpha.script(stream(*events, last, DONE))
    answer = router.complete(chat("solo", stream=True))
    member = spliced(answer, b"".join(events) + last[: last.rindex(b"}")], last[last.rindex(b"}") :] + DONE)
    assert member["receipt_id"] == answer.receipt_id
    assert router.verify(answer.receipt_id, response=answer.body).claims.outcome == "complete"
