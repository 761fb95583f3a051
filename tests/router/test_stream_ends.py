"""Every way a stream ends: what the caller gets, and what its receipt says."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from support.router import Router, UpstreamEntry, chat, running_router
from support.upstream import (
    DONE,
    Call,
    Script,
    Upstream,
    chunk,
    chunked,
    finish,
    head,
    reply,
    send_raw,
    sse,
    stream,
    usage_chunk,
)
from support.wire import Answer

EVENTS = head(200, "Transfer-Encoding: chunked", content_type="text/event-stream")
UNTIL_CLOSE = head(200, content_type="text/event-stream")
ERROR = sse({"error": {"message": "out of memory", "type": "server_error", "code": 500}})
LARGE = 1 << 20


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as scripted:
        yield scripted


@pytest.fixture(scope="module")
def impatient(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    """A router that waits half a second for an upstream, and takes events of 3 MiB."""
    waits = {"first_byte_timeout_s": 0.5, "idle_timeout_s": 0.5}
    with running_router(
        tmp_path_factory.mktemp("router"),
        [UpstreamEntry(upstream, settings=waits)],
        settings={"limits": {"max_event_bytes": 3 * LARGE, "keep_alive_comment_s": 60}},
    ) as router:
        yield router


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def ask(router: Router, upstream: Upstream, script: Script, **members: Any) -> Answer:
    upstream.reset()
    upstream.script(script)
    return router.complete(chat(stream=True, **members))


def falls_silent(*parts: bytes) -> Script:
    def script(call: Call) -> None:
        call.send(b"".join(parts))
        call.wait_cancelled()

    return script


def with_extension(event: bytes, answer: Answer) -> bytes:
    """Return a finish chunk as the caller should get it."""
    extension = (
        b',"tresor":{"receipt_id":"%b","requested_route":"auto/auto/m","routed_model":"eu/alpha/m","failover":false}'
        % answer.receipt_id.encode()
    )
    at = event.rindex(b"}")
    return event[:at] + extension + event[at:]


@dataclass(frozen=True)
class Whole:
    """A stream that ends well: what the upstream sends, and what of it the caller gets before and behind the finish."""

    script: Script
    before: bytes = b""
    finish: bytes = finish()
    behind: bytes = DONE


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Whole(stream(chunk(), finish(), DONE), chunk()), id="done"),
        pytest.param(Whole(stream(chunk(), finish()), chunk()), id="done-missing"),
        pytest.param(Whole(stream(finish(), DONE)), id="nothing-but-finish"),
        pytest.param(Whole(stream(chunk() + finish() + DONE), chunk()), id="all-in-one-read"),
        pytest.param(Whole(stream(chunk(), finish(), DONE.rstrip()), chunk()), id="done-without-its-blank-line"),
        pytest.param(Whole(stream(chunk(), finish().rstrip()), chunk()), id="finish-without-its-blank-line"),
        pytest.param(Whole(stream(chunk(), finish(), DONE, b"data: {}\n\n: more\n\n"), chunk()), id="more-behind-done"),
        pytest.param(Whole(stream(chunk(), finish(), DONE, end=False), chunk()), id="left-open-behind-done"),
        pytest.param(Whole(stream(chunk(), usage_chunk(), finish(), DONE), chunk()), id="usage-before-finish"),
        pytest.param(Whole(stream(chunk(), finish(), usage_chunk(), DONE), chunk()), id="usage-behind-finish"),
        pytest.param(
            Whole(stream(chunk(), finish(), b": late\n\n", DONE), chunk(), behind=b": late\n\n" + DONE),
            id="comment-behind-finish",
        ),
        pytest.param(
            Whole(stream(b": early\n\n", chunk(), b":\n\n", finish(), DONE), b": early\n\n" + chunk() + b":\n\n"),
            id="comments",
        ),
        pytest.param(
            Whole(
                stream(chunk(), finish(), chunk("y"), finish("length"), DONE),
                chunk() + finish() + chunk("y"),
                finish("length"),
            ),
            id="content-behind-finish",
        ),
        pytest.param(Whole(stream(chunk("x" * LARGE), finish(), DONE), chunk("x" * LARGE)), id="event-of-1-MiB"),
        pytest.param(Whole(send_raw(UNTIL_CLOSE, chunk(), finish(), DONE), chunk()), id="until-close"),
        pytest.param(Whole(send_raw(UNTIL_CLOSE, chunk(), finish()), chunk()), id="until-close-done-missing"),
        pytest.param(
            Whole(send_raw(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", finish(), DONE)),
            id="http-1.0",
        ),
        pytest.param(
            Whole(
                stream(sse({"choices": [{"index": 0, "delta": {}}]}), b"data: junk\n\n", finish(), DONE),
                sse({"choices": [{"index": 0, "delta": {}}]}) + b"data: junk\n\n",
            ),
            id="junk-between",
        ),
    ],
)
def test_a_whole_stream_is_complete(impatient: Router, upstream: Upstream, case: Whole) -> None:
    answer = ask(impatient, upstream, case.script)
    assert answer.status == 200
    assert answer.body == case.before + with_extension(case.finish, answer) + case.behind
    claims = impatient.verify(answer.receipt_id, response=answer.body).claims
    assert (claims.outcome, claims.status, claims.routed_model) == ("complete", 200, "eu/alpha/m")
    assert [attempt.outcome for attempt in claims.attempts] == ["served"]


def test_every_cut_of_a_stream_into_reads_gives_the_same(impatient: Router, upstream: Upstream) -> None:
    crlf = sse({"choices": [{"index": 0, "delta": {"content": "é"}, "finish_reason": None}]}, end=b"\r\n")
    whole = chunk("a") + b": c\r\n\r\n" + crlf + finish() + usage_chunk() + DONE
    for size in (1, 2, 3, 7, 64, 1000):
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        answer = ask(impatient, upstream, stream(*pieces))
        assert answer.body == chunk("a") + b": c\r\n\r\n" + crlf + with_extension(finish(), answer) + DONE
        claims = impatient.verify(answer.receipt_id, response=answer.body).claims
        assert (claims.upstream_response_digest, claims.total_tokens) == (sha256(whole), 14)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        pytest.param(stream(chunk()), "stream_broken", id="neither-finish-nor-done"),
        pytest.param(stream(chunk(), DONE), "stream_broken", id="done-without-finish"),
        pytest.param(stream(chunk(), finish()[:-9]), "stream_broken", id="finish-cut"),
        pytest.param(stream(chunk(), chunk("secret")[:30]), "stream_broken", id="event-cut"),
        pytest.param(stream(chunk(), ERROR), "stream_broken", id="error"),
        pytest.param(stream(chunk(), ERROR, DONE), "stream_broken", id="error-and-done"),
        pytest.param(stream(chunk(), finish(), ERROR), "stream_broken", id="error-behind-finish"),
        pytest.param(send_raw(EVENTS, chunked(chunk())), "connection_lost", id="transfer-coding-cut"),
        pytest.param(send_raw(EVENTS, chunked(chunk()), b"ff\r\ndata"), "connection_lost", id="transfer-chunk-cut"),
        pytest.param(send_raw(EVENTS, chunked(chunk() + finish())), "connection_lost", id="cut-behind-finish"),
        pytest.param(send_raw(EVENTS, chunked(chunk()), b"zz\r\n"), "invalid_response", id="transfer-coding-wrong"),
        pytest.param(send_raw(UNTIL_CLOSE, chunk()), "stream_broken", id="until-close-without-finish"),
        pytest.param(
            send_raw(UNTIL_CLOSE.replace(b"\r\n\r\n", b"\r\nContent-Length: 9999\r\n\r\n"), chunk()),
            "connection_lost",
            id="content-length-cut",
        ),
        pytest.param(stream(chunk(), chunk("y" * 4 * LARGE), finish(), DONE), "invalid_response", id="event-too-long"),
        pytest.param(stream(chunk(), b"data: " + b"y" * 4 * LARGE), "invalid_response", id="event-without-end"),
        pytest.param(
            stream(chunk(), finish(), *[b": " + b"z" * LARGE + b"\n\n"] * 4, DONE),
            "invalid_response",
            id="held-too-long",
        ),
        pytest.param(falls_silent(EVENTS, chunked(chunk())), "timeout", id="silence"),
        pytest.param(falls_silent(EVENTS, chunked(chunk() + finish())), "timeout", id="silence-behind-finish"),
    ],
)
def test_a_stream_that_breaks_behind_content_ends_with_an_error_event(
    impatient: Router, upstream: Upstream, script: Script, reason: str
) -> None:
    answer = ask(impatient, upstream, script)
    assert answer.status == 200
    assert answer.body.startswith(chunk())
    last = answer.body.removeprefix(chunk())
    assert last.startswith(b'data: {"error":')
    assert last.endswith(b'"tresor":{"receipt_id":"%b"}}\n\n' % answer.receipt_id.encode())
    assert last.count(b"\n\n") == 1
    code = b"upstream_timeout" if reason == "timeout" else b"upstream_error"
    assert b'"code":"' + code + b'"' in last
    assert b"out of memory" not in last
    claims = impatient.verify(answer.receipt_id, response=answer.body).claims
    assert (claims.outcome, claims.status, claims.routed_model) == ("upstream_aborted", 200, "eu/alpha/m")
    assert [attempt.reason for attempt in claims.attempts] == [reason]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        pytest.param(stream(), "stream_broken", id="empty"),
        pytest.param(stream(b": hello\n\n"), "stream_broken", id="comment-alone"),
        pytest.param(stream(DONE), "stream_broken", id="done-alone"),
        pytest.param(stream(ERROR), "stream_broken", id="error-first"),
        pytest.param(stream(b": hello\n\n" + ERROR + chunk()), "stream_broken", id="error-behind-comment"),
        pytest.param(stream(chunk()[:20]), "stream_broken", id="first-event-cut"),
        pytest.param(stream(b"data: junk\n\n"), "invalid_response", id="junk-first"),
        pytest.param(stream(b"data: [1]\n\n"), "invalid_response", id="no-object-first"),
        pytest.param(stream(usage_chunk(), DONE), "stream_broken", id="usage-alone"),
        pytest.param(stream(chunk(), content_type="text/plain"), "invalid_response", id="no-event-stream"),
        pytest.param(reply(b'{"choices":[]}'), "invalid_response", id="no-stream"),
        pytest.param(
            send_raw(EVENTS.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"), chunked(b"\x1f\x8b")),
            "invalid_response",
            id="gzip",
        ),
        pytest.param(stream(b"data: " + b"y" * 4 * LARGE), "invalid_response", id="first-event-without-end"),
        pytest.param(stream(*[b": " + b"z" * LARGE + b"\n\n"] * 4), "invalid_response", id="comments-without-end"),
        pytest.param(send_raw(EVENTS), "connection_lost", id="cut-behind-head"),
        pytest.param(send_raw(EVENTS[:20]), "connection_lost", id="head-cut"),
        pytest.param(falls_silent(), "timeout", id="silence-before-head"),
        pytest.param(falls_silent(EVENTS), "timeout", id="silence-behind-head"),
        pytest.param(falls_silent(EVENTS, chunked(b": hello\n\n")), "timeout", id="silence-behind-comment"),
    ],
)
def test_a_stream_that_breaks_before_content_is_an_error_answer(
    impatient: Router, upstream: Upstream, script: Script, reason: str
) -> None:
    answer = ask(impatient, upstream, script)
    wanted = (504, "upstream_timeout") if reason == "timeout" else (502, "upstream_error")
    assert (answer.status, answer.error["code"]) == wanted
    assert answer.headers["content-type"] == "application/json"
    claims = impatient.verify(answer.receipt_id, response=answer.body).claims
    assert (claims.outcome, claims.routed_model, claims.stream) == ("refused", None, True)
    assert [(attempt.outcome, attempt.reason) for attempt in claims.attempts] == [("failed", reason)]


def test_what_came_behind_done_is_hashed_and_not_sent_on(impatient: Router, upstream: Upstream) -> None:
    parts = (chunk(), finish(), DONE, b"data: more\n\n")
    answer = ask(impatient, upstream, stream(*parts))
    assert answer.body.endswith(DONE)
    claims = impatient.verify(answer.receipt_id, response=answer.body).claims
    assert claims.upstream_response_digest == sha256(b"".join(parts))


def test_an_opted_out_stream_that_breaks_names_no_receipt(impatient: Router, upstream: Upstream) -> None:
    upstream.script(stream(chunk()))
    answer = impatient.complete(chat(stream=True), X_Tresor_Receipt="false")
    assert answer.body.startswith(chunk() + b'data: {"error":')
    assert b"tresor" not in answer.body
    assert "x-tresor-receipt-id" not in answer.headers


def test_the_usage_chunk_reaches_a_caller_that_asked(impatient: Router, upstream: Upstream) -> None:
    for script in (stream(chunk(), finish(), usage_chunk(), DONE), stream(chunk(), usage_chunk(), finish(), DONE)):
        answer = ask(impatient, upstream, script, stream_options={"include_usage": True})
        assert usage_chunk() in answer.body
        assert impatient.verify(answer.receipt_id, response=answer.body).claims.total_tokens == 14
